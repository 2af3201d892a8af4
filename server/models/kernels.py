"""The native kernels of this machine: found, being compiled, or never to come.

Compiling takes seconds and happens in a thread of its own, while PyTorch serves. It does not know
which models use them.
"""

import asyncio
import logging
import threading
from concurrent.futures import Future, wait
from pathlib import Path

from nanogpt.inference.native.compiler import (
    KernelsUnavailable,
    cached_kernels,
    check_available,
    compiled_kernels,
)
from nanogpt.inference.native.library import Library

logger = logging.getLogger(__name__)

NICE = 5
"""Compiling yields to generation: a third of its share, not so little that it takes for ever."""

CLOSE_SECONDS = 5.0


class Kernels:
    """A library that may still be in the making. Any thread may ask for it."""

    def __init__(self, folder: Path | None) -> None:
        """Begins to look for the library in `folder` and to make it there; None is PyTorch alone.

        Why there are none is logged, once.
        """
        self._found: Future[Library | None] = Future()  # once it is known whether to compile
        self._made: Future[Library | None] = Future()
        self._closed = threading.Event()
        try:
            if folder is not None:
                check_available(folder)
                threading.Thread(
                    target=self._make, args=(folder,), name="kernels", daemon=True
                ).start()
                return
        except KernelsUnavailable as error:
            _log(error)
        self._found.set_result(None)
        self._made.set_result(None)

    @property
    def may_come(self) -> bool:
        """Whether they are there, or may be soon."""
        return not self._made.done() or self._made.result() is not None

    def now(self) -> Library | None:
        """The library, unless it is still being compiled. Blocks for a moment."""
        return self._made.result() if self._made.done() else self._found.result()

    def wait(self) -> Library | None:
        """The library, None if there will be none. Blocks while it is being compiled."""
        return self._made.result()

    async def made(self) -> Library | None:
        """As `wait`, for the event loop."""
        return await asyncio.shield(asyncio.wrap_future(self._made))  # others wait for it too

    def close(self) -> None:
        """Ends a compiler that still runs. Returns once it is gone, or after some seconds if it is
        another process that compiles."""
        self._closed.set()
        wait([self._made], CLOSE_SECONDS)

    def _make(self, folder: Path) -> None:
        library = None
        try:
            path = cached_kernels(folder)
            if path is None:
                self._found.set_result(None)
                logger.info("compiling native kernels; PyTorch serves meanwhile")
                path = compiled_kernels(folder, nice=NICE, cancelled=self._closed)
            library = Library(path)
            logger.info("native kernels are ready: %s", path.name)
        except KernelsUnavailable as error:
            if not self._closed.is_set():
                _log(error)
        except Exception:  # a bug of ours must not leave loads waiting for ever
            logger.exception("native kernels failed; PyTorch serves")
        if not self._found.done():
            self._found.set_result(library)
        self._made.set_result(library)


def _log(error: KernelsUnavailable) -> None:
    logger.warning("there are no native kernels, so PyTorch serves, slower: %s", error)
