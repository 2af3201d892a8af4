"""What one request gets back from an engine thread, and when it came.

Events wait here until their reader takes them. While it is slow, or its tokens are held back, those
of one sample merge, so what waits is bounded by the text itself and not by the number of steps.
Belongs to the event loop: the engine thread never touches it, and it knows nothing about protobuf
or metrics.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from nanogpt.inference.events import Delta, Event
from nanogpt.inference.request import Request

MAX_MERGED_TOKENS = 128
"""Tokens in one merged delta. With 20 alternatives a token the event loop is busy for
some ms with its message, and the other streams wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one request, in seconds; all but prefill and decode count from its receipt."""

    queue_seconds: float
    prefill_seconds: float
    time_to_first_token_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclass(slots=True)
class SampleClock:
    """When the tokens of one sample came, in seconds of `time.monotonic()`."""

    num_tokens: int = 0
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def count(self, num_tokens: int, now: float) -> float | None:
        """Counts tokens that came now. Returns the seconds since those before, None for the
        first."""
        gap = now - self.last_token_at if self.num_tokens else None
        if gap is None:
            self.first_token_at = now
        self.num_tokens += num_tokens
        self.last_token_at = now
        return gap


@dataclass(slots=True)
class RequestClock:
    """The moments of one request's life, in seconds of `time.monotonic()`."""

    received_at: float
    samples: list[SampleClock]
    started_at: float = 0.0

    @property
    def timings(self) -> Timings:
        """Durations of a request that has ended well: every sample has a token."""
        first = min(sample.first_token_at for sample in self.samples)
        last = max(sample.last_token_at for sample in self.samples)
        return Timings(
            queue_seconds=self.started_at - self.received_at,
            prefill_seconds=first - self.started_at,
            time_to_first_token_seconds=first - self.received_at,
            decode_seconds=last - first,
            total_seconds=last - self.received_at,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens sampled so far, over all samples."""
        return sum(sample.num_tokens for sample in self.samples)


class _Unread:
    """Tokens of one sample that no reader has taken yet."""

    def __init__(self, delta: Delta) -> None:
        self._first = delta
        self._token_ids = list(delta.token_ids)
        self._texts = [delta.text]
        self._logprobs = list(delta.logprobs)

    def has_room_for(self, delta: Delta) -> bool:
        return len(self._token_ids) + len(delta.token_ids) <= MAX_MERGED_TOKENS

    def add(self, delta: Delta) -> None:
        self._token_ids += delta.token_ids
        self._texts.append(delta.text)
        self._logprobs += delta.logprobs

    def merged(self) -> Delta:
        return replace(
            self._first,
            token_ids=self._token_ids,
            text="".join(self._texts),
            logprobs=self._logprobs,
        )


class RequestStream:
    """The events of one request, in order, for one reader.

    with engine_thread.submitted(request, received_at) as stream:
        while events := await stream.next():
            ...
    """

    def __init__(
        self,
        request: Request,
        received_at: float | None,
        on_cancel: Callable[["RequestStream", str], None],
        ask_place: Callable[["RequestStream"], None],
    ) -> None:
        """`received_at` is when the request's timings begin; None is now. `ask_place` lets a
        request that waits have a Queued before long."""
        self.request = request
        self.submitted_at = time.monotonic()
        self.clock = RequestClock(
            self.submitted_at if received_at is None else received_at,
            [SampleClock() for _ in range(request.num_samples)],
        )
        self.unfinished_samples = request.num_samples
        self.cached_tokens = 0
        """Prompt tokens that the prefix cache held."""
        self.drafted_tokens = 0
        """Tokens guessed ahead, over all finished samples."""
        self.accepted_tokens = 0
        """Guesses that were right, over all finished samples."""
        self._on_cancel = on_cancel
        self._ask_place = ask_place
        self._waiting: list[Event | _Unread] = []
        self._has_tokens = False
        self._unread: dict[int, _Unread] = {}  # the latest of each sample; all are in `_waiting`
        self._error: Exception | None = None
        self.has_ended = False
        """Whether no event will follow those that wait to be read."""
        self._ready = asyncio.Event()

    async def next(self) -> list[Event]:
        """All events that are ready, at least one; an empty list once all have been read.

        Raises what ended the request early, after the events before that.
        """
        await self._ready.wait()
        if not self._waiting and self._error is not None:
            raise self._error
        events = [e.merged() if isinstance(e, _Unread) else e for e in self._waiting]
        self._waiting.clear()
        self._unread.clear()
        if not self.has_ended:
            self._ready.clear()
        return events

    async def events(self, quiet_seconds: float) -> AsyncGenerator[Event | None, None]:
        """All events, one by one; None whenever there was none for so long. A request that waits
        for a slot then says so, too, by a Queued. Raises as `next`."""
        while True:
            try:
                async with asyncio.timeout(quiet_seconds):
                    events = await self.next()
            except TimeoutError:
                if not self.has_started:
                    self._ask_place(self)
                yield None
                continue
            if not events:
                return
            for event in events:
                yield event

    def cancel(self, reason: str = "cancelled") -> None:
        """Frees what the request holds before the engine's next step. After its end, nothing."""
        if not self.has_ended:
            self._on_cancel(self, reason)

    @property
    def timings(self) -> Timings:
        """Durations of the request, once it has ended well."""
        return self.clock.timings

    @property
    def has_started(self) -> bool:
        """Whether the request has left the queue."""
        return self.clock.started_at > 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        """Tokens sampled so far, over all samples."""
        return self.clock.num_tokens

    def push(self, event: Event) -> None:
        """Adds an event for the reader, who gets it at once."""
        self._waiting.append(event)
        self._ready.set()

    def push_tokens(self, delta: Delta) -> None:
        """Adds tokens. The reader gets the first ones at once, later ones by `release` or with the
        next event; until then they join those of their sample."""
        unread = self._unread.get(delta.sample_index)
        if unread is not None and unread.has_room_for(delta):
            unread.add(delta)
        else:
            unread = self._unread[delta.sample_index] = _Unread(delta)
            self._waiting.append(unread)
        if not self._has_tokens:
            self._has_tokens = True
            self._ready.set()

    def release(self) -> None:
        """Lets the reader have the tokens that wait."""
        if self._waiting:
            self._ready.set()

    def end(self, error: Exception | None = None) -> None:
        """No event follows. With an error the reader gets that after the last event."""
        self.has_ended = True
        self._error = error
        self._ready.set()
