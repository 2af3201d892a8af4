"""Asyncio client of nanogpt-service: what client.client offers, awaited.

async with AsyncClient("127.0.0.1:50051") as client:
    async for delta in client.generate("To be"):
        print(delta.text, end="", flush=True)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc.aio

from client import calls
from client import methods as rpc
from client.channel import DEFAULT_SERVER, channel_options
from client.client import Client
from client.errors import NanoGPTError, Unavailable
from client.generation import AsyncGeneration
from client.methods import Call, Method, Request, Response
from client.repetition import Attempts
from client.requests import GenerateOptions, generate_request
from client.resume import Cursor, LogCursor, MetricsCursor, ServingCursor
from client.silence import attend_async
from client.status import translated
from client.streams import AsyncCall, read_async
from protos.nanogpt.v1.training_pb2 import Job, StreamLogsResponse, StreamMetricsResponse

P = ParamSpec("P")
T = TypeVar("T")


def _unary(
    describe: Callable[P, Call[T]],
) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    """A coroutine method that makes the described call and returns its response."""

    @wraps(describe)
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._respond(describe(*args, **kwargs))

    return method


def _stream(
    describe: Callable[P, Call[T]],
) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    """A method that makes the described call and returns its responses as they arrive."""

    @wraps(describe)
    async def method(
        client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[T]:
        call = describe(*args, **kwargs)
        async for response in read_async(client._start(call.method, call.request)):
            yield call.unpack(response)

    return method


def _in_thread(
    transfer: Callable[Concatenate[Client, P], T],
) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    """A coroutine method that runs one of Client's in a thread. Cancelling it cancels the call.

    Files would hold up the event loop, and grpc.aio now and then answers an upload that
    the server refuses early with "Internal error from Core" instead of the server's status.
    """

    @wraps(transfer)
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with Client(client._server, timeout_seconds=client._timeout_seconds) as blocking:
            return await asyncio.to_thread(transfer, blocking, *args, **kwargs)

    return method


class AsyncClient:
    """Talks to one server, or to every server behind one name, on the running event loop.

    Arguments as for Client.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, *, timeout_seconds: float | None = None
    ) -> None:
        self._server = server
        self._channel = grpc.aio.insecure_channel(server, options=channel_options())
        self._timeout_seconds = timeout_seconds
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels running calls and closes the connection."""
        self._closed = True  # first: who follows something is not to ask again
        await self._channel.close()

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        num_samples: int = 1,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """Continues text or token ids; iterating over the result gives deltas as they arrive."""
        request = generate_request(prompt, num_samples, options)
        return AsyncGeneration(self._start(rpc.GENERATE, request))

    async def complete(
        self, prompt: str | Sequence[int] = "", **options: Unpack[GenerateOptions]
    ) -> str:
        """The text that continues the prompt, once it is complete."""
        return "".join([delta.text async for delta in self.generate(prompt, **options)])

    def watch(
        self, job_id: str, start_sequence: int = 1, *, max_behind: int | None = None
    ) -> AsyncIterator[StreamMetricsResponse]:
        """A job's events until it ends, resumed after a lost connection. See `Client.watch`."""
        return self._follow(rpc.STREAM_METRICS, MetricsCursor(job_id, start_sequence, max_behind))

    def watch_serving(self) -> AsyncIterator[StreamMetricsResponse]:
        """How the server's models are doing, once a second without end; resumed as `watch` is."""
        return self._follow(rpc.STREAM_METRICS, ServingCursor())

    def logs(
        self, job_id: str, *, follow: bool = False, offset: int = 0
    ) -> AsyncIterator[StreamLogsResponse]:
        """What a job's processes printed, in pieces, from a byte on; negative counts from the end.

        With `follow`, until the job ends. Resumed as `watch` is.
        """
        return self._follow(rpc.STREAM_LOGS, LogCursor(job_id, follow, offset))

    async def jobs(self) -> AsyncIterator[Job]:
        """Every job, newest first, read page by page."""
        token = ""
        while True:
            page = await self._respond(calls.jobs_page(token))
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    tokenize = _unary(calls.tokenize)
    detokenize = _unary(calls.detokenize)
    score = _unary(calls.score)
    benchmark_inference = _stream(calls.benchmark_inference)
    benchmark_training = _stream(calls.benchmark_training)

    train = _unary(calls.train)
    job = _unary(calls.job)
    cancel = _unary(calls.cancel)
    pause = _unary(calls.pause)
    resume = _unary(calls.resume)
    checkpoints = _unary(calls.checkpoints)
    pin = _unary(calls.pin)
    unpin = _unary(calls.unpin)
    delete_checkpoint = _unary(calls.delete_checkpoint)

    models = _unary(calls.models)
    model = _unary(calls.model)
    load = _unary(calls.load)
    unload = _unary(calls.unload)
    delete_model = _unary(calls.delete_model)
    import_model = _unary(calls.import_model)
    export_model = _in_thread(Client.export_model)

    create_dataset = _in_thread(Client.create_dataset)
    dataset = _unary(calls.dataset)
    datasets = _unary(calls.datasets)
    delete_dataset = _unary(calls.delete_dataset)

    def _deadline_seconds(self, method: Method[Any, Any]) -> float:
        return method.deadline_seconds if self._timeout_seconds is None else self._timeout_seconds

    async def _respond(self, call: Call[T]) -> T:
        method = call.method
        make = self._channel.unary_unary(
            method.path, method.request_serializer, method.response_deserializer
        )
        attempts = Attempts(method, self._deadline_seconds(method))
        while True:
            try:
                with translated():
                    timeout = attempts.remaining_seconds()
                    return call.unpack(await make(call.request, timeout=timeout))
            except Unavailable as error:
                pause_seconds = attempts.pause_seconds(error)
            await asyncio.sleep(pause_seconds)

    async def _follow(
        self, method: Method[Request, Response], cursor: Cursor[Request, Response]
    ) -> AsyncIterator[Response]:
        """What is news, over as many connections as it takes."""
        while True:
            try:
                async for response in attend_async(self._start(method, cursor.request())):
                    if cursor.accept(response):
                        yield response
                return
            except NanoGPTError as error:
                if not self._closed:
                    await asyncio.sleep(cursor.pause_seconds(error))
                if self._closed:
                    raise

    def _start(self, method: Method[Request, Response], request: Request) -> AsyncCall[Response]:
        make = self._channel.unary_stream(
            method.path, method.request_serializer, method.response_deserializer
        )
        return make(request, timeout=self._deadline_seconds(method))
