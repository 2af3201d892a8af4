"""Runs the queue: one trainer at a time, started, followed, stopped and started again.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED | FAILED
                 ^           |
                 RECOVERING <-  after a crash, with a growing pause
    cancelled: -> CANCELLING -> CANCELLED; stopped with the server: -> QUEUED, at the old place

It decides when a job's state changes; which may follow which is queue.py's, what the end of a
process means verdict.py's. It keeps nothing in memory that a restart would miss: whatever a server
left behind when it died, the next one puts right and goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nanogpt.training.run_directory import ExitCode, RunDirectory, RunDirectoryBusy
from server.errors import DataLoss
from server.jobs.job import Job, JobReason, JobState, Standing
from server.jobs.launcher import Launcher, Trainer
from server.jobs.ledger import Ledger
from server.jobs.publication import NameTaken
from server.jobs.queue import INTERRUPTED, next_job
from server.jobs.tail import Tail
from server.jobs.telemetry import Telemetry
from server.jobs.trainer_log import error_line, log_size
from server.jobs.verdict import backoff_seconds, is_crash, judge, success

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""How often a record is looked at: twice as often as an eye notices."""

CANCEL_SECONDS = 300.0
"""How long a cancelled trainer may take over its step and its checkpoint."""

Publish = Callable[[RunDirectory, str, Path], None]
"""Makes a model of (run directory, job id, model folder): publication.publish_best."""


