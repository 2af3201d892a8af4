"""Every error that a caller may see, and how each becomes a gRPC status with details.

    ServiceError
    ├── InvalidArgument      INVALID_ARGUMENT     the request is wrong: change these fields
    ├── NotFound             NOT_FOUND            there is no such thing
    ├── AlreadyExists        ALREADY_EXISTS       the name is taken
    ├── FailedPrecondition   FAILED_PRECONDITION  right request, wrong state: change the state
    ├── ResourceExhausted    RESOURCE_EXHAUSTED   a limit is reached: ask again later or for less
    ├── Unavailable          UNAVAILABLE          not now: ask again
    ├── DeadlineExceeded     DEADLINE_EXCEEDED    no answer in time: allow more
    ├── DataLoss             DATA_LOSS            files are damaged: the operator has to act
    ├── Unimplemented        UNIMPLEMENTED        this server cannot do that
    └── Internal             INTERNAL             our bug: report the error id

Stores, queues and engines raise these; only the error boundary calls `to_status`. No message may
hold a path, the name of a class or another exception's text.

Details follow https://google.aip.dev/193 and
https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from nanogpt.option import Violation

DOMAIN = "nanogpt.v1"

MAX_STATUS_BYTES = 4096
"""gRPC peers may refuse more than 8 KiB of metadata, and then the error itself is lost. Details
travel in base64 (4/3) beside the message, which leaves this much."""

_MAX_MESSAGE_BYTES = 512
_MAX_FIELD_BYTES = 128
_MAX_DESCRIPTION_BYTES = 384
_VIOLATION_BYTES = 2048  # what the violations of one request may take together


class ServiceError(Exception):
    """What a caller may know about a failed call. Subclasses name the gRPC code."""

    code: ClassVar[grpc.StatusCode]

    def __init__(self, message: str, *, reason: str, **metadata: str) -> None:
        self.message = _shorten(message, _MAX_MESSAGE_BYTES)
        self.reason = reason
        """Cause for machines, UPPER_SNAKE."""
        self.metadata = {key: _shorten(value, _MAX_FIELD_BYTES) for key, value in metadata.items()}
        """What the message interpolates, for machines."""
        super().__init__(self.message)

    def details(self) -> Iterable[Message]:
        """Messages of google.rpc.error_details beside ErrorInfo, each type at most once."""
        return ()

    @property
    def retry_pushback(self) -> str | None:
        """Value of the trailer `grpc-retry-pushback-ms`: when gRPC's own retry may come.

        https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
        """
        return None


class InvalidArgument(ServiceError):
    """Fields of the request are wrong; `violations` names all of them."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = list(violations)
        super().__init__(
            "; ".join(
                f"{v.field}: {v.description}" if v.field else v.description for v in self.violations
            ),
            reason="INVALID_ARGUMENT",
            violations=str(len(self.violations)),
        )

    def details(self) -> Iterable[Message]:
        yield details_pb.BadRequest(
            field_violations=[
                details_pb.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in _fitting(self.violations)
            ]
        )


class NotFound(ServiceError):
    """There is no `kind` ("model", "job", "dataset") of that name."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, kind: str, name: str, message: str | None = None) -> None:
        self.kind, self.name = kind, name
        super().__init__(
            message or f"there is no {kind} {_shorten(name, _MAX_FIELD_BYTES)!r}",
            reason=f"{_upper_snake(kind)}_NOT_FOUND",
            kind=kind,
            name=name,
        )

    def details(self) -> Iterable[Message]:
        yield _resource_info(self.kind, self.name, self.message)


class AlreadyExists(ServiceError):
    """The name is taken, or a request id was used with another body."""

    code = grpc.StatusCode.ALREADY_EXISTS

    def __init__(self, kind: str, name: str, message: str | None = None) -> None:
        self.kind, self.name = kind, name
        super().__init__(
            message or f"there already is a {kind} {_shorten(name, _MAX_FIELD_BYTES)!r}",
            reason=f"{_upper_snake(kind)}_ALREADY_EXISTS",
            kind=kind,
            name=name,
        )

    def details(self) -> Iterable[Message]:
        yield _resource_info(self.kind, self.name, self.message)


class FailedPrecondition(ServiceError):
    """The request is right, but something is in the wrong state for it.

    `kind` names the condition, such as "dataset_in_use", "model_loaded" or "job_ended"; `subject`
    is the thing it is about.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, kind: str, subject: str, message: str) -> None:
        self.kind, self.subject = kind, subject
        super().__init__(message, reason=_upper_snake(kind), subject=subject)

    def details(self) -> Iterable[Message]:
        violation = details_pb.PreconditionFailure.Violation(
            type=self.reason,
            subject=_shorten(self.subject, _MAX_FIELD_BYTES),
            description=self.message,
        )
        yield details_pb.PreconditionFailure(violations=[violation])


