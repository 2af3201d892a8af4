"""A real Ray cluster of two nodes on this machine, and the service's jobs on it. `make test-ray`.

The server does not import Ray: it runs in this process, which asserts that.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from fake_trainer import TINY, make_dataset, open_jobs, reached

from nanogpt.checkpoint import read_meta
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.training.events import EventReader, StepMetrics
from server.jobs.job import JobState
from server.jobs.launcher import Launchers
from server.jobs.publication import publish_best
from server.jobs.ray_launcher import RayJobs, RayLauncher
from server.jobs.service import JobService
from server.jobs.submission import Submission

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

DASHBOARD = 28265
BIN = Path(sys.executable).parent

CONFIG = {**TINY, "launcher": "ray", "processes": 2, "checkpoint_interval": 20, "max_iters": 400}


def ray(*arguments: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # on a Mac too
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    subprocess.run([str(BIN / "ray"), *arguments], check=True, env=environment, timeout=180)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayJobs]:
    """A head and one more node, a CPU each: two workers need both."""
    before = {process.pid for process in psutil.process_iter()}
    common = [
        "--num-cpus=1",
        "--node-ip-address=127.0.0.1",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    try:
        ray("start", "--head", "--port=26379", f"--dashboard-port={DASHBOARD}", *common)
        ray("start", "--address=127.0.0.1:26379", "--dashboard-agent-listen-port=52399", *common)
        yield RayJobs(f"http://127.0.0.1:{DASHBOARD}")
    finally:
        for process in psutil.process_iter():
            # of this cluster alone: another one may run here
            if process.pid not in before and "ray" in " ".join(cmdline(process)):
                process.kill()


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
async def jobs(tmp_path: Path, cluster: RayJobs) -> AsyncIterator[JobService]:
    make_dataset(tmp_path)
    service = await opened(tmp_path, cluster)
    yield service
    await service.drain(60)
    await service.close()


async def opened(data_dir: Path, cluster: RayJobs) -> JobService:
    launchers = Launchers({"ray": RayLauncher(cluster)})
    service = await open_jobs(data_dir, launchers, publish=publish_best)
    service.start()
    return service


def members(run_dir: Path) -> dict[int, psutil.Process]:
    """The processes of a run by their rank."""
    found = {}
    for process in psutil.process_iter():
        words = cmdline(process)
        if str(run_dir) in words and "--member" in words:
            found[int(process.environ()["RANK"])] = process
    return found


async def at_step(run_dir: Path, step: int) -> None:
    reader, deadline = EventReader(run_dir / "metrics.jsonl"), time.monotonic() + 300
    while time.monotonic() < deadline:
        for event in reader.read():
            if isinstance(event.body, StepMetrics) and event.body.step >= step:
                return
        await asyncio.sleep(0.01)
    raise AssertionError((run_dir / "log.txt").read_text())


async def follow(jobs: JobService, job_id: str) -> list[int]:
    """The sequence numbers that a subscriber sees, to the end."""
    seen = []
    async with jobs.follow(job_id, 1) as subscription:
        while (news := await subscription.next(600)) is not None:
            if isinstance(news, list):
                seen += [event.sequence for event in news]
    return seen


async def test_a_job_on_two_nodes_survives_the_death_of_a_worker(
    jobs: JobService, tmp_path: Path
) -> None:
    assert "ray" not in sys.modules
    job_id = (await jobs.submit(Submission(dataset="tiny", config=CONFIG))).job.id
    run_dir = tmp_path / "runs" / job_id
    following = asyncio.create_task(follow(jobs, job_id))
    await at_step(run_dir, 50)
    first = members(run_dir)
    assert sorted(first) == [0, 1]
    nodes = {process.parent().parent().pid for process in first.values()}
    assert len(nodes) == 2  # a raylet each
    first[1].kill()
    seen = await following
    assert (await jobs.report(job_id)).job.state is JobState.SUCCEEDED
    assert len((await jobs.report(job_id)).job.attempts) == 1
    events = EventReader(run_dir / "metrics.jsonl").read()
    assert seen == [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = [e.body.step for e in events if isinstance(e.body, StepMetrics)]
    assert steps == list(range(1, 401))
    assert (run_dir / "log.txt").read_text().count("resuming from step_") == 1


async def test_a_cancelled_job_leaves_a_checkpoint(jobs: JobService, tmp_path: Path) -> None:
    endless = {**CONFIG, "max_iters": 10**6, "lr_decay_iters": 10**6, "checkpoint_interval": 0}
    job_id = (await jobs.submit(Submission(dataset="tiny", config=endless))).job.id
    run_dir = tmp_path / "runs" / job_id
    await at_step(run_dir, 30)
    await jobs.cancel(job_id)
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED
    report = await jobs.report(job_id)
    assert report.job.attempts[0].exit_code == 75
    newest = newest_valid(run_dir / "checkpoints")  # no event if an evaluation was interrupted
    assert newest is not None and read_meta(newest).step >= 30
    assert members(run_dir) == {}


DOOMED = """
import asyncio, json, sys
from pathlib import Path
from test_ray_cluster import opened
from server.jobs.ray_launcher import RayJobs
from server.jobs.submission import Submission

async def main(data_dir, address, config):
    jobs = await opened(Path(data_dir), RayJobs(address))
    submission = Submission(dataset="tiny", config=json.loads(config))
    print((await jobs.submit(submission)).job.id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_what_a_dead_server_left_is_stopped_and_goes_on(
    tmp_path: Path, cluster: RayJobs
) -> None:
    """Nobody tells the cluster that the server was killed: the next server looks."""
    make_dataset(tmp_path)
    long = {**CONFIG, "max_iters": 3000, "lr_decay_iters": 3000, "eval_interval": 1000}
    arguments = [str(tmp_path), f"http://127.0.0.1:{DASHBOARD}", json.dumps(long)]
    with subprocess.Popen(
        [sys.executable, "-c", DOOMED, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as server:
        job_id = server.stdout.readline().strip()
        run_dir = tmp_path / "runs" / job_id
        await at_step(run_dir, 30)
        server.kill()
    service = await opened(tmp_path, cluster)
    try:
        assert await reached(service, job_id) is JobState.SUCCEEDED
        assert len((await service.report(job_id)).job.attempts) == 2
    finally:
        await service.drain(60)
        await service.close()
    events = EventReader(run_dir / "metrics.jsonl").read()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert (run_dir / "log.txt").read_text().count("resuming from step_") == 1
