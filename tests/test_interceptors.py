"""What happens around calls, seen from a client, for all four kinds of call."""

import asyncio
import logging
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nanogpt.option import Violation
from protos.nanogpt.v1 import datasets_pb2 as pb
from protos.nanogpt.v1 import datasets_pb2_grpc as pb_grpc
from server.deadline import seconds_left
from server.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from server.gate import Gate
from server.interceptors import current_request_id, interceptor_chain
from server.metrics import Metrics

KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Generator")
SERVICE = "test.Service"
SECRET = "secret /etc/passwd"


class Server:
    """A server of one service with every kind of method, all doing what `work` does."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.gate = Gate()
        self.started = asyncio.Event()
        self.finished = asyncio.Event()

    async def work(self, request, context) -> None:
        """What the handlers do; tests put something else here."""

    async def _handle(self, request, context):
        self.started.set()
        try:
            await self.work(request, context)
        finally:
            self.finished.set()
        return pb.GetDatasetResponse()

    async def start(self, max_deadline_seconds: float = 60) -> int:
        async def unary_unary(request, context):
            return await self._handle(request, context)

        async def unary_stream(request, context):
            for _ in range(3):
                await context.write(await self._handle(request, context))

        async def stream_unary(requests, context):
            async for request in requests:
                response = await self._handle(request, context)
            return response

        async def stream_stream(requests, context):
            async for request in requests:
                await context.write(await self._handle(request, context))

        async def generator(request, context):
            for _ in range(3):
                yield await self._handle(request, context)

        coders = (pb.GetDatasetRequest.FromString, pb.GetDatasetResponse.SerializeToString)
        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary, *coders),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream, *coders),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary, *coders),
            "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream, *coders),
            "Generator": grpc.unary_stream_rpc_method_handler(generator, *coders),
        }
        self.server = grpc.aio.server(
            interceptors=interceptor_chain(self.metrics, self.gate, max_deadline_seconds)
        )
        training = {"Train": handlers["UnaryUnary"], "StreamMetrics": handlers["Generator"]}
        inference = {"Benchmark": handlers["UnaryUnary"]}
        services = {
            SERVICE: handlers,
            "nanogpt.v1.TrainingService": training,
            "nanogpt.v1.InferenceService": inference,
        }
        for service, methods in services.items():
            self.server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, methods),)
            )
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def server():
    server = Server()
    server.port = await server.start()
    yield server
    await server.server.stop(0)


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def call(channel, method: str, *requests: bytes, service: str = SERVICE, **options):
    """Calls a method with raw bytes; returns the raw responses and the trailers."""
    path = f"/{service}/{method}"
    requests = requests or (pb.GetDatasetRequest(name="x").SerializeToString(),)

    async def each():
        for request in requests:
            yield request

    if method.startswith("Stream"):
        kind = channel.stream_stream if method == "StreamStream" else channel.stream_unary
        running = kind(path)(each(), **options)
    else:
        streams = method in ("UnaryStream", "Generator")
        kind = channel.unary_stream if streams else channel.unary_unary
        running = kind(path)(requests[0], **options)
    if method in ("UnaryStream", "StreamStream", "Generator"):
        responses = [response async for response in running]
    else:
        responses = [await running]
    return responses, dict(await running.trailing_metadata())


async def failure(channel, method: str, *requests: bytes, **options) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, *requests, **options)
    return caught.value


async def detail_of(error: grpc.aio.AioRpcError, message):
    status = rpc_status.from_call(SyncCall(error))
    for packed in status.details:
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {message.DESCRIPTOR.name}")


class SyncCall:
    """What `rpc_status.from_call` reads, out of an error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.details = error.code, error.details
        self.trailing_metadata = lambda: tuple(error.trailing_metadata())


def raising(error: BaseException):
    async def work(request, context):
        raise error

    return work


