"""What the server says about its own health, by name. Knows nothing about who asks or how.

    ""                      it accepts calls
    nanogpt.v1.<Service>    what that service depends on works
    liveness                the event loop turns and no engine thread hangs
    readiness               stores are open and the models to load at start are loaded

Busy, full and idle are healthy: overload is answered call by call.
"""

import asyncio
from collections.abc import Iterable


class Health:
    """Named states, true or false, that can be waited for."""

    def __init__(self, services: Iterable[str]) -> None:
        self._serving = dict.fromkeys(["", "liveness", "readiness", *services], False)
        self._changed = asyncio.Event()
        self.is_draining = False

    def serving(self, name: str) -> bool | None:
        """Whether `name` is healthy; None if there is no such name."""
        return self._serving.get(name)

    def set(self, name: str, serving: bool) -> None:
        """Changes one state. Once draining, nothing becomes healthy again."""
        serving = serving and not self.is_draining
        if self._serving[name] != serving:
            self._serving[name] = serving
            self._announce()

    def drain(self) -> None:
        """Makes every state false, for good."""
        self.is_draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._announce()

    async def changed(self) -> None:
        """Returns after the next change of any state, or the begin of draining."""
        await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
