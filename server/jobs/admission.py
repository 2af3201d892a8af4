"""Lets jobs into the queue, one after the other, each of them durably and once.

What was accepted is on disk before `submit` returns: the run directory first, then the row that
makes it a job. What a job has to look like is submission.py's.
"""

import asyncio
import logging
import shutil
import time
from pathlib import Path

from nanogpt import durable
from nanogpt.checkpoint import CheckpointDamaged, publish_model
from nanogpt.training.run_directory import RunDirectory, RunSpec
from server.dataset_store import DatasetStore
from server.errors import AlreadyExists, DataLoss, NotFound, ResourceExhausted
from server.jobs.job import Job, JobState, Standing, is_job_id, new_job_id
from server.jobs.launcher import Launcher
from server.jobs.ledger import Ledger
from server.jobs.queue import PLACES
from server.jobs.submission import Models, Plan, Submission, free_name, plan

logger = logging.getLogger(__name__)

QUEUE_FULL_RETRY_SECONDS = 60.0
"""A place in the queue becomes free when a job ends, which takes minutes."""

INIT_FOLDER = "init"
"""In a run directory: the weights it starts from, safe from whoever deletes their origin."""


class Admission:
    """Checks submissions and queues them as jobs."""

    def __init__(
        self,
        ledger: Ledger,
        datasets: DatasetStore,
        models: Models,
        launcher: Launcher,
        max_queued_jobs: int,
    ) -> None:
        self._ledger = ledger
        self._launcher = launcher
        self._datasets = datasets
        self._models = models
        self._max_queued_jobs = max_queued_jobs
        self._one_at_a_time = asyncio.Lock()
        self.dataset_in_use: str | None = None
        """Of the submission that is being accepted: it must not go before the job is there."""

    async def submit(self, submission: Submission) -> Job:
        """The job as it was queued, or the one that an earlier call with this request id queued.

        Raises InvalidArgument, NotFound, FailedPrecondition, AlreadyExists, ResourceExhausted,
        DataLoss.
        """
        canonical = submission.canonical()
        async with self._one_at_a_time:
            if submission.request_id:
                earlier = await self._ledger.store.with_request_id(submission.request_id)
                if earlier is not None:
                    if earlier.request == canonical:
                        return earlier
                    raise AlreadyExists(
                        "request",
                        submission.request_id,
                        f"request_id {submission.request_id!r} was used for another job; "
                        "a new job needs a new one",
                    )
            planned = await self.check(submission)
            self.dataset_in_use = planned.dataset
            try:
                # may have gone since it was looked at
                await asyncio.to_thread(self._datasets.get, planned.dataset)
                return await self._accept(submission, planned, canonical)
            finally:
                self.dataset_in_use = None

    async def check(self, submission: Submission) -> Plan:
        """What the submission asks for, completed. Raises InvalidArgument, NotFound, DataLoss."""
        planned = await asyncio.to_thread(plan, submission, self._datasets, self._models)
        self._launcher.check(planned.config)
        return planned

    async def sweep(self) -> None:
        """Deletes runs that a server died over before they became jobs.

        Only those that were never started: what a trainer left stays, even if its job is unknown.
        """
        for folder in await asyncio.to_thread(_never_started, self._ledger.runs):
            if not await self._ledger.store.has(folder.name):
                logger.info("run %s never became a job: deleted", folder.name)
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _accept(self, submission: Submission, planned: Plan, canonical: str) -> Job:
        """Queues a job, everything on disk."""
        # jobs before models: one that ends meanwhile has its model published by then
        unfinished = await self._ledger.store.unfinished()

        def is_taken(name: str) -> bool:
            return any(job.model == name for job in unfinished) or self._models.has(name)

        model = submission.model or free_name(planned.names, is_taken)
        if is_taken(model):
            raise AlreadyExists("model", model)
        places = sum(job.state in PLACES for job in unfinished)
        if places >= self._max_queued_jobs:
            raise ResourceExhausted(
                f"{places} jobs wait or are paused already, and the queue has "
                f"{self._max_queued_jobs} places; try again when one has ended, or cancel one",
                QUEUE_FULL_RETRY_SECONDS,
                limit="queued_jobs",
            )
        newest = await self._ledger.store.newest(1)
        now = time.time()
        job = Job(
            id=new_job_id(now, newest[0].id if newest else None),
            model=model,
            dataset=planned.dataset,
            config=planned.config,
            config_origin=planned.config_origin,
            create_time=now,
            priority=submission.priority,
            request_id=submission.request_id or None,
            request=canonical,
            standing=Standing(JobState.QUEUED, since=now),
        )
        try:
            await asyncio.to_thread(self._write_run, job, planned.init_checkpoint)
            await self._ledger.add(job)
        except Exception:
            if await self._ledger.store.get(job.id) is None:
                shutil.rmtree(self._ledger.directory(job.id).path, ignore_errors=True)
            raise
        return job

    def _write_run(self, job: Job, init_checkpoint: Path | None) -> None:
        run = self._ledger.directory(job.id)
        if init_checkpoint is not None:
            try:
                publish_model(init_checkpoint, run.path / INIT_FOLDER)
            except FileNotFoundError:  # deleted meanwhile
                raise NotFound("model", job.config.init_from) from None
            except CheckpointDamaged:
                name = job.config.init_from
                raise DataLoss("model", name, f"model {name!r} is damaged") from None
        run.write_spec(
            RunSpec(
                job_id=job.id,
                model=job.model,
                dataset_dir=f"../../datasets/{job.dataset}",
                config=job.config,
                init_checkpoint=INIT_FOLDER if init_checkpoint is not None else None,
            )
        )
        durable.sync_folder(run.path.parent)


def _never_started(runs: Path) -> list[Path]:
    """Folders that `Admission` made, with nothing in them that a trainer made."""
    return [
        folder
        for folder in runs.iterdir()
        if is_job_id(folder.name)
        and folder.is_dir()
        and all(
            path.name in (RunDirectory(folder).spec_path.name, INIT_FOLDER)
            or path.name.startswith(".")  # what an interrupted write left
            for path in folder.iterdir()
        )
    ]
