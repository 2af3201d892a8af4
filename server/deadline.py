"""The longest that a call may take, however it came."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from server.errors import DeadlineExceeded

_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)
"""When the current task's call is ended, in seconds of its loop's clock."""


@asynccontextmanager
async def deadline(seconds: float | None) -> AsyncIterator[None]:
    """Cancels what is inside after so long and raises DeadlineExceeded; None is never."""
    cap = asyncio.timeout(seconds)
    _ends_at.set(cap.when())
    try:
        async with cap:
            yield
    except TimeoutError:
        if not cap.expired():
            raise
        raise DeadlineExceeded(
            f"the call took longer than the {seconds:g} s this server allows"
        ) from None


def seconds_left(of_caller: float | None = None) -> float | None:
    """Seconds until the current task's call is ended, by the server or by its caller, who waits so
    much longer; at least 0, None if neither ever ends it."""
    ends_at = _ends_at.get()
    if ends_at is None:
        return of_caller
    ours = max(0.0, ends_at - asyncio.get_running_loop().time())
    return ours if of_caller is None else min(ours, of_caller)
