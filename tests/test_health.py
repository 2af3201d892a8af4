"""Health, from inside and over the wire."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from server.gate import Gate
from server.health import Health
from server.interceptors import interceptor_chain
from server.metrics import Metrics
from server.services.health import HealthService

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health():
    return Health(["nanogpt.v1.InferenceService"])


@pytest.fixture
async def stub(health):
    server = grpc.aio.server(interceptors=interceptor_chain(Metrics(), Gate(), 60))
    pb_grpc.add_HealthServicer_to_server(HealthService(health), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.HealthStub(channel)
    await server.stop(0)


def test_nothing_is_healthy_before_it_is_said(health):
    for name in ("", "liveness", "readiness", "nanogpt.v1.InferenceService"):
        assert health.serving(name) is False
    assert health.serving("nope") is None


def test_draining_is_for_good(health):
    health.set("", True)
    health.drain()
    health.set("", True)
    assert health.serving("") is False and health.is_draining


async def test_a_change_wakes_who_waits(health):
    waiting = [asyncio.create_task(health.changed()) for _ in range(3)]
    await asyncio.sleep(0)
    health.set("", False)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting), "nothing has changed"
    health.set("", True)
    await asyncio.gather(*waiting)


async def test_check_tells_the_state(stub, health):
    assert (await stub.Check(pb.HealthCheckRequest())).status == NOT_SERVING
    health.set("", True)
    assert (await stub.Check(pb.HealthCheckRequest())).status == SERVING


async def test_unknown_names_are_not_found(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(pb.HealthCheckRequest(service="nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_follows_changes_and_ends_at_drain(stub, health):
    watch = stub.Watch(pb.HealthCheckRequest(service="readiness"))
    assert (await watch.read()).status == NOT_SERVING
    health.set("readiness", True)
    assert (await watch.read()).status == SERVING
    health.drain()
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_watching_an_unknown_name_is_allowed(stub):
    watch = stub.Watch(pb.HealthCheckRequest(service="nope"))
    assert (await watch.read()).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_one_watcher_that_leaves_silences_no_other(stub, health):
    watchers = [stub.Watch(pb.HealthCheckRequest()) for _ in range(3)]
    for watch in watchers:
        assert (await watch.read()).status == NOT_SERVING
    watchers[0].cancel()
    assert await watchers[0].code() is grpc.StatusCode.CANCELLED
    health.set("", True)
    for watch in watchers[1:]:
        assert (await asyncio.wait_for(watch.read(), 5)).status == SERVING
        watch.cancel()
