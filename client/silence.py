"""Gives up on a followed stream that is silent for too long, which a living server never is.

A connection can be lost without either end noticing: a server that hangs, a network that drops
packets, a call that never left this process. Servers give a sign of life on each stream that
is followed, so silence is a loss like others, after which the follower asks again.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import TypeVar

from client.errors import NanoGPTError, Unavailable
from client.streams import AsyncCall, SyncCall, read, read_async

Response = TypeVar("Response")

SILENCE_SECONDS = 45.0
"""Three of the pauses after which a server gives a sign of life."""


def attend(call: SyncCall[Response]) -> Iterator[Response]:
    """The call's responses. Raises NanoGPTError: Unavailable after SILENCE_SECONDS without one."""
    with closing(_Watch(call)) as watch, closing(read(call)) as responses:
        while True:
            watch.waiting_since = time.monotonic()
            try:
                response = next(responses, None)
            except NanoGPTError:
                if watch.has_cancelled:
                    raise _silent() from None
                raise
            watch.waiting_since = None  # whoever takes the response may take time as well
            if response is None:
                return
            yield response


async def attend_async(call: AsyncCall[Response]) -> AsyncIterator[Response]:
    """The call's responses. Raises NanoGPTError: Unavailable after SILENCE_SECONDS without one."""
    async with aclosing(read_async(call)) as responses:
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await anext(responses, None)
            except TimeoutError:
                raise _silent() from None
            if response is None:
                return
            yield response


class _Watch:
    """Cancels a call whose reader has waited for too long, from a thread of its own."""

    def __init__(self, call: SyncCall[Response]) -> None:
        self._call = call
        self._closed = threading.Event()
        self.waiting_since: float | None = None  # by time.monotonic()
        self.has_cancelled = False
        threading.Thread(target=self._run, name="watches for silence", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(SILENCE_SECONDS / 4):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > SILENCE_SECONDS:
                self.has_cancelled = True
                self._call.cancel()
                return


def _silent() -> Unavailable:
    return Unavailable(f"the server gave no sign of life for {SILENCE_SECONDS:g} s")
