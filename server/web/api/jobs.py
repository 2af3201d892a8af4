"""Training jobs: list, submit, check, follow, pause, resume, cancel.

GET  /api/jobs?size=&before=      a page of jobs, newest first
POST /api/jobs                    queue one
POST /api/jobs/check              what would be queued, or all that is wrong
GET  /api/jobs/live               the newest jobs, as they change (server-sent events)
GET  /api/jobs/ID
GET  /api/jobs/ID/history         lines of its charts, thinned
GET  /api/jobs/ID/events?start=   its record and state, as they grow (server-sent events)
GET  /api/jobs/ID/log?offset=     what it prints, as it grows (server-sent events)
POST /api/jobs/ID/pause
POST /api/jobs/ID/resume
POST /api/jobs/ID/cancel
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanogpt.flops import parameter_count
from nanogpt.option import LARGEST_INT64
from nanogpt.training.events import Event, to_json_line
from server.dataset_store import DatasetStore
from server.errors import ServiceError
from server.health import Health
from server.jobs.job import Standing
from server.jobs.service import JobService, Report
from server.jobs.submission import Submission
from server.web.body import Body
from server.web.boundary import to_json
from server.web.event_stream import (
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    EventStream,
    first_sequence,
    message,
    raw_message,
    snapshots,
)
from server.web.history import Histories
from server.web.query import whole_number

PAGE_SIZE = 200
MAX_PAGE_SIZE = 1000


class JobsApi:
    """What visitors can do with jobs."""

    def __init__(self, jobs: JobService, datasets: DatasetStore, health: Health) -> None:
        self._jobs = jobs
        self._datasets = datasets
        self._health = health
        self._histories = Histories(jobs)

    def routes(self) -> list[Route]:
        job = "/api/jobs/{id}"
        return [
            Route("/api/jobs", self.page, methods=["GET"]),
            Route("/api/jobs", self.submit, methods=["POST"]),
            Route("/api/jobs/check", self.check, methods=["POST"]),
            Route("/api/jobs/live", self.live),
            Route(job, self.get),
            Route(f"{job}/history", self.history),
            Route(f"{job}/events", self.events),
            Route(f"{job}/log", self.log),
            Route(f"{job}/cancel", self.cancel, methods=["POST"]),
            Route(f"{job}/pause", self.pause, methods=["POST"]),
            Route(f"{job}/resume", self.resume, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        size = whole_number(request, "size", PAGE_SIZE, low=1, high=MAX_PAGE_SIZE)
        reports, next_before = await self._jobs.page(size, request.query_params.get("before"))
        return JSONResponse({"jobs": list(map(summary, reports)), "next_before": next_before})

    async def live(self, request: Request) -> Response:
        async def newest() -> dict[str, Any]:
            reports, next_before = await self._jobs.page(PAGE_SIZE, None)
            return {"jobs": list(map(summary, reports)), "next_before": next_before}

        return EventStream(snapshots(newest, self._health))

    async def submit(self, request: Request) -> Response:
        submission = _submission(await Body.read(request))
        return JSONResponse(detail(await self._jobs.submit(submission)), 201)

    async def check(self, request: Request) -> Response:
        """What would be queued, or why nothing would: to ask is no error."""
        try:
            plan = await self._jobs.check(_submission(await Body.read(request)))
        except ServiceError as error:
            return JSONResponse({"plan": None, "problem": to_json(error)})
        meta = (await asyncio.to_thread(self._datasets.get, plan.dataset)).meta
        found = {
            "model": plan.names,
            "dataset": plan.dataset,
            "config": plan.config.to_mapping(),
            "config_origin": plan.config_origin,
            "parameter_count": parameter_count(plan.config.model_config(meta.vocab_size)),
            "tokens_per_step": plan.config.tokens_per_step,
            "train_tokens": meta.train_tokens,
        }
        return JSONResponse({"plan": found, "problem": None})

    async def get(self, request: Request) -> Response:
        return JSONResponse(detail(await self._jobs.report(request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(detail(await self._jobs.cancel(request.path_params["id"])))

    async def pause(self, request: Request) -> Response:
        return JSONResponse(detail(await self._jobs.pause(request.path_params["id"])))

    async def resume(self, request: Request) -> Response:
        return JSONResponse(detail(await self._jobs.resume(request.path_params["id"])))

    async def history(self, request: Request) -> Response:
        history = await self._histories.of(request.path_params["id"])
        return JSONResponse(history.to_json())

    async def events(self, request: Request) -> Response:
        job_id = request.path_params["id"]
        return EventStream(self._events(job_id, first_sequence(request)))

    async def log(self, request: Request) -> Response:
        offset = whole_number(request, "offset", 0, low=-LARGEST_INT64)
        return EventStream(self._log(request.path_params["id"], offset))

    async def _log(self, job_id: str, offset: int) -> AsyncGenerator[str, None]:
        """Pieces of the log, each with the offset of what follows it; `end`."""
        async with aclosing(self._jobs.logs(job_id, offset, follow=True)) as pieces:
            async for piece in pieces:
                yield message({"kind": "log", **asdict(piece)}) if piece.text else HEARTBEAT
        yield message({"kind": "end"})

    async def _events(self, job_id: str, start: int) -> AsyncGenerator[str, None]:
        """Events with their sequence numbers as ids; changes of state, which have none; `end`."""
        async with self._jobs.follow(job_id, start) as subscription:
            while (news := await subscription.next(HEARTBEAT_SECONDS)) is not None:
                if isinstance(news, Standing):
                    yield message({"kind": "state", **standing(news)})
                elif not news:
                    yield HEARTBEAT
                else:
                    yield "".join(
                        raw_message(to_json_line(event).rstrip("\n"), event.sequence)
                        for event in news
                        if isinstance(event, Event)  # nobody asked to leave any out
                    )
            yield message({"kind": "end"})


def summary(report: Report) -> dict[str, Any]:
    """A job as a row of a table."""
    job, progress = report.job, report.progress
    return {
        "id": job.id,
        "model": job.model,
        "dataset": job.dataset,
        **standing(job.standing),
        "queue_position": report.queue_position,
        "priority": job.priority,
        "step": progress.step,
        "max_iters": job.config.max_iters,
        "checkpoint_step": progress.checkpoint_step,
        "latest_step": asdict(progress.latest_step) if progress.latest_step else None,
        "latest_evaluation": (
            asdict(progress.latest_evaluation) if progress.latest_evaluation else None
        ),
        "best_val_loss": progress.best_val_loss,
        "remaining_seconds": report.remaining_seconds,
        "create_time": job.create_time,
        "start_time": job.start_time,
        "end_time": job.end_time,
    }


def detail(report: Report) -> dict[str, Any]:
    """All there is to know about a job."""
    job, progress = report.job, report.progress
    return {
        **summary(report),
        "sequence": progress.sequence,
        "config": job.config.to_mapping(),
        "config_origin": job.config_origin,
        "run": asdict(progress.run) if progress.run else None,
        "attempts": [asdict(attempt) for attempt in job.attempts],
        "history": [standing(found) for found in report.history],
    }


def standing(found: Standing) -> dict[str, Any]:
    return {
        "state": str(found.state),
        "is_final": found.state.is_final,
        "reason": "" if found.reason == "UNSPECIFIED" else str(found.reason),
        "error": found.error,
        "since": found.since,
    }


def _submission(body: Body) -> Submission:
    submission = Submission(
        model=body.text("model"),
        dataset=body.text("dataset"),
        preset=body.text("preset"),
        config=body.mapping("config"),
        request_id=body.text("request_id"),
        priority=body.integer("priority", 0),
    )
    body.check()
    return submission
