"""A gRPC server with canned answers, for tests of the client. Needs no torch.

It remembers every request, can fail the next calls of a method, and can break or hold the stream
of a job's events at any point.
"""

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from protos.nanogpt.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    inference_pb2_grpc,
    models_pb2_grpc,
    training_pb2_grpc,
)
from protos.nanogpt.v1 import inference_pb2 as inference
from protos.nanogpt.v1 import models_pb2 as models
from protos.nanogpt.v1 import training_pb2 as training

WORDS = ("alpha ", "beta ", "gamma")
"""What each sample continues with; sample i has its number before each word."""

MAX_ITERS = 30


def rich_status(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    """A status with google.rpc details."""
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def recorded_events() -> list[training.StreamMetricsResponse]:
    """The record of the one job: a start, three steps, an evaluation, a checkpoint, a sample."""
    bodies: list[dict[str, Any]] = [
        {
            "started": training.RunStarted(
                parameter_count=10_745_088,
                tokenizer="char",
                train_tokens=1000,
                val_tokens=100,
                tokens_per_step=64,
                device="cpu",
                device_name="a [fast] one",
                dtype="float32",
                max_iters=MAX_ITERS,
            )
        },
        *(
            {
                "step": training.StepMetrics(
                    step=step,
                    loss=4 - step / 10,
                    step_seconds=0.5,
                    tokens_per_second=12345,
                    mfu=0.123,
                )
            }
            for step in (10, 20, 30)
        ),
        {"evaluation": training.Evaluation(step=30, train_loss=1, val_loss=1.25, is_best=True)},
        {"checkpoint": training.Checkpoint(step=30, size_bytes=43_100_000)},
        {"sample": training.Sample(step=30, prompt="\n", text="To be\nor")},
    ]
    return [
        training.StreamMetricsResponse(sequence=number, **body)
        for number, body in enumerate(bodies, start=1)
    ]


def job(job_id: str = "j1", **fields: Any) -> training.Job:
    """A job as GetJob returns it."""
    return training.Job(
        id=job_id,
        model="bard",
        dataset="plays",
        config=training.TrainConfig(max_iters=MAX_ITERS, n_layer=2),
        config_origin={"max_iters": "request", "n_layer": "default"},
        **{"state": training.Job.STATE_RUNNING, **fields},
    )


@dataclass
class Break:
    """How one stream of events ends early: after how many recorded events, with which status.

    Without a status it stays open and silent until the connection is gone.
    """

    after: int
    status: grpc.Status | None = None


class FakeServer(
    inference_pb2_grpc.InferenceServiceServicer,
    training_pb2_grpc.TrainingServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    datasets_pb2_grpc.DatasetServiceServicer,
):
    """Serves all four services on a port of its own."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Message] = []
        self.failures: dict[str, deque[grpc.Status]] = defaultdict(deque)
        """Statuses of the next calls, by RPC name."""
        self.breaks: deque[Break] = deque()
        """How the next streams of events end early."""
        self.is_silent = False
        """Whether streams of events say nothing at all."""
        self.end = training.StateChange(state=training.Job.STATE_SUCCEEDED)
        """The state change that ends the job."""
        self.generate_ended = threading.Event()
        """Set once a Generate is over; a held one ends when its caller has gone."""
        self.jobs_by_request_id: dict[str, training.Job] = {}
        self.queue_position = 2
        """Jobs before a new one."""
        self.jobs = [job("j3"), job("j2"), job("j1")]
        self.making: datasets_pb2.DatasetInProgress | None = None
        """What is being made, until `finish_making` is set."""
        self.finish_making = threading.Event()
        self.warnings: list[str] = []
        """Of every dataset."""
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        for add in (
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            training_pb2_grpc.add_TrainingServiceServicer_to_server,
            models_pb2_grpc.add_ModelServiceServicer_to_server,
            datasets_pb2_grpc.add_DatasetServiceServicer_to_server,
        ):
            add(self, self._server)
        # the other kind sends while it holds the lock that the end of its streams needs
        self.health = health.HealthServicer(experimental_non_blocking=False)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Cuts every connection."""
        self._server.stop(grace=None).wait()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def set_serving(self, serving: bool) -> None:
        """What health checks of the whole server say."""
        state = health_pb2.HealthCheckResponse.ServingStatus
        self.health.set("", state.SERVING if serving else state.NOT_SERVING)

    def asked(self, kind: type[Message]) -> list[Any]:
        """Requests of one kind, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _receive(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        failures = self.failures[request.DESCRIPTOR.name.removesuffix("Request")]
        if failures:
            context.abort_with_status(failures.popleft())

    def _hold(self, context: grpc.ServicerContext) -> None:
        """Waits until the caller has gone."""
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait()

    # Inference

    def Generate(self, request, context):
        self._receive(request, context)
        try:
            yield from self._generate(request, context)
        finally:
            self.generate_ended.set()

    def _generate(
        self, request: inference.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference.GenerateResponse]:
        sampling = inference.SamplingParams()
        sampling.CopyFrom(request.sampling)
        if not sampling.HasField("seed"):
            sampling.seed = 7
        for ahead in (1234, 1, 0) if request.prompt == "wait" else ():
            yield inference.GenerateResponse(queued=inference.Queued(requests_ahead=ahead))
        started = inference.Started(request_id="r1", model="bard", weight_version=2000)
        started.sampling.CopyFrom(sampling)
        yield inference.GenerateResponse(started=started)
        samples = range(request.num_samples)
        for word in WORDS:
            for index in reversed(samples):
                text = f"{index}{word}" if len(samples) > 1 else word
                delta = inference.Delta(sample_index=index, text=text, token_ids=[1])
                yield inference.GenerateResponse(delta=delta)
            if request.prompt == "hold":
                self._hold(context)
                return
            if request.prompt == "fail":
                context.abort(grpc.StatusCode.DATA_LOSS, "model bard is damaged")
        for index in reversed(samples):
            finished = inference.Finished(sample_index=index, reason=inference.FINISH_REASON_LENGTH)
            if index == 0:
                finished.usage.completion_tokens = len(WORDS) * len(samples)
                finished.timings.total_seconds = 0.5
            yield inference.GenerateResponse(finished=finished)

    def Benchmark(self, request, context):
        self._receive(request, context)
        device = inference.Device(
            type="cpu", name="a [fast] one", dtype="float32", threads=2, peak_flops=1e11
        )
        spread = inference.Percentiles(p50=0.001, p95=0.002, p99=0.003)
        if request.HasField("training"):
            result = inference.TrainingResult(step_seconds=spread, tokens_per_second=99, mfu=0.5)
            yield inference.BenchmarkResponse(training=result, device=device)
            return
        for concurrency in request.inference.concurrency or (1, 8):
            measured = inference.InferenceResult(
                model="bard",
                concurrency=concurrency,
                completed=4 * concurrency,
                tokens_per_second=100.0 * concurrency,
                time_to_first_token_seconds=spread,
                inter_token_latency_seconds=spread,
                e2e_latency_seconds=spread,
                mfu=0.25,
                windows=max(1, request.inference.max_windows),
            )
            if request.inference.max_windows > 2:
                measured.is_stable = concurrency < 8
            if request.inference.HasField("time_to_first_token_objective_seconds"):
                measured.goodput_requests_per_second = 1.5
            yield inference.BenchmarkResponse(inference=measured, device=device)

    def Tokenize(self, request, context):
        self._receive(request, context)
        return inference.TokenizeResponse(token_ids=[ord(letter) for letter in request.text])

    def Detokenize(self, request, context):
        self._receive(request, context)
        return inference.DetokenizeResponse(text="".join(map(chr, request.token_ids)))

    def Score(self, request, context):
        self._receive(request, context)
        return inference.ScoreResponse(
            logprobs=[inference.TokenLogprob(token_id=1, logprob=-1.5, rank=2)],
            loss=1.5,
            perplexity=4.4817,
            bits_per_byte=2.164,
            weight_version=2000,
        )

    # Training

    def Train(self, request, context):
        self._receive(request, context)
        known = self.jobs_by_request_id
        if request.request_id not in known:
            known[request.request_id] = job(
                f"new{len(known) + 1}",
                state=training.Job.STATE_QUEUED,
                queue_position=self.queue_position,
            )
        return training.TrainResponse(job=known[request.request_id])

    def StreamMetrics(self, request, context):
        self._receive(request, context)
        if request.HasField("server"):
            yield from self._serving_figures()
            return
        if self.is_silent:
            self._hold(context)
            return
        running = training.StateChange(state=training.Job.STATE_RUNNING)
        yield training.StreamMetricsResponse(state_change=running)
        ending = self.breaks.popleft() if self.breaks else None
        events = recorded_events()[max(request.start_sequence, 1) - 1 :]
        yield from events if ending is None else events[: ending.after]
        if ending is None:
            yield training.StreamMetricsResponse(heartbeat=training.Heartbeat())
            yield training.StreamMetricsResponse(state_change=self.end)
        elif ending.status is None:
            self._hold(context)
        else:
            context.abort_with_status(ending.status)

    def _serving_figures(self) -> Iterator[training.StreamMetricsResponse]:
        """Two seconds of one model, of which the first was missed."""
        spread = inference.Percentiles(p50=0.001, p95=0.002, p99=0.003)
        busy = training.ModelFigures(
            model="bard",
            weight_version=2000,
            running=3,
            waiting=1,
            generation_tokens_per_second=123.4,
            time_to_first_token_seconds=spread,
            inter_token_latency_seconds=spread,
            kv_cache_usage_ratio=0.5,
            memory_bytes=43_100_000,
        )
        for figures in (
            training.ServingFigures(models=[busy], skipped=1),
            training.ServingFigures(),
        ):
            yield training.StreamMetricsResponse(serving=figures)

    def GetJob(self, request, context):
        self._receive(request, context)
        found = job(
            request.id,
            priority=-5,
            history=[
                training.StateChange(
                    state=training.Job.STATE_RECOVERING, reason=training.Job.REASON_CRASHED
                ),
                training.StateChange(state=training.Job.STATE_RUNNING),
            ],
            attempts=[
                training.Job.Attempt(number=1, exit_code=-9, ending="crashed", first_step=0),
                training.Job.Attempt(number=2, first_step=10),
            ],
        )
        return training.GetJobResponse(job=found)

    def ListJobs(self, request, context):
        """Pages of two."""
        self._receive(request, context)
        start = int(request.page_token or 0)
        end = start + 2
        return training.ListJobsResponse(
            jobs=self.jobs[start:end], next_page_token=str(end) if end < len(self.jobs) else ""
        )

    def CancelJob(self, request, context):
        self._receive(request, context)
        cancelling = job(
            request.id,
            state=training.Job.STATE_CANCELLING,
            reason=training.Job.REASON_REQUESTED,
        )
        return training.CancelJobResponse(job=cancelling)

    def PauseJob(self, request, context):
        self._receive(request, context)
        return training.PauseJobResponse(job=job(request.id, state=training.Job.STATE_PAUSING))

    def ResumeJob(self, request, context):
        self._receive(request, context)
        return training.ResumeJobResponse(job=job(request.id, state=training.Job.STATE_QUEUED))

    def ListCheckpoints(self, request, context):
        self._receive(request, context)
        return training.ListCheckpointsResponse(
            checkpoints=[
                training.Checkpoint(step=30, is_loaded=True),
                training.Checkpoint(step=20, val_loss=1.25, is_best=True, is_pinned=True),
            ]
        )

    def StreamLogs(self, request, context) -> Iterator[training.StreamLogsResponse]:
        self._receive(request, context)
        lines = ("one\n", "", "two\n")[request.offset // 4 :]
        for number, text in enumerate(lines):
            if number == 1 and self.breaks:
                context.abort_with_status(self.breaks.popleft().status)
            request.offset += len(text)
            yield training.StreamLogsResponse(text=text, next_offset=request.offset)

    def PinCheckpoint(self, request, context):
        self._receive(request, context)
        pinned = request.pinned if request.HasField("pinned") else True
        found = training.Checkpoint(step=request.step, is_pinned=pinned)
        return training.PinCheckpointResponse(checkpoint=found)

    def DeleteCheckpoint(self, request, context):
        self._receive(request, context)
        return training.DeleteCheckpointResponse()

    # Models

    def ListModels(self, request, context):
        self._receive(request, context)
        return models.ListModelsResponse(models=[self._model("bard"), self._model("poet")])

    def GetModel(self, request, context):
        self._receive(request, context)
        return models.GetModelResponse(model=self._model(request.name))

    def LoadModel(self, request, context):
        self._receive(request, context)
        return models.LoadModelResponse(model=self._model(request.name, models.Model.STATE_LOADED))

    def UnloadModel(self, request, context):
        self._receive(request, context)
        return models.UnloadModelResponse(model=self._model(request.name))

    def DeleteModel(self, request, context):
        self._receive(request, context)
        return models.DeleteModelResponse()

    def ImportModel(self, request, context):
        self._receive(request, context)
        return models.ImportModelResponse(model=self._model(request.name))

    def ExportModel(self, request, context) -> Iterator[models.ExportModelResponse]:
        self._receive(request, context)
        if request.name == "nobody":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no model 'nobody'")
        yield models.ExportModelResponse(file="config.json", data=b"{}")
        yield models.ExportModelResponse(file="model.safetensors", data=b"one ")
        if request.name == "damaged":
            context.abort(grpc.StatusCode.DATA_LOSS, "model damaged is damaged")
        if request.name == "evil":
            yield models.ExportModelResponse(file="../evil", data=b"two")
        yield models.ExportModelResponse(file="model.safetensors", data=b"two")

    def _model(
        self, name: str, state: models.Model.State = models.Model.STATE_UNLOADED
    ) -> models.Model:
        return models.Model(name=name, state=state, step=2000, parameter_count=10_745_088)

    # Datasets

    def CreateDataset(self, request_iterator, context):
        first = next(request_iterator)
        self._receive(first, context)
        chunks = []
        for message in request_iterator:
            self.requests.append(message)
            chunks.append(message.text)
        text = b"".join(chunks)
        if self.making is not None:
            self.finish_making.wait(20)
        return datasets_pb2.CreateDatasetResponse(
            dataset=datasets_pb2.Dataset(
                name=first.spec.name or first.spec.shipped,
                tokenizer=first.spec.tokenizer or datasets_pb2.TOKENIZER_CHAR,
                characters=len(text),
                source_sha256=hashlib.sha256(text).hexdigest(),
                report=datasets_pb2.DatasetReport(documents=1, warnings=self.warnings),
            )
        )

    def GetDataset(self, request, context):
        self._receive(request, context)
        report = datasets_pb2.DatasetReport(
            documents=12, train_val_overlap=0.25, warnings=self.warnings
        )
        return datasets_pb2.GetDatasetResponse(
            dataset=datasets_pb2.Dataset(
                name=request.name,
                tokenizer=datasets_pb2.TOKENIZER_GPT2,
                report=report,
                size_bytes=1500,
            )
        )

    def ListDatasets(self, request, context):
        self._receive(request, context)
        shipped = datasets_pb2.ShippedDataset(name="python_reference", description="A manual.")
        plays = datasets_pb2.Dataset(
            name="plays", tokenizer=datasets_pb2.TOKENIZER_GPT2, train_tokens=1234
        )
        making = [] if self.making is None else [self.making]
        return datasets_pb2.ListDatasetsResponse(
            datasets=[plays], shipped=[shipped], in_progress=making
        )

    def DeleteDataset(self, request, context):
        self._receive(request, context)
        return datasets_pb2.DeleteDatasetResponse()
