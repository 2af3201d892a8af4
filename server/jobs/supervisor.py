"""Runs the queue: gives as many jobs as may run at a time their turn, one after the other.

    QUEUED -> a turn (turn.py) -> ended | PAUSED | QUEUED
    paused and resumed: PAUSED -> QUEUED, at the old place

It decides who gets a turn and hands on what callers ask for; which state may follow which is
queue.py's. It keeps nothing in memory that a restart would miss: whatever a server left behind
when it died, or a turn that stumbled over a full disk, the next round puts right.
"""

import asyncio
import logging

from server.errors import FailedPrecondition
from server.jobs.job import Job, JobReason, JobState, Standing
from server.jobs.launcher import Launcher
from server.jobs.ledger import Ledger
from server.jobs.queue import INTERRUPTED, STOPPING, in_turn
from server.jobs.telemetry import Telemetry
from server.jobs.turn import Terms, Turn
from server.jobs.verdict import NOBODY_SAW

logger = logging.getLogger(__name__)

STOP_SECONDS = 300.0
"""How long a paused or cancelled trainer may take over its step and its checkpoint."""

WAITING = (JobState.QUEUED, JobState.RECOVERING)
"""States in which nothing runs that would have to stop first."""


class Supervisor:
    """Runs jobs in the order of the queue until it is told to stop."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        telemetry: Telemetry,
        terms: Terms,
        max_running: int = 1,
    ) -> None:
        self._ledger = ledger
        self._launcher = launcher
        self._telemetry = telemetry
        self._terms = terms
        self._max_running = max_running
        self._draining = False
        self._news = asyncio.Event()
        self._turns: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run jobs, those of the previous server first."""
        self._task = asyncio.create_task(self._serve(), name="supervisor")

    def wake(self) -> None:
        """The queue has changed."""
        self._news.set()

    async def cancel(self, job_id: str) -> Job:
        """The job, about to end or ended. Raises NotFound."""
        while True:
            job = await self._ledger.job(job_id)
            if job.state.is_final or job.state is JobState.CANCELLING:
                return job
            waits = job.state in (*WAITING, JobState.PAUSED)
            to = JobState.CANCELLED if waits else JobState.CANCELLING
            if await self._stop(job, to):
                return await self._ledger.job(job_id)

    async def pause(self, job_id: str) -> Job:
        """The job, about to pause or paused. Raises NotFound, FailedPrecondition."""
        while True:
            job = await self._ledger.job(job_id)
            if job.state in (JobState.PAUSING, JobState.PAUSED):
                return job
            if job.state.is_final or job.state is JobState.CANCELLING:
                raise _wrong_state(job, "paused")
            to = JobState.PAUSED if job.state in WAITING else JobState.PAUSING
            if await self._stop(job, to):
                return await self._ledger.job(job_id)

    async def resume(self, job_id: str) -> Job:
        """The job, back in the queue if it was paused. Raises NotFound, FailedPrecondition."""
        while True:
            job = await self._ledger.job(job_id)
            if job.state in (*INTERRUPTED, JobState.QUEUED):
                return job
            if job.state is not JobState.PAUSED:
                raise _wrong_state(job, "resumed")
            queued = Standing(JobState.QUEUED, JobReason.REQUESTED)
            if await self._ledger.move(job_id, JobState.PAUSED, queued):
                self.wake()
                return await self._ledger.job(job_id)

    async def drain(self, seconds: float) -> None:
        """Stops trainers with a checkpoint, after that long without one, and runs no more."""
        self._draining = True
        self._news.set()
        for turn in self._turns.values():
            turn.stop(seconds, draining=True)
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._tasks)

    async def _stop(self, job: Job, to: JobState) -> bool:
        """Whether a caller's wish was written down; whatever runs of the job then stops."""
        if not await self._ledger.move(job.id, job.state, Standing(to, JobReason.REQUESTED)):
            return False
        if turn := self._turns.get(job.id):
            turn.stop(STOP_SECONDS)
        return True

    async def _serve(self) -> None:
        while not self._draining:
            self._news.clear()
            try:
                await self._put_right()
                await self._fill()
            except Exception:  # such as a full disk: training pauses, the rest of the server lives
                logger.exception("the job queue stumbled and starts again")
                await asyncio.sleep(self._terms.first_backoff_seconds)
            else:
                await self._news.wait()

    async def _put_right(self) -> None:
        """Brings jobs that nobody is at work on to where this server can go on with them."""
        for job in await self._ledger.store.in_states(sorted(INTERRUPTED)):
            if job.id not in self._turns:
                await self._ledger.store.end_attempt(job.id, None, NOBODY_SAW)
                requeued = Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
                await self._ledger.move(job.id, job.state, requeued)
        for job in await self._ledger.store.in_states(sorted(STOPPING)):
            self._begin(job)  # no matter how many run: it is at work already, and about to leave

    async def _fill(self) -> None:
        for job in in_turn(await self._ledger.store.in_states([JobState.QUEUED])):
            if len(self._turns) >= self._max_running:
                return
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """Gives a job its turn, unless it has one."""
        if job.id in self._turns or self._draining:
            return
        turn = Turn(job, self._ledger, self._launcher, self._telemetry, self._terms)
        self._turns[job.id] = turn
        task = asyncio.create_task(self._take(job.id, turn), name=f"job {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, job_id: str, turn: Turn) -> None:
        try:
            await turn.take()
        except Exception:  # such as a full disk
            logger.exception("job %s stumbled and gets another turn", job_id)
            await turn.pause(self._terms.first_backoff_seconds)
        finally:
            del self._turns[job_id]
            self._news.set()


def _wrong_state(job: Job, wish: str) -> FailedPrecondition:
    return FailedPrecondition(
        "job_state", job.id, f"job {job.id} is {job.state.lower()} and cannot be {wish}"
    )
