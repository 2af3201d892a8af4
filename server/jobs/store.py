"""The job database: SQLite, with every commit on disk before the caller hears of it.

One connection on one thread does all reads and writes, so calls take effect in the order they
were made, and two connections can never checkpoint the write-ahead log at once, which corrupts it
in SQLite before 3.51.3 (https://www.sqlite.org/wal.html#walresetbug). For the same reason the data
folder belongs to one server, and the trainer never opens the database.

It knows which state may follow which, but not when: that is the supervisor's. Progress is not
here but in each run's own record.

A job that this version cannot read, since a newer one wrote it, is left out of every answer but
`has` and `counts`, and stays as it is.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from nanogpt import durable
from nanogpt.config import TrainConfig
from server.errors import DataLoss, FailedPrecondition
from server.jobs.job import Attempt, Job, JobReason, JobState, Standing
from server.jobs.queue import FOLLOWERS

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2

SCHEMA = """
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
    create_time   REAL NOT NULL,
    priority      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE TABLE attempts (
    job_id     TEXT NOT NULL REFERENCES jobs (id),
    number     INTEGER NOT NULL,
    start_time REAL NOT NULL,
    end_time   REAL,
    exit_code  INTEGER,              -- NULL: it runs, or nobody saw it end
    first_step INTEGER,              -- NULL: it has not said so
    ending     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, number)
) STRICT;
CREATE TABLE transitions (
    job_id TEXT NOT NULL REFERENCES jobs (id),
    time   REAL NOT NULL,
    state  TEXT NOT NULL,
    reason TEXT NOT NULL,
    error  TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX transitions_by_job ON transitions (job_id);
"""

MIGRATIONS = {
    1: """
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN first_step INTEGER;
ALTER TABLE attempts ADD COLUMN ending TEXT NOT NULL DEFAULT '';
UPDATE attempts SET ending = CASE
    WHEN exit_code IS NULL THEN 'nobody saw it end'
    WHEN exit_code < 0 THEN 'ended by signal ' || -exit_code
    ELSE 'ended with exit code ' || exit_code
END WHERE end_time IS NOT NULL;
ALTER TABLE transitions ADD COLUMN error TEXT NOT NULL DEFAULT '';
UPDATE transitions SET error = (SELECT error FROM jobs WHERE id = job_id) WHERE state = 'FAILED';
"""
}
"""What leads from each schema version to the next. A database is never led back."""

T = TypeVar("T")


class JobStore:
    """Jobs, their attempts and their changes of state. Create with `open`."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread
        self._unreadable: set[str] = set()
        """Jobs of which the log said that they cannot be read."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises DataLoss if it is damaged, FailedPrecondition if a newer server made it,
        sqlite3.OperationalError if the disk or another program is in the way."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except BaseException:
            thread.shutdown()
            raise
        return cls(connection, thread)

    async def close(self) -> None:
        """Closes the database once everything asked for is done."""
        await self._call(sqlite3.Connection.close)
        self._thread.shutdown()

    async def insert(self, job: Job) -> None:
        """Adds a job and its first state. Raises sqlite3.IntegrityError if an id is taken."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.request_id,
                    job.request,
                    job.model,
                    job.dataset,
                    json.dumps(job.config.to_mapping()),
                    json.dumps(job.config_origin),
                    job.standing.state,
                    job.standing.reason,
                    job.standing.error,
                    job.standing.since,
                    job.create_time,
                    job.priority,
                ),
            )
            _record(connection, job.id, job.standing)

        await self._change(work)

    async def move(self, job_id: str, expected: JobState, to: Standing) -> bool:
        """Whether the job was in `expected` and now stands at `to`; if not, nothing changed."""
        assert to.state in FOLLOWERS[expected], f"{expected} -> {to.state}"

        def work(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                "UPDATE jobs SET state = ?, reason = ?, error = ?, state_time = ?"
                " WHERE id = ? AND state = ?",
                (to.state, to.reason, to.error, to.since, job_id, expected),
            ).rowcount
            if changed:
                _record(connection, job_id, to)
            return changed == 1

        return await self._change(work)

    async def begin_attempt(self, job_id: str) -> None:
        """Writes down that the trainer is about to be started once more."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO attempts (job_id, number, start_time)"
                " SELECT ?, COUNT(*) + 1, ? FROM attempts WHERE job_id = ?",
                (job_id, time.time(), job_id),
            )

        await self._change(work)

    async def attempt_started_at(self, job_id: str, first_step: int) -> None:
        """Writes down how many updates were done when the running attempt started."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE attempts SET first_step = ? WHERE job_id = ? AND end_time IS NULL",
                (first_step, job_id),
            )

        await self._change(work)

    async def end_attempt(self, job_id: str, exit_code: int | None, ending: str) -> None:
        """Writes down how the running attempt ended, if there is one; None if nobody saw it."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE attempts SET end_time = ?, exit_code = ?, ending = ?"
                " WHERE job_id = ? AND end_time IS NULL",
                (time.time(), exit_code, ending, job_id),
            )

        await self._change(work)

    async def has(self, job_id: str) -> bool:
        """Whether there is such a job, be it one that cannot be read."""

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone()
            return row is not None

        return await self._call(work)

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        jobs = await self._select("WHERE id = ?", (job_id,))
        return jobs[0] if jobs else None

    async def with_request_id(self, request_id: str) -> Job | None:
        """The job that was submitted with this request id, or None."""
        jobs = await self._select("WHERE request_id = ?", (request_id,))
        return jobs[0] if jobs else None

    async def in_states(self, states: Sequence[JobState]) -> list[Job]:
        """Jobs in any of these states, in the order of submission."""
        marks = ", ".join("?" * len(states))
        return await self._select(f"WHERE state IN ({marks}) ORDER BY id", tuple(states))

    async def unfinished(self) -> list[Job]:
        """Jobs that have not ended, in the order of submission."""
        return await self.in_states([state for state in JobState if not state.is_final])

    async def newest(self, limit: int, before: str | None = None) -> list[Job]:
        """At most `limit` jobs, newest first; with `before`, only those older than that id."""
        if before is None:
            return await self._select("ORDER BY id DESC", (), limit)
        return await self._select("WHERE id < ? ORDER BY id DESC", (before,), limit)

    async def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state, zeros included."""

        def work(connection: sqlite3.Connection) -> dict[JobState, int]:
            rows = connection.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state")
            return {state: 0 for state in JobState} | {JobState(row[0]): row[1] for row in rows}

        return await self._call(work)

    async def history(self, job_id: str) -> list[Standing]:
        """Where the job has stood, oldest first."""

        def work(connection: sqlite3.Connection) -> list[Standing]:
            rows = connection.execute(
                "SELECT state, reason, error, time FROM transitions WHERE job_id = ?"
                " ORDER BY rowid",
                (job_id,),
            )
            return [Standing(JobState(row[0]), JobReason(row[1]), row[2], row[3]) for row in rows]

        return await self._call(work)

    async def crashes_since(self, job_id: str, time: float | None) -> int:
        """How often the job's trainer crashed and was to be tried again, after that time if any."""

        def work(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "SELECT COUNT(*) FROM transitions WHERE job_id = ? AND reason = ? AND time > ?",
                (job_id, JobReason.CRASHED, 0.0 if time is None else time),
            ).fetchone()
            return int(row[0])

        return await self._call(work)

    async def _select(
        self, clause: str, values: tuple[str, ...], limit: int | None = None
    ) -> list[Job]:
        def work(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute(f"SELECT * FROM jobs {clause}", values)
            return list(islice(self._readable(rows, connection), limit))

        return await self._call(work)

    def _readable(
        self, rows: Iterable[sqlite3.Row], connection: sqlite3.Connection
    ) -> Iterator[Job]:
        for row in rows:
            try:
                yield _job(row, connection)
            except ValueError as error:  # a field, a range or a reason of another version
                if row["id"] not in self._unreadable:
                    self._unreadable.add(row["id"])
                    logger.warning("job %s is left out, it cannot be read: %s", row["id"], error)

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` as one transaction, on the disk before this returns."""

        def transaction(connection: sqlite3.Connection) -> T:
            with connection:
                result = work(connection)
                durable.operation()
                return result

        return await self._call(transaction)

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on the database's thread: wholly, or not at all if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, work, self._connection
        )


def _connect(path: Path) -> sqlite3.Connection:
    # The connection is made on the thread that will use it, and sqlite3 checks that it stays there.
    connection = sqlite3.connect(path)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged job survives power loss
        connection.execute("PRAGMA foreign_keys = ON")
        if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(
                f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version > SCHEMA_VERSION:
            raise FailedPrecondition(
                "schema_version",
                path.name,
                f"{path.name} has schema version {version}; this server knows {SCHEMA_VERSION}",
            )
        else:
            for step in range(version, SCHEMA_VERSION):
                connection.executescript(
                    f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;"
                )
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):  # no space, no permission: not damage
            raise
        raise DataLoss(
            "database", path.name, f"{path.name} is damaged; restore it from a backup"
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _record(connection: sqlite3.Connection, job_id: str, standing: Standing) -> None:
    connection.execute(
        "INSERT INTO transitions VALUES (?, ?, ?, ?, ?)",
        (job_id, standing.since, standing.state, standing.reason, standing.error),
    )


def _job(row: sqlite3.Row, connection: sqlite3.Connection) -> Job:
    attempts = connection.execute(
        "SELECT number, start_time, end_time, exit_code, first_step, ending FROM attempts"
        " WHERE job_id = ? ORDER BY number",
        (row["id"],),
    )
    return Job(
        id=row["id"],
        request_id=row["request_id"],
        request=row["request"],
        model=row["model"],
        dataset=row["dataset"],
        config=TrainConfig.from_mapping(json.loads(row["config"])),
        config_origin=json.loads(row["config_origin"]),
        standing=Standing(
            JobState(row["state"]), JobReason(row["reason"]), row["error"], row["state_time"]
        ),
        create_time=row["create_time"],
        priority=row["priority"],
        attempts=tuple(Attempt(*attempt) for attempt in attempts),
    )
