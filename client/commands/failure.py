"""What to tell a user whose call failed: what happened, and what to do about it."""

from client.commands.help import PROGRAM
from client.errors import (
    DataLoss,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    NanoGPTError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)


def explain(error: NanoGPTError, server: str) -> str:
    """Lines for stderr: the message, one line for each wrong field, advice and the error's notes if
    there are any."""
    if isinstance(error, InvalidArgument) and error.violations:
        lines = ["error: the server refuses this request"]
        lines += [f"  {v.field}: {v.description}" for v in error.violations]
    elif isinstance(error, Unavailable) and not error.answered:
        lines = [f"error: no server answers at {server} ({error.message})"]
    else:
        lines = [f"error: {error.message}"]
    advice = _advice(error)
    if advice:
        lines.append(advice)
    return "\n".join([*lines, *getattr(error, "__notes__", ())])


def _advice(error: NanoGPTError) -> str:
    match error:
        case Unavailable(answered=False):
            return (
                "Start one with `python -m server`, or name another with --server=HOST:PORT "
                "or NANOGPT_SERVER."
            )
        case (
            Unavailable(retry_seconds=float(seconds))
            | ResourceExhausted(retry_seconds=float(seconds))
        ):
            return f"Try again in {seconds:.1f} s."
        case NotFound() if error.details.resource_type in ("model", "job", "dataset"):
            return f"`{PROGRAM} {error.details.resource_type}s` lists what there is."
        case DeadlineExceeded():
            return "The server was too slow: ask for less, or try again when it is less busy."
        case Unimplemented():
            return "The server cannot do that; it may be older than this client."
        case DataLoss():
            return "Files on the server are damaged: its operator has to restore or delete them."
        case InternalError(error_id=str(error_id)) if error_id:
            return f"That is a bug of the server; its log says more under error_id {error_id}."
    return ""
