"""Synchronous client of nanogpt-service; client.async_client is its asyncio twin.

Every method raises NanoGPTError. A client may be used from several threads. What a call sends is
decided in client.calls and client.requests, how a broken stream goes on in client.resume.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

from client import calls
from client import methods as rpc
from client.channel import DEFAULT_SERVER, channel_options
from client.errors import NanoGPTError, Unavailable
from client.export import Progress, write_files
from client.generation import Generation
from client.methods import Call, Method, Request, Response
from client.repetition import Attempts
from client.requests import GenerateOptions, Text, Upload, dataset_spec, generate_request
from client.resume import Cursor, LogCursor, MetricsCursor, ServingCursor
from client.silence import attend
from client.status import translated
from client.streams import SyncCall, read
from protos.nanogpt.v1.datasets_pb2 import Dataset
from protos.nanogpt.v1.training_pb2 import Job, StreamLogsResponse, StreamMetricsResponse

P = ParamSpec("P")
T = TypeVar("T")


def _unary(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    """A method that makes the described call and returns its response."""

    @wraps(describe)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._respond(describe(*args, **kwargs))

    return method


def _stream(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    """A method that makes the described call and returns its responses as they arrive."""

    @wraps(describe)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        call = describe(*args, **kwargs)
        return map(call.unpack, read(client._start(call.method, call.request)))

    return method


class Client:
    """Talks to one server, or to every server behind one name.

    `server` is a gRPC target such as `127.0.0.1:50051` or `dns:///nanogpt:50051`.
    `timeout_seconds` is the deadline of every call, in place of each method's own.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, *, timeout_seconds: float | None = None
    ) -> None:
        self._channel = grpc.insecure_channel(server, options=channel_options())
        self._timeout_seconds = timeout_seconds
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels running calls and closes the connection."""
        self._closed = True  # first: who follows something is not to ask again
        self._channel.close()

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        num_samples: int = 1,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continues text or token ids; iterating over the result gives deltas as they arrive."""
        request = generate_request(prompt, num_samples, options)
        return Generation(self._start(rpc.GENERATE, request))

    def complete(self, prompt: str | Sequence[int] = "", **options: Unpack[GenerateOptions]) -> str:
        """The text that continues the prompt, once it is complete."""
        return "".join(delta.text for delta in self.generate(prompt, **options))

    def watch(
        self, job_id: str, start_sequence: int = 1, *, max_behind: int | None = None
    ) -> Iterator[StreamMetricsResponse]:
        """A job's events from a sequence number on, until the job ends.

        A lost connection is resumed, without gap or repetition. Only the first connection, a
        refusal, or 10 minutes without the server raise an error. A reader that falls more than
        `max_behind` events behind gets a `skipped` in place of older step events; None leaves
        nothing out.
        """
        return self._follow(rpc.STREAM_METRICS, MetricsCursor(job_id, start_sequence, max_behind))

    def watch_serving(self) -> Iterator[StreamMetricsResponse]:
        """How the server's models are doing, once a second without end; resumed as `watch` is."""
        return self._follow(rpc.STREAM_METRICS, ServingCursor())

    def logs(
        self, job_id: str, *, follow: bool = False, offset: int = 0
    ) -> Iterator[StreamLogsResponse]:
        """What a job's processes printed, in pieces, from a byte on; negative counts from the end.

        With `follow`, until the job ends. Resumed as `watch` is.
        """
        return self._follow(rpc.STREAM_LOGS, LogCursor(job_id, follow, offset))

    def jobs(self) -> Iterator[Job]:
        """Every job, newest first, read page by page."""
        token = ""
        while True:
            page = self._respond(calls.jobs_page(token))
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def create_dataset(
        self,
        name: str = "",
        text: Text | None = None,
        *,
        tokenizer: str = "",
        val_ratio: float | None = None,
        encoding: str = "",
        shipped: str = "",
        format: str = "",
        text_field: str = "",
        max_documents: int | None = None,
    ) -> Dataset:
        """Uploads text as a dataset, or makes a `shipped` one. Raises what reading `text` does.

        `format` says what the bytes are: "text", "tar", "jsonl" or "parquet"; client.text_folder
        makes a tar of a folder. While it runs, `datasets().in_progress` tells how far it is.
        """
        spec = dataset_spec(
            name, tokenizer, val_ratio, encoding, shipped, format, text_field, max_documents
        )
        upload = Upload(spec, text)
        method = rpc.CREATE_DATASET
        make = self._channel.stream_unary(
            method.path, method.request_serializer, method.response_deserializer
        )
        try:
            with translated():
                response = make(iter(upload), timeout=self._deadline_seconds(method))
        except NanoGPTError as error:
            raise upload.error or error from None
        return response.dataset

    def export_model(
        self, name: str, format: str, folder: Path, *, progress: Progress | None = None
    ) -> list[Path]:
        """Writes a model's files in another format into `folder`, which is made if need be.

        `format` is "hugging_face", "nanogpt" or "gguf", else ValueError. Returns their paths.
        Files appear once all of them are whole. Raises OSError if one cannot be written.
        """
        call = calls.export_pieces(name, format)
        pieces = self._start(call.method, call.request)
        try:
            return write_files(read(pieces), folder, progress)
        finally:
            pieces.cancel()

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

    dataset = _unary(calls.dataset)
    datasets = _unary(calls.datasets)
    delete_dataset = _unary(calls.delete_dataset)

    def _deadline_seconds(self, method: Method[Any, Any]) -> float:
        return method.deadline_seconds if self._timeout_seconds is None else self._timeout_seconds

    def _respond(self, call: Call[T]) -> T:
        method = call.method
        make = self._channel.unary_unary(
            method.path, method.request_serializer, method.response_deserializer
        )
        attempts = Attempts(method, self._deadline_seconds(method))
        while True:
            try:
                with translated():
                    timeout = attempts.remaining_seconds()
                    return call.unpack(make(call.request, timeout=timeout))
            except Unavailable as error:
                pause_seconds = attempts.pause_seconds(error)
            time.sleep(pause_seconds)

    def _follow(
        self, method: Method[Request, Response], cursor: Cursor[Request, Response]
    ) -> Iterator[Response]:
        """What is news, over as many connections as it takes."""
        while True:
            try:
                for response in attend(self._start(method, cursor.request())):
                    if cursor.accept(response):
                        yield response
                return
            except NanoGPTError as error:
                if not self._closed:
                    time.sleep(cursor.pause_seconds(error))
                if self._closed:
                    raise

    def _start(self, method: Method[Request, Response], request: Request) -> SyncCall[Response]:
        make = self._channel.unary_stream(
            method.path, method.request_serializer, method.response_deserializer
        )
        return make(request, timeout=self._deadline_seconds(method))
