"""Every way in which a call can fail, named after who must act. Knows no gRPC.

NanoGPTError                any status without a class of its own
├── InvalidArgument         you: change the request
├── NotFound                you: name something that exists
├── AlreadyExists           you: choose another name
├── FailedPrecondition      you: change the state of something first
├── ResourceExhausted       you: come back later, or ask for less
├── Unavailable             nobody or the operator: try again, or start the server
├── DeadlineExceeded        you: allow more time, or ask for less
├── Cancelled               nobody: the call was cancelled on purpose
├── Unimplemented           the operator: run a server that can do it
├── DataLoss                the operator: files on the server are damaged
└── InternalError           the server's developers: it is a bug

try:
    client.train("shakespeare_char", n_head=5)
except InvalidArgument as error:
    for violation in error.violations:
        print(violation.field, violation.description)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong: the path of a request's field, or what else it is about."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What the server said beside the message. Empty or None where it said nothing.

    Meanings: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
    """

    reason: str = ""
    """Cause for machines, such as `MODEL_NOT_FOUND`. Empty if gRPC itself ended the call."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the message interpolates, for machines."""
    violations: tuple[Violation, ...] = ()
    """Wrong fields, exceeded limits or unmet conditions."""
    retry_seconds: float | None = None
    """How long to wait before the same call may succeed."""
    resource_type: str = ""
    """Kind of thing the error is about: `model`, `job`, `dataset`."""
    resource_name: str = ""
    """Its name."""


class NanoGPTError(Exception):
    """A call failed. Catch this class to catch them all; `code` names the gRPC status."""

    code: str = "UNKNOWN"

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or ErrorDetails()


class InvalidArgument(NanoGPTError):
    """The caller must change the request: `violations` names every wrong field."""

    code = "INVALID_ARGUMENT"

    @property
    def violations(self) -> tuple[Violation, ...]:
        return self.details.violations


class NotFound(NanoGPTError):
    """The caller must name something that exists."""

    code = "NOT_FOUND"


class AlreadyExists(NanoGPTError):
    """The caller must choose another name, or another `request_id`."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(NanoGPTError):
    """The caller must first change the state of something, such as unload a model."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(NanoGPTError):
    """The caller must wait `retry_seconds`, or ask for less where that is None."""

    code = "RESOURCE_EXHAUSTED"

    @property
    def retry_seconds(self) -> float | None:
        return self.details.retry_seconds


class Unavailable(NanoGPTError):
    """The server cannot be reached or is stopping: its operator must act, or time must pass."""

    code = "UNAVAILABLE"

    @property
    def retry_seconds(self) -> float | None:
        return self.details.retry_seconds

    @property
    def answered(self) -> bool:
        """Whether a server said so; False if no server was reached."""
        return bool(self.details.reason)


class DeadlineExceeded(NanoGPTError):
    """The caller must allow more time or ask for less."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(NanoGPTError):
    """The call was cancelled, by the caller as a rule: nobody must act."""

    code = "CANCELLED"


class Unimplemented(NanoGPTError):
    """The server is too old or was built without this: its operator must act."""

    code = "UNIMPLEMENTED"


class DataLoss(NanoGPTError):
    """Files on the server are damaged: its operator must restore or delete them."""

    code = "DATA_LOSS"


class InternalError(NanoGPTError):
    """The server has a bug: its developers must act, and find `error_id` in its log."""

    code = "INTERNAL"

    @property
    def error_id(self) -> str:
        """Empty if gRPC itself ended the call."""
        return self.details.metadata.get("error_id", "")


CLASS_OF_CODE: dict[str, type[NanoGPTError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unimplemented,
        DataLoss,
        InternalError,
    )
}
"""The class for each gRPC status that has one, by the status's name."""
