"""The door to the server's work: open until it drains, and aware of who is still inside.

It knows neither what the work is nor how it was asked for.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.errors import Unavailable


class Gate:
    """Refuses new work once closed; looking and cancelling go on until the server has stopped."""

    def __init__(self) -> None:
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()
        self._working: set[asyncio.Task[Any]] = set()
        """Those of `_running` that do work."""

    @contextmanager
    def passing(self, *, is_work: bool = True) -> Iterator[None]:
        """Around what the current task does. Raises Unavailable for work once closed."""
        if self._closed and is_work:
            raise Unavailable("the server is stopping; try another one, or later")
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        if is_work:
            self._working.add(task)
        try:
            yield
        finally:
            self._running.discard(task)
            self._working.discard(task)

    def close(self) -> None:
        """From now on, work is refused."""
        self._closed = True

    async def work_done(self, seconds: float) -> None:
        """Returns once no task does work, or after `seconds`. Close the gate first."""
        if self._working:
            await asyncio.wait(self._working, timeout=seconds)

    async def idle(self) -> None:
        """Returns once nobody is inside, also those that `grpc.aio.Server.stop` does not await.

        https://github.com/grpc/grpc/issues/37239
        """
        if self._running:
            await asyncio.wait(self._running)
