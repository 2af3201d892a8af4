"""Work that a cancellation must not cut off, such as that of a thread."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(
    work: Coroutine[Any, Any, T], on_cancel: Callable[[], None] = lambda: None
) -> T:
    """What the work returns or raises. Whoever is cancelled meanwhile calls `on_cancel`, and leaves
    when the work is over."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody asks any more
        raise
