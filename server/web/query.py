"""Whole numbers in the path and the query of a request."""

from starlette.requests import Request

from nanogpt.option import LARGEST_INT64, Violation
from server.errors import InvalidArgument


def whole_number(
    request: Request, name: str, default: int, *, low: int = 0, high: int = LARGEST_INT64
) -> int:
    """`?name=`, in [low, high]. Raises InvalidArgument."""
    return _read(name, request.query_params.get(name, str(default)), low, high)


def path_number(request: Request, name: str) -> int:
    """`{name}` of the path, of 64 bits and not negative. Raises InvalidArgument."""
    return _read(name, request.path_params[name], 0, LARGEST_INT64)


def _read(name: str, text: str, low: int, high: int) -> int:
    try:
        number = int(text)
    except ValueError:  # also if it has thousands of digits
        number = high + 1
    if not low <= number <= high:
        raise InvalidArgument([Violation(name, f"must be in [{low}, {high}], got {text[:80]!r}")])
    return number
