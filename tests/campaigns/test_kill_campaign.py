"""kill -9 of servers and trainers at random moments; clients that only reconnect see nothing of it.

A real server runs jobs, all of one configuration. Again and again it, its trainer, or both are
killed: while a job is submitted, in the middle of steps, while a checkpoint is written. Then

    every acknowledged job is there once and has succeeded, with the weights of an undisturbed run;
    a reader that follows by the client library saw every sequence number exactly once;
    no run ever had two trainers at work at a time.

    CAMPAIGN_SCALE=10 CAMPAIGN_SEED=1234 python -m pytest -m campaign -s tests/campaigns
"""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from campaign import SCALE, SEED, Report, sha256
from fake_trainer import make_dataset

from client import Client, NanoGPTError
from nanogpt.training.run_directory import RunDirectory
from protos.nanogpt.v1.training_pb2 import Job

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(7200)]

KILLS = {"server": 20 * SCALE, "trainer": 20 * SCALE}

CONFIG = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 32,
    "batch_size": 8,
    "dropout": 0.1,
    "max_iters": 400,
    "lr_decay_iters": 400,
    "warmup_iters": 10,
    "eval_interval": 100,
    "eval_iters": 2,
    "log_interval": 1,
    "checkpoint_interval": 20,
    "keep_checkpoints": 1,
    "device": "cpu",
    "dtype": "float32",
    "compile": "off",
}

ENDED = (Job.STATE_SUCCEEDED, Job.STATE_FAILED, Job.STATE_CANCELLED)
PATIENCE_SECONDS = 300.0

T = TypeVar("T")


class Server:
    """`python -m server` on one folder and one port, over many lives."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process: subprocess.Popen[str] | None = None
        self.starts = 0

    def start(self) -> None:
        """Returns once it answers."""
        with (self.data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "server",
                    f"--data_dir={self.data_dir}",
                    f"--grpc_address={self.address}",
                    "--http_address=127.0.0.1:0",
                    "--device=cpu",
                    "--max_crashes=1000",
                    "--max_backoff_seconds=1",
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "serves gRPC" in line, (self.data_dir / "server.log").read_text()[-2000:]
        self.starts += 1

    def kill(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def trainers(self) -> dict[str, list[int]]:
        """Process ids of living trainers, by job."""
        found: dict[str, list[int]] = {}
        runs = str((self.data_dir / "runs").absolute())
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            words = _command(int(folder.name)).split("\0")
            if "nanogpt.training" in words:
                for word in words:
                    if word.startswith(f"{runs}/"):
                        found.setdefault(Path(word).name, []).append(int(folder.name))
        return found

    def trainers_at_work(self) -> dict[str, int]:
        """How many trainers hold the lock of each run; one that is on its way in or out does not.

        https://man7.org/linux/man-pages/man5/proc_locks.5.html
        """
        trainers = self.trainers()
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        holders = {int(words[4]) for words in locks if words[1] == "FLOCK"}
        return {job_id: len(holders.intersection(pids)) for job_id, pids in trainers.items()}


def _command(pid: int) -> str:
    """The words of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


class Reader(threading.Thread):
    """Follows one job to its end, as any client would."""

    def __init__(self, address: str, job_id: str) -> None:
        super().__init__(name=f"reader of {job_id}", daemon=True)
        self._address, self.job_id = address, job_id
        self.sequences: list[int] = []
        self.num_checkpoints = 0
        self.states: list[int] = []
        self.error: Exception | None = None
        self.start()

    @property
    def has_ended(self) -> bool:
        return bool(self.states) and self.states[-1] in ENDED

    def run(self) -> None:
        with Client(self._address) as client:
            while not self.has_ended:
                try:
                    for event in client.watch(self.job_id, len(self.sequences) + 1):
                        if event.HasField("sequence"):
                            self.sequences.append(event.sequence)
                            self.num_checkpoints += event.HasField("checkpoint")
                        elif event.HasField("state_change"):
                            self.states.append(event.state_change.state)
                except NanoGPTError as error:
                    if self.sequences or self.states:  # else the server was not there yet
                        self.error = error
                        return
                    time.sleep(0.1)


