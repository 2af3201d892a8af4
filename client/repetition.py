"""Whether a call that reached nobody is sent again, and when. No I/O."""

import random
import time
from collections.abc import Callable
from typing import Any

from client.errors import Unavailable
from client.methods import Method

MAX_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


def pause_seconds(failures: int) -> float:
    """Doubles with each failure in a row, and spreads the clients of a restarted server over it."""
    pause: float = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(0.5, 1)


class Attempts:
    """The attempts at one call, all within one deadline.

    send with remaining_seconds(); on Unavailable sleep pause_seconds(error) and send again
    """

    def __init__(
        self,
        method: Method[Any, Any],
        deadline_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_repeatable = method.is_repeatable
        self._clock, self._end = clock, clock() + deadline_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        return self._end - self._clock()

    def pause_seconds(self, error: Unavailable) -> float:
        """How long to wait before the next attempt. Raises the error if there is none."""
        self._failures += 1
        pause = max(pause_seconds(self._failures), error.retry_seconds or 0)
        if (
            not self._is_repeatable
            or self._failures >= MAX_ATTEMPTS
            or pause >= self.remaining_seconds()
        ):
            raise error
        return pause
