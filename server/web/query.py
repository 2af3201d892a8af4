"""Numbers in the query of a request."""

from starlette.requests import Request

from nanogpt.config import LARGEST_INT64, Violation
from server.errors import InvalidArgument


def whole_number(
    request: Request, name: str, default: int, *, low: int = 0, high: int = LARGEST_INT64
) -> int:
    """`?name=`, in [low, high]. Raises InvalidArgument."""
    text = request.query_params.get(name, str(default))
    try:
        number = int(text)
    except ValueError:
        number = high + 1
    if not low <= number <= high:
        raise InvalidArgument([Violation(name, f"must be in [{low}, {high}], got {text[:80]!r}")])
    return number
