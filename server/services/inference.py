"""InferenceService: wire <-> models and benchmarks, and nothing else.

Contract: protos/nanogpt/v1/inference.proto. Messages of Generate are in generation.py, those of
Score in scores.py, those of Benchmark in benchmarks.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc

from nanogpt.inference.events import Delta, Finished, Prefilled, Queued, Started
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.option import InvalidConfig, Violation
from nanogpt.tokenizer import UnknownCharacters, UnknownTokenId
from protos.nanogpt.v1 import inference_pb2 as pb
from protos.nanogpt.v1 import inference_pb2_grpc as pb_grpc
from server.benchmark.inference import InferenceBenchmark, PeakMeter
from server.benchmark.training import TrainingBenchmark
from server.errors import InvalidArgument, NotFound, ResourceExhausted
from server.interceptors import current_request_id
from server.models.loaded import LoadedModel
from server.models.store import ModelStore
from server.services.benchmarks import (
    device_to_pb,
    inference_load_from_pb,
    inference_result_to_pb,
    invalid,
    training_result_to_pb,
    training_values_from_pb,
)
from server.services.generation import (
    delta_to_pb,
    finished_to_pb,
    prompt_tokens_at_most,
    queued_to_pb,
    request_from_pb,
    started_to_pb,
    violations_of_any_model,
)
from server.services.scores import score_request_from_pb, score_to_pb, score_tokens_at_most
from server.serving.request_stream import RequestStream

Context = grpc.aio.ServicerContext[Any, Any]

MAX_TOKENIZE_BYTES = 1 << 20
MAX_DETOKENIZE_BYTES = 4_000_000
"""A little less than the largest message that the server sends."""

SLOW_READER_SECONDS = 30.0
"""How long Generate waits for its reader before it gives the slot to somebody else."""

QUEUED_SECONDS = 10.0
"""Between messages to one who waits for a slot: proxies cut quiet streams, commonly after 60 s."""


class InferenceService(pb_grpc.InferenceServiceServicer):
    """Generates, scores, tokenizes and measures."""

    def __init__(
        self,
        models: ModelStore,
        training_benchmark: TrainingBenchmark,
        *,
        slow_reader_seconds: float = SLOW_READER_SECONDS,
        queued_seconds: float = QUEUED_SECONDS,
    ) -> None:
        self._models = models
        self._training = training_benchmark
        self._peaks = PeakMeter()
        self._slow_reader_seconds = slow_reader_seconds
        self._queued_seconds = queued_seconds

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        received_at = time.monotonic()
        async with self._model_for(request) as model:
            wanted, echo = await model.engine.prepare(
                partial(request_from_pb, request, model.model_config, model.tokenizer),
                prompt_tokens_at_most(request),
            )
            with model.engine.submitted(wanted, received_at, context.time_remaining) as stream:
                await self._relay(stream, model, echo, context)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        received_at = time.monotonic()
        async with self._models.acquire(request.model) as model:
            wanted = await model.engine.prepare(
                partial(score_request_from_pb, request, model.tokenizer),
                score_tokens_at_most(request),
                scores_only=True,
            )
            logprobs: list[TokenLogprob] = []
            with model.engine.submitted(wanted, received_at, context.time_remaining) as stream:
                while events := await stream.next():
                    for event in events:
                        if isinstance(event, Prefilled):
                            logprobs = event.prompt_logprobs
            return await asyncio.to_thread(
                score_to_pb, logprobs, model.tokenizer, model.weight_version
            )

    async def Benchmark(self, request: pb.BenchmarkRequest, context: Context) -> None:
        if request.WhichOneof("target") == "training":
            await self._measure_training(request.training, context)
        else:
            await self._measure_inference(request.inference, context)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        num_bytes = len(request.text.encode())
        if num_bytes > MAX_TOKENIZE_BYTES:
            problem = f"must have at most {MAX_TOKENIZE_BYTES} bytes, got {num_bytes}"
            raise InvalidArgument([Violation("text", problem)])
        tokenizer = await self._models.tokenizer(request.model)
        try:
            return await asyncio.to_thread(
                lambda: pb.TokenizeResponse(token_ids=tokenizer.encode(request.text))
            )
        except UnknownCharacters as error:
            raise InvalidArgument([Violation("text", f"has {error}")]) from None

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        tokenizer = await self._models.tokenizer(request.model)
        try:
            text = await asyncio.to_thread(tokenizer.decode, request.token_ids)
        except UnknownTokenId as error:
            bad_id = error.token_id
            index = await asyncio.to_thread(lambda: list(request.token_ids).index(bad_id))
            problem = f"must be in [0, {tokenizer.vocab_size}), got {bad_id}"
            raise InvalidArgument([Violation(f"token_ids[{index}]", problem)]) from None
        num_bytes = len(text.encode())
        if num_bytes > MAX_DETOKENIZE_BYTES:
            problem = f"must have a text of at most {MAX_DETOKENIZE_BYTES} bytes, got {num_bytes}"
            raise InvalidArgument([Violation("token_ids", problem)])
        return pb.DetokenizeResponse(text=text)

    @asynccontextmanager
    async def _model_for(self, request: pb.GenerateRequest) -> AsyncIterator[LoadedModel]:
        """The model to generate with. If there is none, what is wrong whatever the model is said
        first: those fields were never right."""
        async with AsyncExitStack() as stack:
            try:
                model = await stack.enter_async_context(self._models.acquire(request.model))
            except (InvalidArgument, NotFound) as error:
                found = error.violations if isinstance(error, InvalidArgument) else []
                if wrong := violations_of_any_model(request):
                    raise InvalidArgument(found + wrong) from None
                raise
            yield model

    async def _measure_inference(self, request: pb.InferenceBenchmark, context: Context) -> None:
        load = inference_load_from_pb(request)
        async with self._models.acquire(request.model, "inference.model") as model:
            try:
                load.check_fits(model.model_config.block_size, model.engine.most_requests)
            except InvalidConfig as error:
                raise invalid("inference", error) from None
            peak = await self._peaks.peak(model.device, model.arithmetic)
            benchmark = InferenceBenchmark(model, load, peak)
            for concurrency in load.concurrency:
                response = pb.BenchmarkResponse(
                    inference=inference_result_to_pb(await benchmark.measure(concurrency)),
                    device=device_to_pb(benchmark.device),
                )
                await context.write(response)

    async def _measure_training(self, request: pb.TrainingBenchmark, context: Context) -> None:
        try:
            result, device = await self._training.run(training_values_from_pb(request))
        except InvalidConfig as error:
            raise invalid("training", error) from None
        response = pb.BenchmarkResponse(
            training=training_result_to_pb(result), device=device_to_pb(device)
        )
        await context.write(response)

    async def _relay(
        self, stream: RequestStream, model: LoadedModel, echo: str | None, context: Context
    ) -> None:
        """Writes all events of a request, each as soon as the reader takes the one before."""

        def started(prompt_logprobs: list[TokenLogprob]) -> pb.GenerateResponse:
            request_id = current_request_id()
            return started_to_pb(stream.request, model, request_id, echo, prompt_logprobs)

        waits_for_prompt = stream.request.prompt_logprobs is not None
        unfinished = stream.request.num_samples
        async for event in stream.events(self._queued_seconds):
            response = None
            match event:
                case Queued():
                    response = queued_to_pb(event)
                case Started() if not waits_for_prompt:
                    response = started([])
                case Prefilled() if waits_for_prompt:
                    response = started(event.prompt_logprobs)
                case Delta():
                    response = delta_to_pb(event)
                case Finished():
                    unfinished -= 1
                    response = finished_to_pb(event, None if unfinished else stream)
            if response is not None:
                await self._write(response, stream, context)

    async def _write(
        self, response: pb.GenerateResponse, stream: RequestStream, context: Context
    ) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_seconds):
                await context.write(response)
        except TimeoutError:
            stream.cancel("slow_reader")
            raise ResourceExhausted(
                f"the stream was not read for {self._slow_reader_seconds:g} s",
                retry_seconds=1.0,
                limit="reader",
            ) from None
