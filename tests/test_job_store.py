import asyncio
import sqlite3
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from server.errors import DataLoss, FailedPrecondition
from server.jobs.job import Job, JobReason, JobState, Standing, new_job_id
from server.jobs.store import JobStore


def job(job_id: str, **changes: object) -> Job:
    values: dict[str, object] = {
        "id": job_id,
        "model": f"model-{job_id}",
        "dataset": "tiny",
        "config": TrainConfig(seed=(1 << 64) - 1, learning_rate=3e-4),
        "config_origin": {"seed": "request"},
        "create_time": 1000.5,
        "request": "{}",
        "standing": Standing(JobState.QUEUED, since=1000.5),
    }
    return Job(**{**values, **changes})


@pytest.fixture
async def store(tmp_path: Path):
    store = await JobStore.open(tmp_path / "jobs.sqlite")
    yield store
    await store.close()


async def test_a_job_comes_back_as_it_went_in(store: JobStore) -> None:
    original = job("a", request_id="some id")
    await store.insert(original)
    assert await store.get("a") == original
    assert await store.with_request_id("some id") == original
    assert await store.get("b") is None
    assert await store.with_request_id("other") is None


async def test_a_committed_job_survives_the_store(tmp_path: Path) -> None:
    first = await JobStore.open(tmp_path / "jobs.sqlite")
    await first.insert(job("a"))
    await first.begin_attempt("a")
    await first.close()
    second = await JobStore.open(tmp_path / "jobs.sqlite")
    found = await second.get("a")
    await second.close()
    assert found is not None
    assert [attempt.number for attempt in found.attempts] == [1]


async def test_exactly_one_of_two_claims_is_applied(store: JobStore) -> None:
    await store.insert(job("a"))
    claims = [store.move("a", JobState.QUEUED, Standing(JobState.STARTING)) for _ in range(10)]
    assert sorted(await asyncio.gather(*claims)) == [False] * 9 + [True]
    assert await store.history("a") == [JobState.QUEUED, JobState.STARTING]


async def test_a_move_from_another_state_changes_nothing(store: JobStore) -> None:
    await store.insert(job("a"))
    assert not await store.move("a", JobState.RUNNING, Standing(JobState.FAILED, error="x"))
    assert await store.get("a") == job("a")
    assert not await store.move("nobody", JobState.RUNNING, Standing(JobState.FAILED))


async def test_a_transition_that_the_table_lacks_is_a_bug(store: JobStore) -> None:
    await store.insert(job("a"))
    with pytest.raises(AssertionError):
        await store.move("a", JobState.QUEUED, Standing(JobState.SUCCEEDED))


async def test_the_standing_of_a_job_says_why_and_since_when(store: JobStore) -> None:
    await store.insert(job("a"))
    await store.move("a", JobState.QUEUED, Standing(JobState.STARTING, since=1001.0))
    failed = Standing(JobState.FAILED, JobReason.DIVERGED, "the loss was NaN", 1002.0)
    assert await store.move("a", JobState.STARTING, failed)
    found = await store.get("a")
    assert found is not None
    assert found.standing == failed
    assert found.end_time == 1002.0


async def test_attempts_are_numbered_and_ended_once(store: JobStore) -> None:
    await store.insert(job("a"))
    await store.begin_attempt("a")
    await store.end_attempt("a", -9)
    await store.begin_attempt("a")
    await store.end_attempt("a", None)
    await store.end_attempt("a", 0)  # nothing runs
    found = await store.get("a")
    assert found is not None
    assert [(attempt.number, attempt.exit_code) for attempt in found.attempts] == [
        (1, -9),
        (2, None),
    ]
    assert all(attempt.end_time is not None for attempt in found.attempts)
    assert found.start_time == found.attempts[0].start_time


async def test_crashes_are_counted_from_a_time_on(store: JobStore) -> None:
    crashed = [Standing(JobState.RECOVERING, JobReason.CRASHED, since=float(t)) for t in (5, 10)]
    asked = Standing(JobState.RECOVERING, since=7.0)
    for job_id in ("a", "b"):
        await store.insert(job(job_id))
        await store.move(job_id, JobState.QUEUED, Standing(JobState.STARTING))
        for recovering in (crashed[0], asked, crashed[1]):
            await store.move(job_id, JobState.STARTING, recovering)
            await store.move(job_id, JobState.RECOVERING, Standing(JobState.STARTING, since=11.0))
    counts = [await store.crashes_since("a", time) for time in (None, 0.0, 6.0, 10.0)]
    assert counts == [2, 2, 1, 0]
    assert await store.crashes_since("c", None) == 0


async def test_a_request_id_belongs_to_one_job(store: JobStore) -> None:
    await store.insert(job("a", request_id="same"))
    with pytest.raises(sqlite3.IntegrityError):
        await store.insert(job("b", request_id="same"))
    await store.insert(job("c"))
    await store.insert(job("d"))  # none is no id
    assert await store.get("b") is None


async def test_jobs_by_state_and_by_page(store: JobStore) -> None:
    for job_id in "abcde":
        await store.insert(job(job_id))
    await store.move("b", JobState.QUEUED, Standing(JobState.CANCELLED))
    queued = await store.in_states([JobState.QUEUED])
    assert [found.id for found in queued] == ["a", "c", "d", "e"]
    assert [found.id for found in await store.newest(2)] == ["e", "d"]
    assert [found.id for found in await store.newest(2, before="d")] == ["c", "b"]
    counts = await store.counts()
    assert counts[JobState.QUEUED] == 4
    assert counts[JobState.CANCELLED] == 1
    assert counts[JobState.RUNNING] == 0


async def test_a_commit_is_flushed_and_readers_do_not_block_it(store: JobStore) -> None:
    pragmas = await store._call(
        lambda connection: (
            connection.execute("PRAGMA journal_mode").fetchone()[0],
            connection.execute("PRAGMA synchronous").fetchone()[0],
        )
    )
    assert pragmas == ("wal", 2)  # 2 is FULL


@pytest.mark.parametrize("damage", [b"this is no database" * 300, b"SQLite format 3\0" + b"x" * 90])
async def test_a_damaged_database_is_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(damage)
    with pytest.raises(DataLoss) as error:
        await JobStore.open(tmp_path / "jobs.sqlite")
    assert str(tmp_path) not in error.value.message


async def test_a_database_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FailedPrecondition, match="version 99"):
        await JobStore.open(tmp_path / "jobs.sqlite")


def test_ids_sort_by_submission_whatever_the_clock_does() -> None:
    ids: list[str] = []
    for now in (1000.0, 1000.0, 1000.0004, 2000.0, 1500.0, 2000.0):  # set back once
        ids.append(new_job_id(now, ids[-1] if ids else None))
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(job_id.isalnum() and job_id == job_id.lower() for job_id in ids)
