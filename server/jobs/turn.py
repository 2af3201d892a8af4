"""One job's turn: its trainer started, followed, stopped, started again, its model published.

    STARTING -> RUNNING -> SUCCEEDED | FAILED
        ^          │
        RECOVERING <   after a crash, with a growing pause
    asked to stop: PAUSING -> PAUSED, CANCELLING -> CANCELLED, or, with the server, -> QUEUED

What the end of a process means is verdict.py's, whose turn it is queue.py's. A turn keeps nothing
in memory that a restart would miss.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanogpt.training.run_directory import ExitCode, RunDirectory, RunDirectoryBusy
from server.errors import DataLoss
from server.jobs.job import Job, JobReason, JobState, Standing
from server.jobs.launcher import Launcher, Trainer
from server.jobs.ledger import Ledger
from server.jobs.publication import NameTaken
from server.jobs.queue import STOPPING
from server.jobs.tail import Tail
from server.jobs.telemetry import Telemetry
from server.jobs.trainer_log import error_line, first_step, last_lines, log_size
from server.jobs.verdict import NOBODY_SAW, backoff_seconds, ending, is_crash, judge, success

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""How often a record is looked at: twice as often as an eye notices."""

Publish = Callable[[RunDirectory, str, Path], None]
"""Makes a model of (run directory, job id, model folder): publication.publish_best."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every turn."""

    models: Path
    publish: Publish
    max_crashes: int
    first_backoff_seconds: float = 1.0
    max_backoff_seconds: float = 60.0
    abandoned_seconds: float = 300.0
    """How long the trainer of a dead server may take over its step and its checkpoint."""

    def backoff_seconds(self, crashes: int) -> float:
        return backoff_seconds(crashes, self.first_backoff_seconds, self.max_backoff_seconds)


