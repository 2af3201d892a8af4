"""Everything about training jobs that the rest of the server needs, in one object.

    jobs = await JobService.open(data_dir, ...)   # puts nothing in motion yet
    jobs.start()
    report = await jobs.submit(Submission(dataset="python_reference"))
    ...
    await jobs.drain(20)                          # the trainer saves its work and leaves
    await jobs.close()

It speaks neither protobuf nor HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from server.dataset_store import DatasetStore
from server.errors import Unavailable
from server.full_disk import full_disk_is_exhausted
from server.jobs.admission import Admission
from server.jobs.checkpoints import CheckpointInfo, Checkpoints
from server.jobs.job import Job, JobState, Standing
from server.jobs.launcher import Launcher
from server.jobs.ledger import Ledger
from server.jobs.log_reader import LogReader
from server.jobs.progress import Progress
from server.jobs.publication import publish_best
from server.jobs.queue import positions
from server.jobs.store import JobStore
from server.jobs.submission import Models, Plan, Submission
from server.jobs.supervisor import Supervisor
from server.jobs.tail import Subscription
from server.jobs.telemetry import Telemetry
from server.jobs.turn import Publish, Terms
from server.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_POLL_SECONDS = 0.2
"""How often a log is looked at that somebody follows."""

SILENCE_SECONDS = 15.0
"""Longest silence of a followed log: proxies cut quiet streams, commonly after 60 s."""


@dataclass(frozen=True, slots=True)
class Report:
    """A job, how far it is, and how many jobs start before it (None unless it waits)."""

    job: Job
    progress: Progress
    queue_position: int | None
    history: tuple[Standing, ...] = ()
    """Where it has stood, oldest first; only in the report of one job."""

    @property
    def remaining_seconds(self) -> float | None:
        """An estimate; None unless the job runs and its speed is known."""
        running = self.job.state is JobState.RUNNING
        return self.progress.remaining_seconds(self.job.config) if running else None


@dataclass(frozen=True, slots=True)
class LogPiece:
    """The next of what a job's processes printed, and where to go on, in bytes."""

    text: str
    next_offset: int


