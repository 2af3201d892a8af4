"""The longest that a call may take, however it came."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import DeadlineExceeded


@asynccontextmanager
async def deadline(seconds: float | None) -> AsyncIterator[None]:
    """Cancels what is inside after so long and raises DeadlineExceeded; None is never."""
    cap = asyncio.timeout(seconds)
    try:
        async with cap:
            yield
    except TimeoutError:
        if not cap.expired():
            raise
        raise DeadlineExceeded(
            f"the call took longer than the {seconds:g} s this server allows"
        ) from None
