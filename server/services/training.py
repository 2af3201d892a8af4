"""TrainingService: wire <-> JobService and ServingMonitor, and nothing else.

Contract: protos/nanogpt/v1/training.proto. Methods that are not here answer UNIMPLEMENTED.
"""

from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.option import Violation
from nanogpt.training.events import (
    CheckpointWritten,
    Divergence,
    Evaluation,
    Event,
    RunStarted,
    Sample,
    StepMetrics,
)
from protos.nanogpt.v1 import inference_pb2
from protos.nanogpt.v1 import training_pb2 as pb
from protos.nanogpt.v1 import training_pb2_grpc as pb_grpc
from server.errors import InvalidArgument, NotFound
from server.jobs.checkpoints import CheckpointInfo
from server.jobs.job import Attempt, Standing
from server.jobs.service import JobService, Report
from server.jobs.submission import Submission
from server.jobs.tail import Gap
from server.models.monitor import ModelFigures, ServingFigures, ServingMonitor
from server.services.models import model_config_to_pb
from server.services.scalars import timestamp
from server.serving.figures import Percentiles

Context = grpc.aio.ServicerContext[Any, Any]

HEARTBEAT_SECONDS = 15.0
"""Longest silence on a stream: proxies cut quiet ones, commonly after 60 s."""

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 3_500_000
"""Of the jobs in a page: clients take messages of 4 MiB."""

COMPILE_SWITCHES = {"true": "on", "false": "off"}
"""nanoGPT's `compile` is a boolean."""


class TrainingService(pb_grpc.TrainingServiceServicer):
    """Queues training jobs and reports their progress."""

    def __init__(
        self,
        jobs: JobService,
        monitor: ServingMonitor,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._jobs = jobs
        self._monitor = monitor
        self._heartbeat_seconds = heartbeat_seconds

    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        return pb.TrainResponse(job=_job(await self._jobs.submit(_submission(request))))

    async def StreamMetrics(self, request: pb.StreamMetricsRequest, context: Context) -> None:
        if request.WhichOneof("source") == "server":
            await self._stream_serving(context)
        else:
            await self._stream_job(request, context)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=_job(await self._jobs.report(request.id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            problem = f"must be in [0, {MAX_PAGE_SIZE}], got {request.page_size}"
            raise InvalidArgument([Violation("page_size", problem)])
        try:
            reports, next_page_token = await self._jobs.page(
                request.page_size or DEFAULT_PAGE_SIZE, request.page_token or None
            )
        except NotFound:
            problem = "must be the next_page_token of an earlier response"
            raise InvalidArgument([Violation("page_token", problem)]) from None
        page = pb.ListJobsResponse(next_page_token=next_page_token)
        num_bytes = 0
        for report in reports:
            job = _job(report)
            num_bytes += job.ByteSize()
            if page.jobs and num_bytes > MAX_PAGE_BYTES:
                page.next_page_token = page.jobs[-1].id
                break
            page.jobs.append(job)
        return page

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=_job(await self._jobs.cancel(request.id)))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> pb.PauseJobResponse:
        return pb.PauseJobResponse(job=_job(await self._jobs.pause(request.id)))

    async def ResumeJob(
        self, request: pb.ResumeJobRequest, context: Context
    ) -> pb.ResumeJobResponse:
        return pb.ResumeJobResponse(job=_job(await self._jobs.resume(request.id)))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        found = await self._jobs.checkpoints(request.job_id)
        return pb.ListCheckpointsResponse(checkpoints=[_checkpoint_info(info) for info in found])

    async def PinCheckpoint(
        self, request: pb.PinCheckpointRequest, context: Context
    ) -> pb.PinCheckpointResponse:
        pinned = request.pinned if request.HasField("pinned") else True
        info = await self._jobs.pin_checkpoint(request.job_id, request.step, pinned)
        return pb.PinCheckpointResponse(checkpoint=_checkpoint_info(info))

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest, context: Context
    ) -> pb.DeleteCheckpointResponse:
        await self._jobs.delete_checkpoint(request.job_id, request.step)
        return pb.DeleteCheckpointResponse()

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Context) -> None:
        pieces = self._jobs.logs(request.job_id, request.offset, request.follow)
        async with aclosing(pieces):
            async for piece in pieces:
                await context.write(
                    pb.StreamLogsResponse(text=piece.text, next_offset=piece.next_offset)
                )

    async def _stream_job(self, request: pb.StreamMetricsRequest, context: Context) -> None:
        max_behind = request.max_behind if request.HasField("max_behind") else None
        found = []
        if request.start_sequence < 0:
            problem = f"must be at least 0, got {request.start_sequence}"
            found.append(Violation("start_sequence", problem))
        if max_behind is not None and max_behind < 1:
            found.append(Violation("max_behind", f"must be at least 1, got {max_behind}"))
        if found:
            raise InvalidArgument(found)
        first = max(1, request.start_sequence)
        async with self._jobs.follow(request.job_id, first, max_behind) as subscription:
            while True:
                news = await subscription.next(self._heartbeat_seconds)
                if news is None:
                    return
                if isinstance(news, Standing):
                    change = _state_change(news)
                    await context.write(
                        pb.StreamMetricsResponse(time=change.time, state_change=change)
                    )
                elif not news:
                    await context.write(_heartbeat())
                else:
                    for event in news:
                        message = _skipped(event) if isinstance(event, Gap) else _event(event)
                        await context.write(message)

    async def _stream_serving(self, context: Context) -> None:
        measured = self._monitor.follow()
        async with aclosing(measured):
            async for figures in measured:
                await context.write(_serving(figures))


