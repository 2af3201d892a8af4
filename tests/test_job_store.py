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
    original = job("a", request_id="some id", priority=-7)
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
    assert [standing.state for standing in await store.history("a")] == [
        JobState.QUEUED,
        JobState.STARTING,
    ]


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
    assert (await store.history("a"))[1:] == [Standing(JobState.STARTING, since=1001.0), failed]


async def test_attempts_are_numbered_and_ended_once(store: JobStore) -> None:
    await store.insert(job("a"))
    await store.begin_attempt("a")
    await store.attempt_started_at("a", 250)
    await store.end_attempt("a", -9, "killed")
    await store.begin_attempt("a")
    await store.end_attempt("a", None, "nobody saw it")
    await store.end_attempt("a", 0, "done")  # nothing runs
    await store.attempt_started_at("a", 7)  # likewise
    found = await store.get("a")
    assert found is not None
    assert [(a.number, a.exit_code, a.first_step, a.ending) for a in found.attempts] == [
        (1, -9, 250, "killed"),
        (2, None, None, "nobody saw it"),
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


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE jobs SET config = '{"depth": 3}' WHERE id = 'd'""",
        """UPDATE jobs SET config = '{"n_layer": 1025}' WHERE id = 'd'""",
        "UPDATE jobs SET reason = 'BORED' WHERE id = 'd'",
    ],
)
async def test_a_job_of_another_version_is_left_out_and_logged_once(
    store: JobStore, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    for job_id in "abcde":
        await store.insert(job(job_id))
    await store._change(lambda connection: connection.execute(change))
    assert [found.id for found in await store.unfinished()] == ["a", "b", "c", "e"]
    assert [found.id for found in await store.newest(2)] == [
        "e",
        "c",
    ]  # a page is full all the same
    assert await store.get("d") is None
    assert [await store.has(job_id) for job_id in "def"] == [True, True, False]
    assert (await store.counts())[JobState.QUEUED] == 5
    assert [message.split(":")[0] for message in caplog.messages] == [
        "job d is left out, it cannot be read"
    ]


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


VERSION_1 = """
CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,
    request_id    TEXT UNIQUE,       -- NULL: the caller gave none
    request       TEXT NOT NULL,     -- canonical JSON
    model         TEXT NOT NULL,
    dataset       TEXT NOT NULL,
    config        TEXT NOT NULL,     -- JSON, every field
    config_origin TEXT NOT NULL,     -- JSON
    state         TEXT NOT NULL,
    reason        TEXT NOT NULL,
    error         TEXT NOT NULL,
    state_time    REAL NOT NULL,     -- unix seconds, as all times here
    create_time   REAL NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE TABLE attempts (
    job_id     TEXT NOT NULL REFERENCES jobs (id),
    number     INTEGER NOT NULL,
    start_time REAL NOT NULL,
    end_time   REAL,
    exit_code  INTEGER,              -- NULL: it runs, or nobody saw it end
    PRIMARY KEY (job_id, number)
) STRICT;
CREATE TABLE transitions (
    job_id TEXT NOT NULL REFERENCES jobs (id),
    time   REAL NOT NULL,
    state  TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX transitions_by_job ON transitions (job_id);
INSERT INTO jobs VALUES
    ('a', 'once', '{}', 'm', 'tiny', '{"n_layer": 3}', '{"n_layer": "request"}',
     'FAILED', 'DIVERGED', 'the loss was NaN', 1003.0, 1000.0),
    ('b', NULL, '{}', 'n', 'tiny', '{}', '{}', 'RUNNING', 'UNSPECIFIED', '', 1005.0, 1004.0);
INSERT INTO attempts VALUES
    ('a', 1, 1001.0, 1001.5, -9), ('a', 2, 1001.6, 1001.8, NULL), ('a', 3, 1002.0, 1003.0, 70),
    ('b', 1, 1005.0, NULL, NULL);
INSERT INTO transitions VALUES
    ('a', 1000.0, 'QUEUED', 'UNSPECIFIED'), ('a', 1003.0, 'FAILED', 'DIVERGED'),
    ('b', 1004.0, 'QUEUED', 'UNSPECIFIED'), ('b', 1005.0, 'RUNNING', 'UNSPECIFIED');
PRAGMA user_version = 1;
"""


def schema(path: Path) -> dict[str, list[tuple[str, str, int]]]:
    """Name, type and whether a value is required, of every column of every table."""
    connection = sqlite3.connect(path)
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    columns = {
        name: [row[1:4] for row in connection.execute(f"PRAGMA table_info({name})")]
        for (name,) in tables
    }
    connection.close()
    return columns


async def test_a_database_of_version_1_is_led_to_the_newest(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    connection = sqlite3.connect(old)
    connection.executescript(VERSION_1)
    connection.close()
    for _ in range(2):  # the second time nothing is left to do
        store = await JobStore.open(old)
        failed, running = await store.get("a"), await store.get("b")
        history = await store.history("a")
        await store.close()
    assert failed is not None and running is not None
    assert (failed.priority, failed.config.n_layer) == (0, 3)
    assert failed.standing == Standing(
        JobState.FAILED, JobReason.DIVERGED, "the loss was NaN", 1003.0
    )
    assert history == [Standing(JobState.QUEUED, since=1000.0), failed.standing]
    assert [(attempt.exit_code, attempt.ending) for attempt in failed.attempts] == [
        (-9, "ended by signal 9"),
        (None, "nobody saw it end"),
        (70, "ended with exit code 70"),
    ]
    assert [(a.end_time, a.first_step, a.ending) for a in running.attempts] == [(None, None, "")]
    await (await JobStore.open(new)).close()
    assert schema(old) == schema(new)


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1 + "DROP TABLE transitions;")
    connection.close()
    before = schema(path)
    with pytest.raises(sqlite3.OperationalError):
        await JobStore.open(path)
    assert schema(path) == before


def test_ids_sort_by_submission_whatever_the_clock_does() -> None:
    ids: list[str] = []
    for now in (1000.0, 1000.0, 1000.0004, 2000.0, 1500.0, 2000.0):  # set back once
        ids.append(new_job_id(now, ids[-1] if ids else None))
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(job_id.isalnum() and job_id == job_id.lower() for job_id in ids)