class Turn:
    """One job, from the moment it leaves the queue until nothing of it runs."""

    def __init__(
        self, job: Job, ledger: Ledger, launcher: Launcher, telemetry: Telemetry, terms: Terms
    ) -> None:
        self._job = job
        self._run = ledger.directory(job.id)
        self._ledger = ledger
        self._launcher = launcher
        self._telemetry = telemetry
        self._terms = terms
        self._draining = False
        self._stop_asked = asyncio.Event()
        self._kill_time = 0.0  # by time.monotonic(), once asked to stop

    def stop(self, seconds: float, *, draining: bool = False) -> None:
        """Stops the trainer with a checkpoint, after that long without one.

        With `draining` the whole server stops, and the job goes on with the next one.
        """
        deadline = time.monotonic() + seconds
        self._kill_time = min(self._kill_time, deadline) if self._stop_asked.is_set() else deadline
        self._draining |= draining
        self._stop_asked.set()

    async def take(self) -> None:
        """Runs the job until it ends, is asked to stop, or the server stops.

        One that a dead server was about to stop is only waited for. Raises what the disk or the
        database raises; the job then stands where it stood.
        """
        try:
            async with self._ledger.tail(self._job.id) as tail:
                if self._job.state in STOPPING:
                    await self._let_go(tail)
                else:
                    await self._go_on(tail)
        except DataLoss as damage:
            await self._ledger.store.end_attempt(self._job.id, None, damage.message)
            await self._settle(Standing(JobState.FAILED, error=damage.message))

    async def pause(self, seconds: float) -> None:
        """Sleeps, unless the job is asked to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), seconds)

    async def _let_go(self, tail: Tail) -> None:
        """Waits for the trainer that a dead server had asked to stop."""
        await self._abandoned(tail)
        stopping = (await self._ledger.job(self._job.id)).state in STOPPING
        if stopping and not self._draining:
            await self._ledger.store.end_attempt(self._job.id, None, NOBODY_SAW)
            await self._settle(Standing(JobState.QUEUED))

    async def _go_on(self, tail: Tail) -> None:
        job, terms = self._job, self._terms
        trained = job.attempts[-1].exit_code if job.attempts else None
        state = JobState.QUEUED
        crashes = await self._ledger.store.crashes_since(job.id, tail.progress.checkpoint_time)
        # one that was paused and resumed meanwhile gets another turn
        while not self._stop_asked.is_set() and await self._ledger.move(
            job.id, state, Standing(JobState.STARTING)
        ):
            checkpoint_step, log_bytes = tail.progress.checkpoint_step, log_size(self._run.log_path)
            exit_code = trained if success(trained) else await self._train(tail)
            if succeeded := success(exit_code):
                await self._settle(await self._finish(succeeded))
                return
            if is_crash(exit_code):
                got_on = tail.progress.checkpoint_step != checkpoint_step
                crashes = 1 if got_on else crashes + 1
            verdict = judge(
                exit_code,
                error_line=error_line(self._run.log_path, log_bytes),
                last_lines=last_lines(self._run.log_path, log_bytes),
                was_asked=self._stop_asked.is_set(),
                crashes=crashes,
                max_crashes=terms.max_crashes,
            )
            state = await self._settle(verdict)
            if state is not JobState.RECOVERING:
                return
            await self.pause(terms.backoff_seconds(crashes))
            if self._draining:
                return

    async def _train(self, tail: Tail) -> int | None:
        """One attempt's exit code; None if the trainer could not be started.

        INTERRUPTED also if the job was asked to stop before there was a trainer.
        """
        store, job_id = self._ledger.store, self._job.id
        free = await self._abandoned(tail)
        if self._stop_asked.is_set():
            return ExitCode.INTERRUPTED
        await store.begin_attempt(job_id)
        if not free:
            await store.end_attempt(job_id, None, "another process held its run directory")
            return None
        log_bytes = log_size(self._run.log_path)
        try:
            trainer = await self._launcher.start(self._run)
        except OSError:
            logger.exception("the trainer of job %s could not be started", job_id)
            await store.end_attempt(job_id, None, ending(None, None))
            return None
        exit_code = await self._follow(trainer, tail, log_bytes)
        said = error_line(self._run.log_path, log_bytes)
        await store.end_attempt(job_id, exit_code, ending(exit_code, said))
        return exit_code

    async def _follow(self, trainer: Trainer, tail: Tail, log_bytes: int) -> int:
        """The trainer's exit code, once it has ended and all it recorded was read."""
        exited = asyncio.ensure_future(trainer.wait())
        telemetry = self._telemetry.begin(tail.progress)
        asked = start_known = False
        try:
            # not applied if the job was stopped meanwhile: it stays PAUSING or CANCELLING
            await self._ledger.move(self._job.id, JobState.STARTING, Standing(JobState.RUNNING))
            while not exited.done():
                await asyncio.wait({exited}, timeout=POLL_SECONDS)
                await tail.refresh(telemetry.observe)
                start_known = start_known or await self._note_first_step(log_bytes)
                if self._stop_asked.is_set():
                    if not asked:
                        trainer.terminate()
                        asked = True
                    elif time.monotonic() > self._kill_time:
                        trainer.kill()
            await tail.refresh(telemetry.observe)
            if not start_known:
                await self._note_first_step(log_bytes)
            return exited.result()
        except BaseException:  # never leave a trainer behind that nobody follows
            trainer.kill()
            await asyncio.wait({exited})
            raise
        finally:
            telemetry.end()

    async def _note_first_step(self, log_bytes: int) -> bool:
        """Whether the trainer has said how many updates were done when it started."""
        step = first_step(self._run.log_path, log_bytes)
        if step is not None:
            await self._ledger.store.attempt_started_at(self._job.id, step)
        return step is not None

    async def _finish(self, succeeded: Standing) -> Standing:
        """Where a job stands whose training is over: at `succeeded`, its model is published.

        A model that cannot be written is tried again as often as a trainer that crashes.
        """
        job, terms, problem = self._job, self._terms, ""
        for failures in range(terms.max_crashes + 1):
            if failures:
                await self.pause(terms.backoff_seconds(failures))
                if self._stop_asked.is_set():
                    return Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
            if (await self._ledger.job(job.id)).state is JobState.CANCELLING:
                return Standing(JobState.CANCELLED, JobReason.REQUESTED)
            try:
                await asyncio.to_thread(terms.publish, self._run, job.id, terms.models / job.model)
                return succeeded
            except NameTaken:
                problem = f"the name {job.model!r} was taken meanwhile"
                break
            except OSError as error:  # such as a full disk
                logger.exception("the model of job %s could not be written", job.id)
                problem = f"its model cannot be written ({error.strerror or 'unknown reason'})"
        said = f"training is over, but {problem}; use the model as job:{job.id}"
        return Standing(JobState.FAILED, error=said)

    async def _settle(self, to: Standing) -> JobState:
        """The state the job ends up in: that of `to`, or what a caller asked for meanwhile."""
        while True:
            state = (await self._ledger.job(self._job.id)).state
            if state is JobState.CANCELLING and to.state is not JobState.SUCCEEDED:
                to = Standing(JobState.CANCELLED, JobReason.REQUESTED)
            if state is JobState.PAUSING and not to.state.is_final:
                to = Standing(JobState.PAUSED, JobReason.REQUESTED)
            if state.is_final:
                return state
            if await self._ledger.move(self._job.id, state, to):
                return to.state

    async def _abandoned(self, tail: Tail) -> bool:
        """Whether no trainer holds the run; waits for one that a dead server left behind.

        That one has seen end-of-file and is about to leave. One that does not is killed if it is
        certainly ours, and else named in the log. False too if the server stops meanwhile.
        """
        await self._end_abandoned()
        deadline = time.monotonic() + self._terms.abandoned_seconds
        killed = False
        while (held := _is_held(self._run)) and not self._draining:
            await tail.refresh()
            if self._stop_asked.is_set() and not killed:
                deadline = min(deadline, self._kill_time)
            if time.monotonic() > deadline:
                holder, seconds = self._run.holder(), self._terms.abandoned_seconds
                if killed or not self._launcher.kill_abandoned(self._run):
                    logger.error(
                        "run %s is held for more than %g s by %s: end that process",
                        self._job.id, seconds, holder or "an unknown process",
                    )  # fmt: skip
                    break
                logger.warning(
                    "the trainer of a dead server hung for %g s and was killed: %s", seconds, holder
                )
                killed, deadline = True, deadline + seconds
            await asyncio.sleep(POLL_SECONDS)
        await tail.refresh()
        return not held

    async def _end_abandoned(self) -> None:
        """Lets the launcher end what a dead server left, for no longer than a stop may take."""
        task = asyncio.create_task(self._launcher.end_abandoned(self._run))
        try:
            while not task.done() and not self._is_out_of_time():
                await asyncio.wait({task}, timeout=POLL_SECONDS)
        finally:
            task.cancel()
            await asyncio.wait({task})
        with suppress(asyncio.CancelledError):
            try:
                task.result()
            except OSError as error:
                logger.warning("what a dead server may have left of %s: %s", self._job.id, error)

    def _is_out_of_time(self) -> bool:
        """Whether it was asked to stop, and what stops by itself has had its time."""
        return self._draining or (self._stop_asked.is_set() and time.monotonic() > self._kill_time)


def _is_held(run: RunDirectory) -> bool:
    try:
        with run.lock():
            return False
    except RunDirectoryBusy:
        return True
    except OSError:  # the folder is gone or cannot be used; starting the trainer will say so
        return False