class JobService:
    """Accepts, runs, follows, pauses and cancels training jobs. Create with `open`."""

    def __init__(
        self,
        store: JobStore,
        ledger: Ledger,
        admission: Admission,
        supervisor: Supervisor,
        loaded_folders: Callable[[], set[Path]],
    ) -> None:
        self._loaded_folders = loaded_folders
        self._store = store
        self._ledger = ledger
        self._admission = admission
        self._supervisor = supervisor
        self._changing: set[asyncio.Task[Any]] = set()
        self._draining = False

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        *,
        datasets: DatasetStore,
        models: Models,
        launcher: Launcher,
        metrics: Metrics,
        max_queued_jobs: int,
        max_crashes: int,
        max_running_jobs: int = 1,
        loaded_folders: Callable[[], set[Path]] = set,
        publish: Publish = publish_best,
        first_backoff_seconds: float = 1.0,
        max_backoff_seconds: float = 60.0,
        abandoned_seconds: float = 300.0,
    ) -> Self:
        """Opens the job database of a data folder and sweeps what never became a job.

        Raises as `JobStore.open`, OSError.
        """
        runs = data_dir / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        store = await JobStore.open(data_dir / "jobs.sqlite")
        ledger = Ledger(store, runs, metrics)
        await ledger.count()
        admission = Admission(ledger, datasets, models, launcher, max_queued_jobs)
        await admission.sweep()
        terms = Terms(
            models=data_dir / "models",
            publish=publish,
            max_crashes=max_crashes,
            first_backoff_seconds=first_backoff_seconds,
            max_backoff_seconds=max_backoff_seconds,
            abandoned_seconds=abandoned_seconds,
        )
        supervisor = Supervisor(ledger, launcher, Telemetry(metrics), terms, max_running_jobs)
        return cls(store, ledger, admission, supervisor, loaded_folders)

    def start(self) -> None:
        """Begins to run jobs; those that a previous server left unfinished go on."""
        self._supervisor.start()

    async def drain(self, grace_seconds: float) -> None:
        """Accepts no more jobs, stops the trainer with a checkpoint and sends followers away.

        A trainer that takes longer than `grace_seconds` is killed; its job goes on from the
        checkpoint before. Every job that has not ended goes on at the next start.
        """
        self._draining = True
        await self._supervisor.drain(grace_seconds)
        self._ledger.close()
        await asyncio.gather(*self._changing, return_exceptions=True)

    async def close(self) -> None:
        """Closes the database."""
        await self._store.close()

    async def submit(self, submission: Submission) -> Report:
        """The job as it was queued, or the one that an earlier call with this request id queued.

        Raises InvalidArgument, NotFound, AlreadyExists, ResourceExhausted, Unavailable, DataLoss.
        """
        if self._draining:
            raise Unavailable("the server is stopping; ask again later")
        return await self._report(await self._to_the_end(self._submit(submission)))

    async def check(self, submission: Submission) -> Plan:
        """What a submission would queue; nothing is. Raises InvalidArgument, NotFound, DataLoss."""
        return await self._admission.check(submission)

    async def cancel(self, job_id: str) -> Report:
        """The job, about to end or ended. Raises NotFound, ResourceExhausted."""
        return await self._report(await self._to_the_end(self._supervisor.cancel(job_id)))

    async def pause(self, job_id: str) -> Report:
        """The job, about to pause or paused.

        Raises NotFound, FailedPrecondition, ResourceExhausted.
        """
        return await self._report(await self._to_the_end(self._supervisor.pause(job_id)))

    async def resume(self, job_id: str) -> Report:
        """The job, back at its place in the queue.

        Raises NotFound, FailedPrecondition, ResourceExhausted.
        """
        return await self._report(await self._to_the_end(self._supervisor.resume(job_id)))

    async def report(self, job_id: str) -> Report:
        """The job as it is now, with its history. Raises NotFound."""
        report = await self._report(await self._ledger.job(job_id))
        return replace(report, history=tuple(await self._store.history(job_id)))

    async def page(self, size: int, before: str | None) -> tuple[list[Report], str | None]:
        """At most `size` jobs, newest first, older than job `before`; and the id to go on from.

        Raises NotFound if there is no job `before`.
        """
        if before is not None:
            await self._ledger.job(before)
        jobs = await self._store.newest(size + 1, before)
        places = positions(await self._store.in_states([JobState.QUEUED]))
        reports = [
            Report(job, await self._ledger.progress(job), places.get(job.id)) for job in jobs[:size]
        ]
        return reports, jobs[size - 1].id if len(jobs) > size else None

    @asynccontextmanager
    async def follow(
        self, job_id: str, start_sequence: int, max_behind: int | None = None
    ) -> AsyncIterator[Subscription]:
        """The job's state, its events from a sequence number on, and what will happen.

        With `max_behind`, step events are left out that the reader is too slow for. Raises
        NotFound, Unavailable.
        """
        if self._draining:
            raise Unavailable("the server is stopping; ask again later")
        async with self._ledger.tail(job_id) as tail:
            yield tail.subscribe(start_sequence, max_behind)

    async def logs(self, job_id: str, offset: int, follow: bool) -> AsyncGenerator[LogPiece, None]:
        """What the job's processes printed, over all attempts, from byte `offset` on.

        A negative offset counts from the end. With `follow` it goes on until the job ends, with a
        piece without text after SILENCE_SECONDS without a word. Raises NotFound, Unavailable.
        """
        if self._draining:
            raise Unavailable("the server is stopping; ask again later")
        await self._ledger.job(job_id)
        path = self._ledger.directory(job_id).log_path
        reader = await asyncio.to_thread(LogReader, path, offset)
        said_at = time.monotonic()
        while True:
            # before reading: once it has ended, all that it printed is there
            has_ended = (await self._ledger.job(job_id)).state.is_final
            text = await asyncio.to_thread(reader.read, has_ended)
            if text or time.monotonic() - said_at > SILENCE_SECONDS:
                yield LogPiece(text, reader.offset)
                said_at = time.monotonic()
            elif has_ended or not follow:
                return
            elif self._draining:
                raise Unavailable("the server is stopping; ask again for what comes next")
            else:
                await asyncio.sleep(LOG_POLL_SECONDS)

    async def checkpoints(self, job_id: str) -> list[CheckpointInfo]:
        """The job's checkpoints on disk, newest first; damaged ones are left out and logged.

        Raises NotFound.
        """
        return await asyncio.to_thread(self._checkpoints(await self._ledger.job(job_id)).infos)

    async def pin_checkpoint(self, job_id: str, step: int, pinned: bool = True) -> CheckpointInfo:
        """The checkpoint, kept until it is unpinned or kept no longer. Raises NotFound."""
        checkpoints = self._checkpoints(await self._ledger.job(job_id))
        with full_disk_is_exhausted():
            return await asyncio.to_thread(checkpoints.pin, step, pinned)

    async def delete_checkpoint(self, job_id: str, step: int) -> None:
        """Deletes a checkpoint. Raises NotFound, FailedPrecondition if something keeps it."""
        job = await self._ledger.job(job_id)
        delete = self._checkpoints(job).delete
        await asyncio.to_thread(delete, step, not job.state.is_final)

    async def datasets_in_use(self) -> set[str]:
        """Datasets of jobs that have not ended, and of the one that is being accepted."""
        found = {job.dataset for job in await self._store.unfinished()}
        coming = self._admission.dataset_in_use
        return found if coming is None else found | {coming}

    async def models_in_training(self) -> set[str]:
        """Names that are taken by jobs that have not ended."""
        return {job.model for job in await self._store.unfinished()}

    def _checkpoints(self, job: Job) -> Checkpoints:
        folder = self._ledger.directory(job.id).checkpoints_path
        return Checkpoints(job.id, folder, self._loaded_folders())

    async def _submit(self, submission: Submission) -> Job:
        job = await self._admission.submit(submission)
        self._supervisor.wake()
        return job

    async def _report(self, job: Job) -> Report:
        place = None
        if job.state is JobState.QUEUED:
            waiting = positions(await self._store.in_states([JobState.QUEUED]))
            place = waiting.get(job.id, 0)  # if its turn has come since, none is before it
        return Report(job, await self._ledger.progress(job), place)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work` as a whole, even if the caller goes away in the middle of it.

        Raises ResourceExhausted if the disk is full.
        """
        task = asyncio.ensure_future(work)
        self._changing.add(task)
        task.add_done_callback(self._changed)
        with full_disk_is_exhausted():
            return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        self._changing.discard(task)
        task.exception()  # if the caller has gone, nobody else asks