def _submission(request: pb.TrainRequest) -> Submission:
    config = {spec.name: value for spec, value in request.config.ListFields()}
    if "sample_prompts" in config:
        config["sample_prompts"] = list(config["sample_prompts"])
    if "compile" in config:
        config["compile"] = COMPILE_SWITCHES.get(config["compile"].lower(), config["compile"])
    return Submission(
        model=request.model,
        dataset=request.dataset,
        preset=request.preset,
        config=config,
        request_id=request.request_id,
        priority=request.priority,
    )


def _job(report: Report) -> pb.Job:
    job, progress = report.job, report.progress
    return pb.Job(
        id=job.id,
        model=job.model,
        dataset=job.dataset,
        config=pb.TrainConfig(**job.config.to_mapping()),
        config_origin=job.config_origin,
        state=_state(job.standing),
        reason=_reason(job.standing),
        error=job.standing.error,
        queue_position=report.queue_position,
        step=progress.step,
        run=_run_started(progress.run) if progress.run else None,
        latest_step=_step(progress.latest_step) if progress.latest_step else None,
        latest_evaluation=(
            _evaluation(progress.latest_evaluation) if progress.latest_evaluation else None
        ),
        best_val_loss=progress.best_val_loss,
        remaining_seconds=report.remaining_seconds,
        create_time=timestamp(job.create_time),
        start_time=_time(job.start_time),
        end_time=_time(job.end_time),
        attempts=[_attempt(attempt) for attempt in job.attempts],
        history=[_state_change(standing) for standing in report.history],
        priority=job.priority,
    )


def _attempt(attempt: Attempt) -> pb.Job.Attempt:
    return pb.Job.Attempt(
        number=attempt.number,
        start_time=timestamp(attempt.start_time),
        end_time=_time(attempt.end_time),
        exit_code=attempt.exit_code,
        ending=attempt.ending,
        first_step=attempt.first_step,
    )


def _state(standing: Standing) -> str:
    return f"STATE_{standing.state}"  # protobuf takes the names of enum values


def _reason(standing: Standing) -> str:
    return f"REASON_{standing.reason}"


