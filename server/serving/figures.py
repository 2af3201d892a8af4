"""What one engine does right now: how much since the last look, and how fast in the last minute.

The counters of /metrics answer for a server's whole life, and their buckets are coarse; here is the
exact present, for those who watch. Belongs to the event loop.
"""

import time
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0

MAX_VALUES = 8192
"""Latest measurements that a window holds, so that a busy minute takes no more memory."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of measurements in seconds."""

    p50: float
    p95: float
    p99: float


class Window:
    """Measurements of the last minute, at most MAX_VALUES of them."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=MAX_VALUES)

    def add(self, seconds: float, now: float, count: int = 1) -> None:
        """Takes in a measurement of so many seconds, made `now`, that many times."""
        self._values.extend([(now, seconds)] * min(count, MAX_VALUES))

    def percentiles(self, now: float) -> Percentiles | None:
        """Each the smallest measurement that so many per cent do not exceed; None without any."""
        while self._values and self._values[0][0] < now - WINDOW_SECONDS:
            self._values.popleft()
        ordered = sorted(seconds for _, seconds in self._values)
        if not ordered:
            return None
        return Percentiles(*(ordered[-(-len(ordered) * p // 100) - 1] for p in (50, 95, 99)))


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals since the engine started."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    looked_up_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    cached_tokens: int = 0
    """Those that were found there."""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """One engine at one moment."""

    counts: Counts
    running: int
    waiting: int
    kv_cache_usage_ratio: float
    time_to_first_token: Percentiles | None
    inter_token_latency: Percentiles | None


class Meter:
    """Measures one engine. Times are seconds of `time.monotonic()`."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.looked_up_tokens = 0
        self.cached_tokens = 0
        self.load = (0, 0, 0.0)
        """Sequences in the batch and in the queue, and the share of the cache in use."""
        self.time_to_first_token = Window()
        self.inter_token_latency = Window()

    def figures(self) -> EngineFigures:
        """All that is known now."""
        now = time.monotonic()
        return EngineFigures(
            Counts(
                self.prompt_tokens,
                self.generated_tokens,
                self.looked_up_tokens,
                self.cached_tokens,
            ),
            *self.load,
            time_to_first_token=self.time_to_first_token.percentiles(now),
            inter_token_latency=self.inter_token_latency.percentiles(now),
        )
