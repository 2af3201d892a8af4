"""Run directories whose server died before they became jobs, or whose disk was full."""

import asyncio
import errno
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import FakeLauncher, open_jobs, record, started, succeed

from nanogpt import durable
from nanogpt.training.run_directory import RunDirectory
from server.errors import NotFound, ResourceExhausted
from server.jobs import admission
from server.jobs.job import Job
from server.jobs.service import JobService
from server.jobs.submission import Plan, Submission, plan

SUBMISSION = Submission(dataset="tiny")


class PowerCut(BaseException):
    """Nothing of this process does anything any more."""


def runs(data_dir: Path) -> set[str]:
    return {folder.name for folder in (data_dir / "runs").iterdir()}


async def opened(data_dir: Path) -> JobService:
    return await open_jobs(data_dir, FakeLauncher(succeed))


async def orphan(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """What a server leaves that dies between the run directory and the row."""
    jobs = await opened(data_dir)
    before = runs(data_dir)

    async def die(job: object) -> None:
        raise PowerCut

    monkeypatch.setattr(jobs._store, "insert", die)
    with pytest.raises(PowerCut):
        await jobs.submit(SUBMISSION)
    await jobs.close()
    (left,) = runs(data_dir) - before
    return RunDirectory(data_dir / "runs" / left)


async def test_a_run_that_never_became_a_job_is_swept_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await orphan(tmp_path, monkeypatch)
    (run.path / "init").mkdir()
    (run.path / "init" / "model.safetensors").write_bytes(b"weights")
    unfinished = tmp_path / "runs" / f"{int(run.path.name, 16) + 1:020x}"
    (unfinished / ".writing-init").mkdir(parents=True)
    (unfinished / ".spec.json.tmp").write_text("{")
    jobs = await opened(tmp_path)
    assert runs(tmp_path) == set()
    job_id = (await jobs.submit(SUBMISSION)).job.id
    await jobs.close()
    await (await opened(tmp_path)).close()
    assert runs(tmp_path) == {job_id}  # a job that waits keeps its run


async def test_the_run_of_a_job_of_another_version_is_kept(tmp_path: Path) -> None:
    jobs = await opened(tmp_path)
    job_id = (await jobs.submit(SUBMISSION)).job.id
    await jobs.close()
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    with connection:
        connection.execute("""UPDATE jobs SET config = '{"depth": 3}'""")
    connection.close()
    jobs = await opened(tmp_path)
    assert await jobs.page(10, None) == ([], None)
    assert runs(tmp_path) == {job_id}
    await jobs.submit(SUBMISSION)
    await jobs.close()


@pytest.mark.parametrize("trace", ["log.txt", "metrics.jsonl", "checkpoints"])
async def test_a_run_that_was_ever_started_is_kept_also_without_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    """The database may have come out of a backup that is older than the run."""
    run = await orphan(tmp_path, monkeypatch)
    if trace == "metrics.jsonl":
        record(run, started())
    elif trace == "log.txt":
        run.log_path.touch()
    else:
        run.checkpoints_path.mkdir()
    await (await opened(tmp_path)).close()
    assert runs(tmp_path) == {run.path.name}


async def test_a_dataset_is_in_use_while_its_job_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await opened(tmp_path)
    insert, seen = jobs._store.insert, []

    async def look_and_insert(job: Job) -> None:
        seen.append(await jobs.datasets_in_use())
        await insert(job)

    monkeypatch.setattr(jobs._store, "insert", look_and_insert)
    job_id = (await jobs.submit(SUBMISSION)).job.id
    assert seen == [{"tiny"}]
    await jobs.cancel(job_id)
    while await jobs.datasets_in_use():
        await asyncio.sleep(0.001)
    await jobs.close()


async def test_a_dataset_that_goes_while_it_is_looked_at_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await opened(tmp_path)

    def plan_and_lose(*arguments: Any) -> Plan:
        planned = plan(*arguments)
        shutil.rmtree(tmp_path / "datasets" / "tiny")
        return planned

    monkeypatch.setattr(admission, "plan", plan_and_lose)
    with pytest.raises(NotFound):
        await jobs.submit(SUBMISSION)
    assert runs(tmp_path) == set()
    await jobs.close()


async def test_a_folder_that_no_server_made_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer runs by hand, too."""
    run = await orphan(tmp_path, monkeypatch)
    run.path.rename(tmp_path / "runs" / "by-hand")
    (tmp_path / "runs" / ("0" * 20)).write_text("a file")
    await (await opened(tmp_path)).close()
    assert runs(tmp_path) == {"by-hand", "0" * 20}


async def test_a_full_disk_leaves_nothing_of_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await opened(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_file", full)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        await jobs.submit(SUBMISSION)
    assert runs(tmp_path) == set()
    await jobs.close()


async def test_a_full_database_leaves_nothing_of_a_submission(tmp_path: Path) -> None:
    jobs = await opened(tmp_path)

    def let_it_grow_no_more(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await jobs._store._call(let_it_grow_no_more)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        while True:  # some fit into the pages that there are
            await jobs.submit(SUBMISSION)
    assert runs(tmp_path) == {job.id for job in await jobs._store.unfinished()}
    await jobs.close()


async def test_a_full_disk_is_said_to_whoever_changes_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await opened(tmp_path)
    job_id = (await jobs.submit(SUBMISSION)).job.id

    async def full(*arguments: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    for changes in ((jobs.cancel, jobs.pause), (jobs.resume,)):
        with monkeypatch.context() as patched:
            patched.setattr(jobs._store, "move", full)
            for change in changes:
                with pytest.raises(ResourceExhausted, match="disk is full"):
                    await change(job_id)
        await jobs.pause(job_id)
    await jobs.close()


async def test_a_job_whose_row_is_there_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await opened(tmp_path)

    async def fail() -> None:
        raise sqlite3.DatabaseError

    monkeypatch.setattr(jobs._store, "counts", fail)
    with pytest.raises(sqlite3.DatabaseError):
        await jobs.submit(SUBMISSION)
    assert runs(tmp_path) == {job.id for job in await jobs._store.unfinished()} != set()
    await jobs.close()
