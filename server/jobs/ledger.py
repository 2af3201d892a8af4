"""Where every job stands: commits each change of state, then tells all who watch.

Changes and new watchers wait for each other, so nobody sees a state twice or misses one. It knows
neither why a state changes nor what runs; the database is the truth, and this its one writer.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from nanogpt.training.run_directory import RunDirectory
from server.errors import DataLoss, NotFound
from server.jobs.job import Job, JobState, Standing
from server.jobs.progress import Progress
from server.jobs.store import JobStore
from server.jobs.tail import Tail
from server.metrics import Metrics

logger = logging.getLogger(__name__)

REMEMBERED_RUNS = 1000
"""Jobs whose progress is kept in memory, ended ones and others that nobody watches; that of the
rest is read from their records."""


class Ledger:
    """The states of all jobs, and the tails of those that are watched."""

    def __init__(self, store: JobStore, runs: Path, metrics: Metrics) -> None:
        self.store = store
        self.runs = runs
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._tails: dict[str, Tail] = {}
        self._watchers: dict[str, int] = {}
        self._resting: OrderedDict[str, Tail] = OrderedDict()
        """Of jobs that nobody watches just now: their records are not read again from the start."""
        self._ended: OrderedDict[str, Progress] = OrderedDict()
        self._closed = False

    def directory(self, job_id: str) -> RunDirectory:
        """The job's run directory."""
        return RunDirectory(self.runs / job_id)

    async def job(self, job_id: str) -> Job:
        """The job. Raises NotFound."""
        job = await self.store.get(job_id)
        if job is None:
            raise NotFound("job", job_id)
        return job

    async def add(self, job: Job) -> None:
        """Adds a new job."""
        await self.store.insert(job)
        await self.count()

    async def move(self, job_id: str, expected: JobState, to: Standing) -> bool:
        """Whether the job was in state `expected` and now stands at `to`."""
        async with self._lock:
            to = replace(to, since=time.time())
            if not await self.store.move(job_id, expected, to):
                return False
            if to.state.is_final:
                await self._observe_end(job_id)
            await self.count()
            if tail := self._tails.get(job_id):
                tail.publish(to)
        logger.info("job %s: %s -> %s %s", job_id, expected, to.state, to.error or to.reason)
        return True

    @asynccontextmanager
    async def tail(self, job_id: str) -> AsyncIterator[Tail]:
        """The job's tail, shared by all who watch it. Raises NotFound, DataLoss."""
        async with self._lock:
            tail = self._tails.get(job_id)
            if tail is None:
                job = await self.job(job_id)
                tail = self._resting.pop(job_id, None)
                tail = tail or Tail(self.directory(job_id).metrics_path, job.standing)
                tail.standing = job.standing
                if self._closed:
                    tail.close()
                self._tails[job_id] = tail
            self._watchers[job_id] = self._watchers.get(job_id, 0) + 1
        try:
            await tail.catch_up()  # it may take long, and the others need the lock
            yield tail
        finally:
            self._watchers[job_id] -= 1
            if not self._watchers[job_id]:
                del self._watchers[job_id], self._tails[job_id]
                if tail.is_caught_up:
                    self._rest(job_id, tail)

    async def progress(self, job: Job) -> Progress:
        """How far the job is; nothing is known if its record is damaged."""
        if job.id in self._ended:
            self._ended.move_to_end(job.id)
            return self._ended[job.id]
        if not job.attempts:
            return Progress()
        try:
            async with self.tail(job.id) as tail:
                progress = tail.progress
        except DataLoss as damage:  # the job can be told of all the same
            logger.warning("%s", damage.message)
            progress = Progress()
        if job.state.is_final:
            self._resting.pop(job.id, None)
            self._ended[job.id] = progress
            if len(self._ended) > REMEMBERED_RUNS:
                self._ended.popitem(last=False)
        return progress

    async def count(self) -> None:
        """Shows in the metrics how many jobs are in each state."""
        counts = await self.store.counts()
        for state, number in counts.items():
            self._metrics.train_jobs.labels(state=state.lower()).set(number)
        self._metrics.train_queue_depth.set(counts[JobState.QUEUED])

    def close(self) -> None:
        """Sends watchers away once they have all there is: the server stops."""
        self._closed = True
        for tail in self._tails.values():
            tail.close()

    def _rest(self, job_id: str, tail: Tail) -> None:
        tail.rest()
        self._resting[job_id] = tail
        if len(self._resting) > REMEMBERED_RUNS:
            self._resting.popitem(last=False)

    async def _observe_end(self, job_id: str) -> None:
        job = await self.job(job_id)
        if job.start_time is not None and job.end_time is not None:
            duration = self._metrics.train_job_duration_seconds.labels(outcome=job.state.lower())
            duration.observe(max(0.0, job.end_time - job.start_time))  # the clock may be set back