class ResourceExhausted(ServiceError):
    """A limit is reached: try again after `retry_seconds`, or, if None, ask for less.

    `limit` names what ran out, such as "waiting_requests", "queued_jobs", "model_memory",
    "upload_bytes" or "disk".
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(
        self, message: str, retry_seconds: float | None = None, *, limit: str = "capacity"
    ) -> None:
        self.retry_seconds, self.limit = retry_seconds, limit
        super().__init__(message, reason=f"{_upper_snake(limit)}_EXHAUSTED", limit=limit)

    def details(self) -> Iterable[Message]:
        violation = details_pb.QuotaFailure.Violation(subject=self.limit, description=self.message)
        yield details_pb.QuotaFailure(violations=[violation])
        if self.retry_seconds is not None:
            yield _retry_info(self.retry_seconds)

    @property
    def retry_pushback(self) -> str:
        return "-1" if self.retry_seconds is None else _milliseconds(self.retry_seconds)


class Unavailable(ServiceError):
    """The server drains or is still loading: try again after `retry_seconds`, here or elsewhere."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str, retry_seconds: float | None = 1.0) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message, reason="UNAVAILABLE")

    def details(self) -> Iterable[Message]:
        if self.retry_seconds is not None:
            yield _retry_info(self.retry_seconds)

    @property
    def retry_pushback(self) -> str | None:
        return None if self.retry_seconds is None else _milliseconds(self.retry_seconds)


class DeadlineExceeded(ServiceError):
    """The deadline has passed or cannot be met."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="DEADLINE_EXCEEDED")


class DataLoss(ServiceError):
    """Files of a `kind` are damaged. Messages hold base names only."""

    code = grpc.StatusCode.DATA_LOSS

    def __init__(self, kind: str, name: str, message: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(message, reason=f"{_upper_snake(kind)}_DAMAGED", kind=kind, name=name)

    def details(self) -> Iterable[Message]:
        yield _resource_info(self.kind, self.name, self.message)


class Unimplemented(ServiceError):
    """This server cannot do that, whatever the arguments."""

    code = grpc.StatusCode.UNIMPLEMENTED

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="UNIMPLEMENTED")


class Internal(ServiceError):
    """A bug. The log has the rest under `error_id`. Raised by the error boundary alone."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, error_id: str) -> None:
        super().__init__("internal error", reason="INTERNAL", error_id=error_id)


class CannotStart(Exception):
    """The server cannot start as it is told to. For the operator; no caller is there yet."""


@dataclass(frozen=True, slots=True)
class WireStatus:
    """What goes over the wire: arguments of `grpc.aio.ServicerContext.abort`."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def to_status(error: ServiceError) -> WireStatus:
    """The status of an error, with its details in at most MAX_STATUS_BYTES."""
    info = details_pb.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status = Status(code=error.code.value[0], message=error.message)
    for detail in (info, *error.details()):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    # key: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md ("Status-Details")
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", status.SerializeToString())
    ]
    if error.retry_pushback is not None:
        trailers.append(("grpc-retry-pushback-ms", error.retry_pushback))
    return WireStatus(error.code, error.message, tuple(trailers))


def _fitting(violations: Sequence[Violation]) -> list[Violation]:
    """The violations, shortened; those beyond the space for them are counted in a last one."""
    kept: list[Violation] = []
    left = _VIOLATION_BYTES
    for violation in violations:
        field = _shorten(violation.field, _MAX_FIELD_BYTES)
        description = _shorten(violation.description, _MAX_DESCRIPTION_BYTES)
        left -= len(field.encode()) + len(description.encode()) + 8  # 8: protobuf's own framing
        if left < 0:
            kept.append(Violation("", f"and {len(violations) - len(kept)} more"))
            break
        kept.append(Violation(field, description))
    return kept


def _shorten(text: str, max_bytes: int) -> str:
    """The text as valid UTF-8 of at most `max_bytes`, with an ellipsis if it was cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def _upper_snake(kind: str) -> str:
    return kind.upper().replace(" ", "_").replace("-", "_")


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _resource_info(kind: str, name: str, description: str) -> Message:
    info: Message = details_pb.ResourceInfo(
        resource_type=f"{DOMAIN}.{kind}",
        resource_name=_shorten(name, _MAX_FIELD_BYTES),
        description=description,
    )
    return info


def _retry_info(seconds: float) -> Message:
    delay = Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    info: Message = details_pb.RetryInfo(retry_delay=delay)
    return info
