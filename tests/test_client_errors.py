"""Every gRPC status becomes the right exception with the server's details in it."""

import grpc
import pytest
from fake_server import FakeServer, rich_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details_pb

import client as package
from client import AsyncClient, Client, errors
from client.errors import NanoGPTError, Violation


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.PERMISSION_DENIED: NanoGPTError,
    grpc.StatusCode.UNKNOWN: NanoGPTError,
}


@pytest.mark.parametrize("code", CLASSES, ids=lambda code: code.name)
def test_each_status_has_its_class(server, code):
    server.failures["CancelJob"].append(rich_status(code, "because"))  # never retried
    with Client(server.address) as client, pytest.raises(NanoGPTError) as caught:
        client.cancel("j1")
    assert type(caught.value) is CLASSES[code]
    assert caught.value.code == code.name
    assert caught.value.message == str(caught.value) == "because"


async def test_the_async_client_raises_the_same(server):
    info = details_pb.ErrorInfo(reason="MODEL_NOT_FOUND", metadata={"name": "bart"})
    server.failures["LoadModel"].append(rich_status(grpc.StatusCode.NOT_FOUND, "no bart", info))
    async with AsyncClient(server.address) as client:
        with pytest.raises(errors.NotFound, match="no bart") as caught:
            await client.load("bart")
    assert caught.value.details.reason == "MODEL_NOT_FOUND"
    assert caught.value.details.metadata == {"name": "bart"}


def test_violations_name_every_field(server):
    wrong = details_pb.BadRequest(
        field_violations=[
            details_pb.BadRequest.FieldViolation(field="n_head", description="must divide n_embd"),
            details_pb.BadRequest.FieldViolation(field="dropout", description="must be below 1"),
        ]
    )
    server.failures["Train"].append(rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", wrong))
    with Client(server.address) as client, pytest.raises(errors.InvalidArgument) as caught:
        client.train("plays", n_head=5)
    assert caught.value.violations == (
        Violation("n_head", "must divide n_embd"),
        Violation("dropout", "must be below 1"),
    )


def test_overload_says_when_to_come_back(server):
    retry = details_pb.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    quota = details_pb.QuotaFailure(
        violations=[details_pb.QuotaFailure.Violation(subject="waiting", description="full")]
    )
    server.failures["Generate"].append(
        rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry, quota)
    )
    with Client(server.address) as client, pytest.raises(errors.ResourceExhausted) as caught:
        client.complete("To be")
    assert caught.value.retry_seconds == 1.5
    assert caught.value.details.violations == (Violation("waiting", "full"),)


def test_an_error_without_details_has_none(server):
    server.failures["LoadModel"].append(rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "big"))
    with Client(server.address) as client, pytest.raises(errors.ResourceExhausted) as caught:
        client.load("bard")
    assert caught.value.retry_seconds is None
    assert caught.value.details == errors.ErrorDetails()


def test_an_unreachable_server_did_not_answer():
    with FakeServer() as server:
        address = server.address
    with Client(address) as client, pytest.raises(errors.Unavailable) as caught:
        client.load("bard")
    assert not caught.value.answered


def test_a_draining_server_did_answer(server):
    info = details_pb.ErrorInfo(reason="UNAVAILABLE")
    server.failures["LoadModel"].append(rich_status(grpc.StatusCode.UNAVAILABLE, "stopping", info))
    with Client(server.address) as client, pytest.raises(errors.Unavailable) as caught:
        client.load("bard")
    assert caught.value.answered


def test_a_bug_has_an_id_to_look_for(server):
    info = details_pb.ErrorInfo(reason="INTERNAL", metadata={"error_id": "e42"})
    server.failures["Generate"].append(
        rich_status(grpc.StatusCode.INTERNAL, "internal error", info)
    )
    with Client(server.address) as client, pytest.raises(errors.InternalError) as caught:
        client.complete()
    assert caught.value.error_id == "e42"


def test_a_short_deadline_is_an_error(server):
    with (
        Client(server.address, timeout_seconds=0.2) as client,
        pytest.raises(errors.DeadlineExceeded),
    ):
        client.complete("hold")
    assert server.generate_ended.wait(5)


def test_every_class_is_exported_and_says_who_must_act():
    for kind in errors.CLASS_OF_CODE.values():
        assert getattr(package, kind.__name__) is kind
        assert issubclass(kind, NanoGPTError)
        assert kind.__doc__ and kind.__name__ in errors.__doc__