def _state_change(standing: Standing) -> pb.StateChange:
    return pb.StateChange(
        state=_state(standing),
        reason=_reason(standing),
        error=standing.error,
        time=timestamp(standing.since),
    )


def _heartbeat() -> pb.StreamMetricsResponse:
    now = Timestamp()
    now.GetCurrentTime()
    return pb.StreamMetricsResponse(time=now, heartbeat=pb.Heartbeat())


def _skipped(gap: Gap) -> pb.StreamMetricsResponse:
    now = Timestamp()
    now.GetCurrentTime()
    skipped = pb.Skipped(first_sequence=gap.first_sequence, last_sequence=gap.last_sequence)
    return pb.StreamMetricsResponse(time=now, skipped=skipped)


def _serving(figures: ServingFigures) -> pb.StreamMetricsResponse:
    models = [_model_figures(model) for model in figures.models]
    return pb.StreamMetricsResponse(
        time=timestamp(figures.time),
        serving=pb.ServingFigures(models=models, skipped=figures.skipped),
    )


def _model_figures(model: ModelFigures) -> pb.ModelFigures:
    engine = model.engine
    return pb.ModelFigures(
        model=model.reference,
        weight_version=model.weight_version,
        running=engine.running,
        waiting=engine.waiting,
        prompt_tokens_per_second=model.prompt_tokens_per_second,
        generation_tokens_per_second=model.generation_tokens_per_second,
        time_to_first_token_seconds=_percentiles(engine.time_to_first_token),
        inter_token_latency_seconds=_percentiles(engine.inter_token_latency),
        kv_cache_usage_ratio=engine.kv_cache_usage_ratio,
        prefix_cache_hit_ratio=model.prefix_cache_hit_ratio,
        memory_bytes=model.memory_bytes,
    )


def _percentiles(found: Percentiles | None) -> inference_pb2.Percentiles | None:
    return None if found is None else inference_pb2.Percentiles(**asdict(found))


def _event(event: Event) -> pb.StreamMetricsResponse:
    message = pb.StreamMetricsResponse(sequence=event.sequence, time=timestamp(event.time))
    match event.body:
        case RunStarted() as body:
            message.started.CopyFrom(_run_started(body))
        case StepMetrics() as body:
            message.step.CopyFrom(_step(body))
        case Evaluation() as body:
            message.evaluation.CopyFrom(_evaluation(body))
        case Sample() as body:
            message.sample.CopyFrom(pb.Sample(**asdict(body)))
        case CheckpointWritten() as body:
            message.checkpoint.CopyFrom(_checkpoint(body, body.is_best))
        case Divergence() as body:
            message.divergence.CopyFrom(_divergence(body))
    return message


def _run_started(body: RunStarted) -> pb.RunStarted:
    values = asdict(body)
    values["model_config"] = model_config_to_pb(body.model_config)
    return pb.RunStarted(**values)


def _step(body: StepMetrics) -> pb.StepMetrics:
    return pb.StepMetrics(**asdict(body))


def _evaluation(body: Evaluation) -> pb.Evaluation:
    return pb.Evaluation(**asdict(body), val_perplexity=body.val_perplexity)


def _divergence(body: Divergence) -> pb.Divergence:
    return pb.Divergence(**{**asdict(body), "action": f"ACTION_{body.action.upper()}"})


def _checkpoint(found: CheckpointWritten | CheckpointMeta, is_best: bool) -> pb.Checkpoint:
    return pb.Checkpoint(
        step=found.step,
        val_loss=found.val_loss,
        is_best=is_best,
        size_bytes=found.size_bytes,
        create_time=timestamp(found.create_time),
    )


def _checkpoint_info(info: CheckpointInfo) -> pb.Checkpoint:
    checkpoint = _checkpoint(info.meta, info.is_best)
    checkpoint.is_pinned, checkpoint.is_loaded = info.is_pinned, info.is_loaded
    return checkpoint


def _time(seconds: float | None) -> Timestamp | None:
    return None if seconds is None else timestamp(seconds)