class Overseer(threading.Thread):
    """Counts, many times a second, how many trainers are at work in each run."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="overseer", daemon=True)
        self._server, self._stop_asked = server, threading.Event()
        self.most = 0
        self.looks = 0
        self.start()

    def run(self) -> None:
        while not self._stop_asked.wait(0.2):
            counts = self._server.trainers_at_work().values()
            self.most = max([self.most, *counts])
            self.looks += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


class Campaign:
    """One server, the jobs it has acknowledged, and those who follow them."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        self.server, self.chance = server, chance
        self.readers: dict[str, Reader] = {}  # by request id
        self.unanswered: list[str] = []
        """Request ids whose answer was lost: their jobs may exist or not."""
        self.kills: Counter[str] = Counter()
        self._num_requests = 0

    def submit(self) -> None:
        """Submits a job and follows it; what nobody answered is asked again later."""
        self._num_requests += 1
        self._send(f"request-{self._num_requests}")

    def repeat_unanswered(self) -> None:
        asked, self.unanswered = self.unanswered, []
        for request_id in asked:
            self._send(request_id)

    def _send(self, request_id: str) -> None:
        try:
            with Client(self.server.address) as client:
                job = client.train("tiny", request_id=request_id, **CONFIG)
        except NanoGPTError:
            self.unanswered.append(request_id)
        else:
            self.readers[request_id] = Reader(self.server.address, job.id)

    def ensure_work(self) -> None:
        """Lets at least one job be there that has not ended."""
        self.repeat_unanswered()
        if all(reader.has_ended for reader in self.readers.values()):
            self.submit()

    def a_trainer(self) -> tuple[str, int]:
        """Some job that trains, and the process that does it."""
        self.ensure_work()
        found = wait_for(self.server.trainers)
        job_id = self.chance.choice(sorted(found))
        return job_id, found[job_id][0]

    def kill_server(self, moment: str) -> None:
        self._strike(moment, lambda trainer: self.server.kill())
        self.server.start()

    def kill_both(self, moment: str) -> None:
        def strike(trainer: int) -> None:
            self.server.kill()
            kill(trainer)

        self._strike(moment, strike)
        self.server.start()

    def kill_trainer(self, moment: str) -> None:
        self._strike(moment, kill)

    def _strike(self, moment: str, strike: Callable[[int], None]) -> None:
        """Kills in the middle of something."""
        job_id, trainer = self.a_trainer()
        run = RunDirectory(self.server.data_dir / "runs" / job_id)
        if moment == "submit":
            submitting = threading.Thread(target=self.submit)
            submitting.start()
            time.sleep(self.chance.uniform(0, 0.03))  # part of the experiment
            strike(trainer)
            submitting.join()
        elif moment == "checkpoint":
            with suppress(TimeoutError):  # it has ended before it wrote one more
                wait_for(lambda: list(run.checkpoints_path.glob(".*")), 10, pause_seconds=0.0005)
            strike(trainer)
        else:
            time.sleep(self.chance.uniform(0, 1.5))
            strike(trainer)
        self.kills[moment] += 1

    def finish(self) -> None:
        """Waits until every job has ended and every reader knows it."""
        self.repeat_unanswered()
        for reader in self.readers.values():
            reader.join(PATIENCE_SECONDS)
            assert reader.error is None and reader.has_ended, (reader.job_id, reader.error)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it was done
        os.kill(pid, signal.SIGKILL)


def wait_for(
    look: Callable[[], T], seconds: float = PATIENCE_SECONDS, pause_seconds: float = 0.02
) -> T:
    """What `look` finds, once it finds something. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause_seconds)
    return found


@contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    server = Server(data_dir)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        for pids in server.trainers().values():
            for pid in pids:
                kill(pid)


@pytest.mark.parametrize("victim", ["server", "trainer"])
def test_kills_at_random_moments_lose_repeat_and_change_nothing(
    tmp_path: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # lost connections are what this is about
    report = Report(f"kills of the {victim}")
    chance = random.Random(f"{SEED} {victim}")
    make_dataset(tmp_path)
    with serving(tmp_path) as server:
        overseer = Overseer(server)
        campaign = Campaign(server, chance)
        campaign.submit()  # the first one is left alone
        campaign.finish()
        for _ in range(KILLS[victim]):
            moment = chance.choice(["submit", "steps", "checkpoint"])
            if victim == "trainer":
                campaign.kill_trainer(moment)
            elif chance.random() < 0.25:
                campaign.kill_both(moment)
            else:
                campaign.kill_server(moment)
        campaign.finish()
        overseer.stop()

        with Client(server.address) as client:
            jobs = {job.id: client.job(job.id) for job in client.jobs()}
        followed = {reader.job_id: reader for reader in campaign.readers.values()}
        assert jobs.keys() == followed.keys()  # none lost, none made twice
        assert len(followed) == len(campaign.readers)
        weights = {
            sha256(tmp_path / "models" / job.model / "model.safetensors") for job in jobs.values()
        }
        assert len(weights) == 1, "weights differ from those of the undisturbed run"
        # a trainer that is asked to leave writes one checkpoint more; all else happens once
        num_events = {len(r.sequences) - r.num_checkpoints for r in followed.values()}
        assert len(num_events) == 1
        for job in jobs.values():
            reader = followed[job.id]
            assert job.state == Job.STATE_SUCCEEDED, job.error
            assert reader.sequences == list(range(1, len(reader.sequences) + 1))
            started_at = [a.first_step for a in job.attempts if a.HasField("first_step")]
            assert started_at == sorted(started_at)
        assert overseer.most == 1, "two trainers of one run at a time"
        report.print(
            **{f"kills_in_{moment}": count for moment, count in sorted(campaign.kills.items())},
            jobs=len(jobs),
            attempts=sum(len(job.attempts) for job in jobs.values()),
            server_starts=server.starts,
            events_read=sum(len(reader.sequences) for reader in followed.values()),
            looks_for_a_second_trainer=overseer.looks,
        )
