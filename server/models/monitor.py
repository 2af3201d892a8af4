"""How the loaded models are doing, once a second, for any number of followers.

    async for figures in monitor.follow(): ...

All share one measurement. A follower that is too slow for it gets the newest figures and the number
of those that it missed, so nothing piles up. Without a follower nothing is measured.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from server.errors import Unavailable
from server.models.loaded import LoadedModel
from server.serving.figures import Counts, EngineFigures

PERIOD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One loaded model, over the last period."""

    reference: str
    weight_version: int
    memory_bytes: int
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prefix_cache_hit_ratio: float | None
    """None if no prompt was looked up in this period."""
    engine: EngineFigures


@dataclass(frozen=True, slots=True)
class ServingFigures:
    """All loaded models at one moment, in unix seconds, and how many earlier ones were missed."""

    time: float
    models: tuple[ModelFigures, ...]
    skipped: int = 0


class ServingMonitor:
    """Measures while somebody follows."""

    def __init__(
        self, loaded: Callable[[], Sequence[LoadedModel]], period_seconds: float = PERIOD_SECONDS
    ) -> None:
        self._loaded = loaded
        self._period_seconds = period_seconds
        self._count = 0
        self._latest: ServingFigures | None = None
        self._news = asyncio.Event()
        self._num_followers = 0
        self._measuring: asyncio.Task[None] | None = None
        self._closed = False

    async def follow(self) -> AsyncGenerator[ServingFigures, None]:
        """Figures without end. Raises Unavailable when the server stops."""
        self._num_followers += 1
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._measure(), name="serving monitor")
        try:
            seen = self._count
            while not self._closed:
                news = self._news  # taken before looking, so that nothing slips between
                if self._count == seen or self._latest is None:
                    await news.wait()
                    continue
                latest = self._latest
                skipped, seen = self._count - seen - 1, self._count
                yield ServingFigures(latest.time, latest.models, skipped)
            raise Unavailable("the server is stopping; ask again later")
        finally:
            self._num_followers -= 1
            if not self._num_followers:
                self._measuring.cancel()
                self._measuring = None

    def close(self) -> None:
        """Sends followers away: the server stops."""
        self._closed = True
        self._wake()

    async def _measure(self) -> None:
        before, then = self._counts(), time.monotonic()
        due = then
        while True:
            due += self._period_seconds
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            models = tuple(
                _figures(model, before.get(model), now - then) for model in self._loaded()
            )
            before, then = self._counts(), now
            self._latest = ServingFigures(time.time(), models)
            self._count += 1
            self._wake()

    def _counts(self) -> dict[LoadedModel, Counts]:
        return {model: model.engine.meter.figures().counts for model in self._loaded()}

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _figures(model: LoadedModel, before: Counts | None, seconds: float) -> ModelFigures:
    """A model's figures; what one did that was loaded in between counts from its start."""
    engine, before = model.engine.meter.figures(), before or Counts()
    counts = engine.counts
    looked_up = counts.looked_up_tokens - before.looked_up_tokens
    cached = counts.cached_tokens - before.cached_tokens
    return ModelFigures(
        reference=model.ref.reference,
        weight_version=model.weight_version,
        memory_bytes=model.memory_bytes,
        prompt_tokens_per_second=(counts.prompt_tokens - before.prompt_tokens) / seconds,
        generation_tokens_per_second=(counts.generated_tokens - before.generated_tokens) / seconds,
        prefix_cache_hit_ratio=cached / looked_up if looked_up else None,
        engine=engine,
    )
