"""A process that has imported everything and lives many short lives of a server with its trainer.

Importing torch takes seconds and a life tenths of one, so each life is a fork of this process. It
is a whole job service on a data folder, with real trainers, forked likewise; but nothing in it
has started a thread or gRPC before the fork.

One line of JSON in: {"data_dir", "crash_at", "seed"}. One number out: how the life ended, as
`subprocess` counts. The life submits one job, under one request id, and ends when the job does.
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fake_trainer import make_dataset, open_jobs, reached

from nanogpt import device, durable
from nanogpt.config import TrainConfig
from nanogpt.training import trainer
from nanogpt.training.__main__ import main as train
from nanogpt.training.run_directory import RunDirectory, RunSpec
from server.jobs.job import JobState
from server.jobs.publication import publish_best
from server.jobs.submission import Submission

CONFIG: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 4,
    "dropout": 0.1,
    "max_iters": 6,
    "lr_decay_iters": 6,
    "warmup_iters": 1,
    "eval_interval": 3,
    "eval_iters": 1,
    "log_interval": 1,
    "checkpoint_interval": 2,
    "keep_checkpoints": 1,
    "device": "cpu",
    "dtype": "float32",
    "compile": "off",
}


class ForkedTrainer:
    """A trainer in a fork of this process."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid, self._pipe = pid, pipe

    async def wait(self) -> int:
        _, status = await asyncio.to_thread(os.waitpid, self._pid, 0)
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(status)

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


class ForkingLauncher:
    """Starts trainers as server.jobs.launcher does, but by a fork; the first one may crash."""

    def __init__(self, crash_at: str | None) -> None:
        self._crash_at = crash_at

    async def start(self, run: RunDirectory) -> ForkedTrainer:
        crash_at, self._crash_at = self._crash_at, None
        end_of_server, held_open = os.pipe()
        pid = os.fork()
        if pid:
            os.close(end_of_server)
            return ForkedTrainer(pid, held_open)
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            os.close(held_open)
            os.dup2(end_of_server, 0)
            log = os.open(run.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            durable.crash_at(crash_at, "trainer")
            code = train([str(run.path), "--watch-stdin"])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Nothing to do: it has seen the end of its standard input."""

    def check(self, config: TrainConfig) -> None:
        """Every configuration can be run."""

    def kill_abandoned(self, run: RunDirectory) -> bool:
        return False


async def live(data_dir: Path, crash_at: str | None, seed: int) -> bool:
    """Whether the job succeeded."""
    jobs = await open_jobs(
        data_dir, ForkingLauncher(crash_at), publish=publish_best, first_backoff_seconds=0.01
    )
    jobs.start()
    submission = Submission(
        model="m", dataset="tiny", config={**CONFIG, "seed": seed}, request_id="once"
    )
    job_id = (await jobs.submit(submission)).job.id
    state = await reached(jobs, job_id, JobState.SUCCEEDED)
    await jobs.drain(30)
    await jobs.close()
    return state is JobState.SUCCEEDED


def warm_up() -> None:
    """Trains once: what is imported and measured at first use then costs no life anything."""
    with TemporaryDirectory() as folder:
        make_dataset(Path(folder))
        run = RunDirectory(Path(folder) / "runs" / "warm-up")
        config = TrainConfig.from_mapping(CONFIG)
        run.write_spec(RunSpec("warm-up", "m", "../../datasets/tiny", config))
        trainer.train(run, run.read_spec(), log=lambda line: None)
    peak = device.measure_peak(torch.device("cpu"), torch.float32, bandwidth=False)
    device.measure_peak = lambda *_, **__: peak


def main() -> None:
    warm_up()
    for line in sys.stdin:
        wish = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                durable.crash_at(wish["crash_at"], "server")
                done = asyncio.run(live(Path(wish["data_dir"]), wish["crash_at"], wish["seed"]))
                code = 0 if done else 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
