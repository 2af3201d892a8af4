"""Each error as it stands on the wire: code, details, size."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nanogpt.option import Violation
from server.errors import (
    MAX_STATUS_BYTES,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Unimplemented,
    to_status,
)

EXAMPLES = {
    InvalidArgument([Violation("sampling.top_p", "must be in (0, 1], got 2")]): {"BadRequest"},
    NotFound("model", "tiny"): {"ResourceInfo"},
    AlreadyExists("dataset", "tiny"): {"ResourceInfo"},
    FailedPrecondition("dataset_in_use", "tiny", "wait"): {"PreconditionFailure"},
    ResourceExhausted("queue is full", 0.3, limit="waiting_requests"): {
        "QuotaFailure",
        "RetryInfo",
    },
    ResourceExhausted("too large", limit="upload_bytes"): {"QuotaFailure"},
    Unavailable("draining"): {"RetryInfo"},
    DeadlineExceeded("too late"): set(),
    DataLoss("model", "tiny", "model.safetensors is damaged"): {"ResourceInfo"},
    Unimplemented("no GGUF"): set(),
    Internal("0123456789abcdef"): set(),
}


def decode(error: ServiceError) -> tuple[status_pb2.Status, dict[str, object]]:
    """The status of an error and its details by the name of their type."""
    status = status_pb2.Status.FromString(
        dict(to_status(error).trailers)["grpc-status-details-bin"]
    )
    details = {}
    for packed in status.details:
        name = packed.TypeName().removeprefix("google.rpc.")
        assert name not in details, "each type at most once"
        details[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(details[name])
    return status, details


@pytest.mark.parametrize(("error", "expected"), EXAMPLES.items(), ids=lambda x: type(x).__name__)
def test_each_error_carries_its_code_and_details(error, expected):
    wire = to_status(error)
    status, details = decode(error)
    assert wire.code is error.code
    assert (status.code, status.message) == (error.code.value[0], wire.message)
    assert set(details) == {"ErrorInfo", *expected}
    info = details["ErrorInfo"]
    assert info.domain == "nanogpt.v1"
    assert info.reason == info.reason.upper() and 0 < len(info.reason) <= 63


def test_every_class_has_an_example():
    assert {type(error) for error in EXAMPLES} == set(ServiceError.__subclasses__())


def test_all_violations_travel():
    violations = [Violation(f"field[{i}]", "is wrong") for i in range(20)]
    _, details = decode(InvalidArgument(violations))
    sent = details["BadRequest"].field_violations
    assert [(v.field, v.description) for v in sent] == [
        (v.field, v.description) for v in violations
    ]


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument([Violation("f" * 5000, "é" * 5000)] * 5000),
        InvalidArgument([Violation("a", "")] * 5000),
        NotFound("model", "😀" * 10_000),
        DataLoss("model", "x" * 10_000, "y" * 100_000),
        FailedPrecondition("k", "x" * 10_000, "\x00" * 10_000),
        ResourceExhausted("\ud800" * 10_000, 1e6, limit="l"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_details_stay_small_whatever_they_quote(error):
    wire = to_status(error)
    assert len(dict(wire.trailers)["grpc-status-details-bin"]) <= MAX_STATUS_BYTES
    assert len(wire.message.encode()) <= 512


def test_violations_without_space_are_counted():
    _, details = decode(InvalidArgument([Violation("field", "x" * 100)] * 1000))
    *kept, last = details["BadRequest"].field_violations
    assert last.description == f"and {1000 - len(kept)} more"


@pytest.mark.parametrize(
    ("error", "pushback"),
    [
        (ResourceExhausted("full", 0.3), "300"),
        (ResourceExhausted("never fits"), "-1"),
        (Unavailable("draining", 2), "2000"),
        (NotFound("model", "x"), None),
    ],
)
def test_overload_says_when_to_retry(error, pushback):
    assert dict(to_status(error).trailers).get("grpc-retry-pushback-ms") == pushback


def test_retry_info_has_the_delay():
    _, details = decode(ResourceExhausted("full", 0.25))
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 250


def test_what_the_text_quotes_is_in_the_metadata():
    _, details = decode(NotFound("model", "tiny"))
    assert dict(details["ErrorInfo"].metadata) == {"kind": "model", "name": "tiny"}
    assert details["ResourceInfo"].resource_name == "tiny"


def test_codes_are_grpc_status_codes():
    assert all(isinstance(error.code, grpc.StatusCode) for error in EXAMPLES)