class Supervisor:
    """Runs jobs in the order of the queue until it is told to stop."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        telemetry: Telemetry,
        *,
        models: Path,
        publish: Publish,
        max_crashes: int,
        first_backoff_seconds: float = 1.0,
    ) -> None:
        self._ledger = ledger
        self._launcher = launcher
        self._telemetry = telemetry
        self._models = models
        self._publish = publish
        self._max_crashes = max_crashes
        self._first_backoff_seconds = first_backoff_seconds
        self._draining = False
        self._work_arrived = asyncio.Event()
        self._active: str | None = None
        self._stop_asked = asyncio.Event()  # for the active job
        self._kill_time = 0.0  # by time.monotonic(), once asked to stop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run jobs, those of the previous server first."""
        self._task = asyncio.create_task(self._serve(), name="supervisor")

    def wake(self) -> None:
        """There is a new job."""
        self._work_arrived.set()

    async def cancel(self, job_id: str) -> Job:
        """The job, about to end or ended. Raises NotFound."""
        while True:
            job = await self._ledger.job(job_id)
            if job.state.is_final or job.state is JobState.CANCELLING:
                return job
            waits = job.state in (JobState.QUEUED, JobState.RECOVERING)
            to = JobState.CANCELLED if waits else JobState.CANCELLING
            if await self._ledger.move(job_id, job.state, Standing(to, JobReason.REQUESTED)):
                break
        if job_id == self._active:
            self._ask_to_stop(CANCEL_SECONDS)
        return await self._ledger.job(job_id)

    async def drain(self, seconds: float) -> None:
        """Stops the trainer with a checkpoint, after that long without one, and runs no more."""
        self._draining = True
        self._ask_to_stop(seconds)
        self._work_arrived.set()
        if self._task is not None:
            await self._task

    def _ask_to_stop(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._kill_time = min(self._kill_time, deadline) if self._stop_asked.is_set() else deadline
        self._stop_asked.set()

    async def _serve(self) -> None:
        while not self._draining:
            try:
                await self._put_right()
                await self._run_queue()
            except Exception:  # such as a full disk: training pauses, the rest of the server lives
                logger.exception("the job queue stumbled and starts again")
                await asyncio.sleep(self._first_backoff_seconds)

    async def _put_right(self) -> None:
        """Brings jobs that a server died over to where this one can go on with them."""
        for job in await self._ledger.store.in_states(sorted(INTERRUPTED)):
            await self._ledger.store.end_attempt(job.id, None)
            requeued = Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
            await self._ledger.move(job.id, job.state, requeued)
        for job in await self._ledger.store.in_states([JobState.CANCELLING]):
            self._activate(job.id)
            try:
                async with self._ledger.tail(job.id) as tail:
                    if not await self._abandoned(self._ledger.directory(job.id), tail):
                        return  # this server stops, too
            except DataLoss as damage:  # what was recorded no longer matters
                logger.warning("%s", damage.message)
            await self._ledger.store.end_attempt(job.id, None)
            await self._settle(job.id, Standing(JobState.CANCELLED, JobReason.REQUESTED))

    async def _run_queue(self) -> None:
        while not self._draining:
            self._work_arrived.clear()
            job = next_job(await self._ledger.store.in_states([JobState.QUEUED]))
            if job is None:
                await self._work_arrived.wait()
            else:
                self._activate(job.id)
                try:
                    async with self._ledger.tail(job.id) as tail:
                        await self._run(job, tail)
                except DataLoss as damage:
                    await self._ledger.store.end_attempt(job.id, None)
                    failed = Standing(JobState.FAILED, error=damage.message)
                    await self._settle(job.id, failed)
                finally:
                    self._active = None

    def _activate(self, job_id: str) -> None:
        self._active = job_id
        if not self._draining:
            self._stop_asked.clear()

    async def _run(self, job: Job, tail: Tail) -> None:
        """Runs one job until it ends, is cancelled, or the server stops."""
        run = self._ledger.directory(job.id)
        trained = job.attempts[-1].exit_code if job.attempts else None
        state = JobState.QUEUED
        crashes = await self._ledger.store.crashes_since(job.id, tail.progress.checkpoint_time)
        while await self._ledger.move(job.id, state, Standing(JobState.STARTING)):
            checkpoint_step, log_bytes = tail.progress.checkpoint_step, log_size(run.log_path)
            exit_code = trained if success(trained) else await self._train(job.id, run, tail)
            if succeeded := success(exit_code):
                await self._settle(job.id, await self._finish(job, run, succeeded))
                return
            if is_crash(exit_code):
                got_on = tail.progress.checkpoint_step != checkpoint_step
                crashes = 1 if got_on else crashes + 1
            verdict = judge(
                exit_code,
                error_line=error_line(run.log_path, log_bytes),
                draining=self._draining,
                crashes=crashes,
                max_crashes=self._max_crashes,
            )
            state = await self._settle(job.id, verdict)
            if state is not JobState.RECOVERING:
                return
            await self._pause(backoff_seconds(crashes, self._first_backoff_seconds))
            if self._draining:
                return

    async def _train(self, job_id: str, run: RunDirectory, tail: Tail) -> int | None:
        """One attempt's exit code; None if the trainer could not be started.

        INTERRUPTED also if the job was asked to stop before there was a trainer.
        """
        if not await self._abandoned(run, tail):
            return ExitCode.INTERRUPTED
        await self._ledger.store.begin_attempt(job_id)
        try:
            trainer = await self._launcher.start(run)
        except OSError:
            logger.exception("the trainer of job %s could not be started", job_id)
            await self._ledger.store.end_attempt(job_id, None)
            return None
        self._telemetry.begin(tail.progress)
        try:
            exit_code = await self._follow(job_id, trainer, tail)
        finally:
            self._telemetry.end()
        await self._ledger.store.end_attempt(job_id, exit_code)
        return exit_code

    async def _follow(self, job_id: str, trainer: Trainer, tail: Tail) -> int:
        """The trainer's exit code, once it has ended and all it recorded was read."""
        exited = asyncio.ensure_future(trainer.wait())
        asked = False
        try:
            # not applied if the job was cancelled meanwhile: it stays CANCELLING
            await self._ledger.move(job_id, JobState.STARTING, Standing(JobState.RUNNING))
            while not exited.done():
                await asyncio.wait({exited}, timeout=POLL_SECONDS)
                await tail.refresh(self._telemetry.observe)
                if self._stop_asked.is_set():
                    if not asked:
                        trainer.terminate()
                        asked = True
                    elif time.monotonic() > self._kill_time:
                        trainer.kill()
            await tail.refresh(self._telemetry.observe)
            return exited.result()
        except BaseException:  # never leave a trainer behind that nobody follows
            trainer.kill()
            await asyncio.wait({exited})
            raise

    async def _finish(self, job: Job, run: RunDirectory, succeeded: Standing) -> Standing:
        """Where a job stands whose training is over: at `succeeded`, its model is published.

        A model that cannot be written is tried again as often as a trainer that crashes.
        """
        problem = ""
        for failures in range(self._max_crashes + 1):
            if failures:
                await self._pause(backoff_seconds(failures, self._first_backoff_seconds))
                if self._draining:
                    return Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
            if (await self._ledger.job(job.id)).state is JobState.CANCELLING:
                return Standing(JobState.CANCELLED, JobReason.REQUESTED)
            try:
                await asyncio.to_thread(self._publish, run, job.id, self._models / job.model)
                return succeeded
            except NameTaken:
                problem = f"the name {job.model!r} was taken meanwhile"
                break
            except OSError as error:  # such as a full disk
                logger.exception("the model of job %s could not be written", job.id)
                problem = f"its model cannot be written ({error.strerror or 'unknown reason'})"
        said = f"training is over, but {problem}; use the model as job:{job.id}"
        return Standing(JobState.FAILED, error=said)

    async def _settle(self, job_id: str, to: Standing) -> JobState:
        """The state a job ends up in: that of `to`, or CANCELLED if a caller asked for that."""
        while True:
            state = (await self._ledger.job(job_id)).state
            if state is JobState.CANCELLING and to.state is not JobState.SUCCEEDED:
                to = Standing(JobState.CANCELLED, JobReason.REQUESTED)
            if state.is_final:
                return state
            if await self._ledger.move(job_id, state, to):
                return to.state

    async def _abandoned(self, run: RunDirectory, tail: Tail) -> bool:
        """Whether no trainer holds the run; waits for one that a dead server left behind.

        That one has seen end-of-file and is about to leave. False if asked to stop meanwhile.
        """
        while _is_held(run) and not self._stop_asked.is_set():
            await tail.refresh()
            await self._pause(POLL_SECONDS)
        await tail.refresh()
        return not self._stop_asked.is_set()

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the job is asked to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), seconds)


def _is_held(run: RunDirectory) -> bool:
    try:
        with run.lock():
            return False
    except RunDirectoryBusy:
        return True
    except OSError:  # the folder is gone or cannot be used; starting the trainer will say so
        return False