# --- error boundary --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_pass_through(server, channel, kind):
    responses, _ = await call(channel, kind)
    assert len(responses) == (3 if kind in ("UnaryStream", "Generator") else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("model", "tiny"), grpc.StatusCode.NOT_FOUND),
        (DataLoss("model", "tiny", "damaged"), grpc.StatusCode.DATA_LOSS),
        (ResourceExhausted("full", 0.3), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (InvalidArgument([Violation("a", "b")]), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_known_errors_become_their_status(server, channel, kind, error, code):
    server.work = raising(error)
    answer = await failure(channel, kind)
    assert (answer.code(), answer.details()) == (code, error.message)
    info = await detail_of(answer, error_details_pb2.ErrorInfo())
    assert (info.reason, info.domain) == (error.reason, "nanogpt.v1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), TimeoutError(SECRET)])
async def test_the_text_of_a_bug_never_leaves_the_server(server, channel, kind, error, caplog):
    server.work = raising(error)
    answer = await failure(channel, kind)
    assert (answer.code(), answer.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" not in repr(answer) and type(error).__name__ not in repr(answer)
    info = await detail_of(answer, error_details_pb2.ErrorInfo())
    assert list(info.metadata) == ["error_id"]
    logged = next(r for r in caplog.records if info.metadata["error_id"] in r.getMessage())
    assert logged.exc_info[1] is error


@pytest.mark.parametrize("kind", KINDS)
async def test_an_abort_by_the_handler_stays_as_it_is(server, channel, kind, caplog):
    async def work(request, context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "as I said")

    server.work = work
    answer = await failure(channel, kind)
    assert (answer.code(), answer.details()) == (grpc.StatusCode.OUT_OF_RANGE, "as I said")
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_an_overloaded_server_sends_the_pushback_trailer(server, channel):
    server.work = raising(Unavailable("later", 0.3))
    answer = await failure(channel, "UnaryUnary")
    assert dict(answer.trailing_metadata())["grpc-retry-pushback-ms"] == "300"


# --- undecodable and unknown ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7fshort"])
async def test_malformed_bytes_are_an_invalid_argument(server, channel, kind, data):
    answer = await failure(channel, kind, data)
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a message" in answer.details() and "Error" not in answer.details()
    assert not server.started.is_set()
    await detail_of(answer, error_details_pb2.BadRequest())
    assert server.count(
        "grpc_server_handled_total",
        grpc_type={"U": "unary", "S": "client_stream"}[kind[0]]
        if kind.endswith("Unary")
        else ("bidi_stream" if kind == "StreamStream" else "server_stream"),
        grpc_service=SERVICE,
        grpc_method=kind,
        grpc_code="InvalidArgument",
    )


async def test_a_malformed_message_in_mid_stream_ends_the_call(server, channel):
    good = pb.GetDatasetRequest(name="x").SerializeToString()
    answer = await failure(channel, "StreamUnary", good, b"\xff\xff")
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_methods_are_counted_as_other(server, channel):
    for name in ("Nope", "Nada"):
        answer = await failure(channel, name)
        assert answer.code() is grpc.StatusCode.UNIMPLEMENTED
    other = {"grpc_type": "unary", "grpc_service": "other", "grpc_method": "other"}
    assert server.count("grpc_server_started_total", **other) == 2
    handled = server.count("grpc_server_handled_total", **other, grpc_code="Unimplemented")
    assert handled == 2


# --- metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "grpc_type", "received", "sent"),
    [
        ("UnaryUnary", "unary", 1, 1),
        ("UnaryStream", "server_stream", 1, 3),
        ("Generator", "server_stream", 1, 3),
        ("StreamUnary", "client_stream", 2, 1),
        ("StreamStream", "bidi_stream", 2, 2),
    ],
)
async def test_calls_and_messages_are_counted(server, channel, kind, grpc_type, received, sent):
    message = pb.GetDatasetRequest(name="x").SerializeToString()
    await call(channel, kind, message, message)
    labels = {"grpc_type": grpc_type, "grpc_service": SERVICE, "grpc_method": kind}
    assert server.count("grpc_server_started_total", **labels) == 1
    assert server.count("grpc_server_handled_total", **labels, grpc_code="OK") == 1
    assert server.count("grpc_server_msg_received_total", **labels) == received
    assert server.count("grpc_server_msg_sent_total", **labels) == sent
    assert server.count("grpc_server_handling_seconds_count", **labels) == 1


async def test_failures_are_counted_by_code(server, channel):
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "UnaryUnary"}
    for error, code in [(NotFound("a", "b"), "NotFound"), (ValueError(), "Internal")]:
        server.work = raising(error)
        await failure(channel, "UnaryUnary")
        assert server.count("grpc_server_handled_total", **labels, grpc_code=code) == 1


async def hang(request, context):
    await asyncio.Event().wait()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_ends_its_handler(server, channel, kind):
    server.work = hang
    running = asyncio.create_task(call(channel, kind))
    await server.started.wait()
    running.cancel()
    await server.finished.wait()
    with pytest.raises(asyncio.CancelledError):
        await running
    await server.gate.idle()
    assert any(
        sample.labels.get("grpc_code") == "Cancelled" and sample.value == 1
        for family in server.metrics.registry.collect()
        for sample in family.samples
    )


# --- log -------------------------------------------------------------------------------------


async def test_each_call_has_an_id_in_handler_log_and_trailer(server, channel, caplog):
    seen = []

    async def work(request, context):
        seen.append(current_request_id())

    server.work = work
    caplog.set_level(logging.INFO)
    calls = [await call(channel, "UnaryUnary") for _ in range(3)]
    assert [trailers["x-request-id"] for _, trailers in calls] == seen
    assert len(set(seen)) == 3
    for request_id in seen:
        [line] = [m for m in caplog.messages if f"request_id={request_id}" in m]
        assert f"method=/{SERVICE}/UnaryUnary code=OK seconds=0." in line


async def test_ids_do_not_come_from_callers(server, channel):
    _, trailers = await call(channel, "UnaryUnary", metadata=(("x-request-id", "mine"),))
    assert trailers["x-request-id"] != "mine"


async def test_errors_carry_the_request_id_too(server, channel, caplog):
    server.work = raising(NotFound("a", "b"))
    caplog.set_level(logging.INFO)
    answer = await failure(channel, "UnaryUnary")
    request_id = dict(answer.trailing_metadata())["x-request-id"]
    assert any("code=NOT_FOUND" in m and request_id in m for m in caplog.messages)


# --- gate and deadline -----------------------------------------------------------------------


async def test_a_closed_gate_refuses_work_and_lets_the_rest_through(server, channel):
    server.gate.close()
    await call(channel, "UnaryUnary")
    answer = await failure(channel, "Train", service="nanogpt.v1.TrainingService")
    assert answer.code() is grpc.StatusCode.UNAVAILABLE
    await detail_of(answer, error_details_pb2.RetryInfo())


async def test_idle_waits_for_running_handlers(server, channel):
    release = asyncio.Event()

    async def work(request, context):
        await release.wait()

    server.work = work
    running = asyncio.create_task(call(channel, "UnaryUnary"))
    await server.started.wait()
    idle = asyncio.create_task(server.gate.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    release.set()
    await asyncio.gather(idle, running)


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_without_a_deadline_are_capped(kind):
    server = Server()
    server.work = hang
    port = await server.start(max_deadline_seconds=0.05)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await failure(channel, kind)
        assert answer.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.05 s" in answer.details()
        assert server.finished.is_set()
    await server.server.stop(0)


async def test_a_handler_can_ask_how_long_it_has():
    server, remaining = Server(), []

    async def work(request, context):
        remaining.append(seconds_left(context.time_remaining()))

    server.work = work
    port = await server.start(max_deadline_seconds=50)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for options in ({}, {"timeout": 100}, {"timeout": 40}):
            await call(channel, "UnaryUnary", **options)
        await channel.unary_stream("/nanogpt.v1.TrainingService/StreamMetrics")(b"").read()
    await server.server.stop(0)
    capped, capped_too, own, *following = remaining
    assert own < 45 < min(capped, capped_too) and max(capped, capped_too) <= 50
    assert following == [None] * 3


@asynccontextmanager
async def late_server():
    """A channel to a server whose handlers take five times the 0.01 s that it allows."""
    server = Server()

    async def work(request, context):
        await asyncio.sleep(0.05)

    server.work = work
    port = await server.start(max_deadline_seconds=0.01)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.server.stop(0)


async def test_following_a_job_has_no_cap():
    async with late_server() as channel:
        path = "/nanogpt.v1.TrainingService/StreamMetrics"
        call = channel.unary_stream(path)(b"")
        assert len([response async for response in call]) == 3


async def test_a_benchmark_may_take_as_long_as_its_caller_says():
    async with late_server() as channel:
        benchmark = {"method": "Benchmark", "service": "nanogpt.v1.InferenceService"}
        await call(channel, **benchmark, timeout=60)
        for options in (benchmark, {"method": "UnaryUnary", "timeout": 60}):
            answer = await failure(channel, **options)
            assert "longer than the 0.01 s" in answer.details()


async def test_a_very_short_deadline_leaves_the_server_well(server, channel):
    for _ in range(20):
        try:
            await call(channel, "UnaryStream", timeout=1e-5)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await call(channel, "UnaryStream")
    await server.gate.idle()


async def test_methods_that_a_service_does_not_define_are_unimplemented():
    server = grpc.aio.server(interceptors=interceptor_chain(Metrics(), Gate(), 60))
    pb_grpc.add_DatasetServiceServicer_to_server(pb_grpc.DatasetServiceServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.DatasetServiceStub(channel)
        for running in (stub.GetDataset(pb.GetDatasetRequest()), stub.CreateDataset(iter([]))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "does not have that method" in caught.value.details()
    await server.stop(0)
