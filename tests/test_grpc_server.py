"""The gRPC listener: limits and ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from server.errors import CannotStart
from server.gate import Gate
from server.grpc_server import bind, create_server
from server.interceptors import interceptor_chain
from server.metrics import Metrics

METHOD = "/test.Service/Echo"
UPLOAD = "/test.Service/Upload"
PEER = "/test.Service/Peer"


@asynccontextmanager
async def serving(**options) -> AsyncIterator[int]:
    """The port of a server that echoes bytes, with the interceptors of the real one."""

    async def echo(request, context):
        return request * 3 if len(request) > 1 << 20 else request

    async def upload(chunks, context):
        return b"".join([chunk async for chunk in chunks])

    async def peer(request, context):
        return context.peer().encode()

    server = create_server(interceptor_chain(Metrics(), Gate(), 60), **options)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Peer": grpc.unary_unary_rpc_method_handler(peer),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", handlers),)
    )
    port = bind(server, "127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(0)


@pytest.fixture
async def port():
    async with serving() as port:
        yield port


async def echo(port: int, data: bytes, **options) -> bytes:
    unlimited = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unlimited) as channel:
        return await channel.unary_unary(METHOD)(data, **options)


async def refused(port: int, data: bytes, **options) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo(port, data, **options)
    return caught.value.code()


async def test_a_chunk_of_a_mebibyte_and_its_frame_fit(port):
    chunk = b"x" * ((1 << 20) + 100)
    assert len(await echo(port, chunk[: 1 << 20])) == 1 << 20
    assert len(await echo(port, chunk)) == 3 * len(chunk)


async def test_larger_messages_are_refused(port):
    assert await refused(port, b"x" * (2 << 20) + b"x") is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_compressed_message_counts_by_what_it_unpacks_to(port):
    bomb = b"\0" * (64 << 20)
    code = await refused(port, bomb, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_answers_have_a_limit_too(port):
    assert await refused(port, b"x" * (3 << 19)) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_call_outlives_the_age_of_its_connection():
    async with (
        serving(connection_age_seconds=0.1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        asyncio.timeout(20),
    ):
        upload = channel.stream_unary(UPLOAD)()
        await upload.write(b"one ")
        connections = set()
        while len(connections) < 4:  # each new one is made when the one before it is too old
            connections.add(await channel.unary_unary(PEER)(b""))
        await upload.write(b"two")
        await upload.done_writing()
        assert await upload == b"one two"


async def test_two_servers_never_share_a_port(port):
    with pytest.raises(CannotStart, match=f"cannot listen on 127.0.0.1:{port}"):
        bind(create_server([]), f"127.0.0.1:{port}")
