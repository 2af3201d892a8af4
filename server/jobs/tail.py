"""Reads a run's record as it grows, once, for any number of subscribers.

One `Tail` reads each new event from disk and keeps the latest in memory. A subscriber has a place
of its own in the record: at the end it takes events from memory, further back it reads the file
itself, piece by piece. So a slow one misses nothing, repeats nothing, holds little memory, and
slows down neither the trainer nor the others. One that would rather be in time than complete
names how far it may fall behind: older step events are then left out, and what was is declared.

Changes of the job's state are not part of the record; each is placed behind the events that had
been read when it happened.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nanogpt.training.events import Event, EventReader, StepMetrics
from server.errors import DataLoss, Unavailable
from server.jobs.job import Standing
from server.jobs.progress import Progress
from server.uncancelled import to_its_end

RECENT_EVENTS = 512
"""Events kept in memory for subscribers who keep up."""

PIECE_BYTES = 1 << 18
"""How much of a record is read at a time: bounds the memory of those who are behind."""


@dataclass(frozen=True, slots=True)
class _Change:
    """The job's state changed after the event of this sequence number had been read."""

    after_sequence: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class Gap:
    """Step events that a reader did not get because it was slow."""

    first_sequence: int
    last_sequence: int


News = Sequence[Event | Gap]


class Tail:
    """One job's record and state, as they are known by now. Belongs to the event loop."""

    def __init__(self, path: Path, standing: Standing) -> None:
        self.path = path
        self.progress = Progress()
        self.standing = standing
        self._reader = EventReader(path)
        self._recent: deque[Event] = deque(maxlen=RECENT_EVENTS)
        self._changes: list[_Change] = []
        self._closed = False
        self._news = asyncio.Event()
        self._catching_up = asyncio.Lock()
        self.is_caught_up = False
        """Whether what was recorded before anybody watched has been read."""

    async def catch_up(self) -> None:
        """Takes in what was recorded while nobody watched. Raises DataLoss."""
        async with self._catching_up:
            if not self.is_caught_up:
                await self.refresh()
                self.is_caught_up = True

    def rest(self) -> None:
        """Nobody watches any more: it keeps its place in the record, and no events."""
        self.is_caught_up = False
        self._recent.clear()
        self._changes.clear()

    async def refresh(self, observe: Callable[[Event], None] | None = None) -> None:
        """Takes in what was recorded since the last call, and shows each event to `observe`.

        One caller at a time. Raises DataLoss if the record is damaged.
        """
        # others rely on it: one who leaves meanwhile must not leave half a piece
        while await to_its_end(self._take_piece(observe)):
            pass

    def publish(self, standing: Standing) -> None:
        """Tells subscribers that the job's state changed, after all events read so far."""
        self.standing = standing
        self._changes.append(_Change(self.progress.sequence, standing))
        self._wake()

    def close(self) -> None:
        """Sends subscribers away, once they have all there is: the server stops."""
        self._closed = True
        self._wake()

    def subscribe(self, start_sequence: int, max_behind: int | None = None) -> "Subscription":
        """A reader from that event on, who first gets the present state.

        Step events more than `max_behind` events old are left out, those excepted that were
        recorded before it came; None leaves nothing out.
        """
        return Subscription(self, start_sequence, max_behind)

    async def _take_piece(self, observe: Callable[[Event], None] | None) -> bool:
        """Whether there was more."""
        piece = await _read_piece(self._reader)
        for event in piece:
            self.progress = self.progress.after(event)
            if observe is not None:
                observe(event)
        self._recent.extend(piece)
        self._wake()
        return bool(piece)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Subscription:
    """One reader's place in a job's record."""

    def __init__(self, tail: Tail, start_sequence: int, max_behind: int | None) -> None:
        self._tail = tail
        self._max_behind = max_behind
        self._recorded_before = tail.progress.sequence
        self._next_sequence = start_sequence
        self._next_change = len(tail._changes)
        self._first: Standing | None = tail.standing
        self._replay = EventReader(tail.path)
        self._piece: list[Event] = []  # read by `_replay`, but not due yet

    async def next(self, silence_seconds: float) -> News | Standing | None:
        """What comes next: events and gaps between them, or the job's state.

        An empty list means that nothing happened for `silence_seconds`; None, that the job has
        ended and everything was said. Raises Unavailable when the server stops.
        """
        tail = self._tail
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while True:
            news = tail._news  # taken before looking, so that nothing slips between
            change = (
                tail._changes[self._next_change] if self._next_change < len(tail._changes) else None
            )
            last = change.after_sequence if change else tail.progress.sequence
            if self._next_sequence <= last:
                if events := await self._events(last):
                    return events if self._max_behind is None else self._in_time(events)
            elif change:
                self._next_change += 1
                return change.standing
            elif tail.standing.state.is_final:
                return None
            elif tail._closed:
                raise Unavailable("the server is stopping; ask again for the next event")
            else:
                try:
                    await asyncio.wait_for(news.wait(), silence_seconds)
                except TimeoutError:
                    return []

    async def _events(self, last: int) -> list[Event]:
        """Some of the events up to sequence number `last`, from the reader's place on."""
        recent = self._tail._recent
        if recent and recent[0].sequence <= self._next_sequence:
            first = recent[0].sequence
            found = list(islice(recent, self._next_sequence - first, last - first + 1))
        else:
            piece = self._piece or await _read_piece(self._replay)
            if not piece:
                job = self._tail.path.parent.name
                raise DataLoss("job record", job, f"the record of job {job} is cut short")
            found = [event for event in piece if self._next_sequence <= event.sequence <= last]
            self._piece = [event for event in piece if event.sequence > last]
        if found:
            self._next_sequence = found[-1].sequence + 1
        return found

    def _in_time(self, events: list[Event]) -> News:
        """The events, with gaps in place of step events that are too old."""
        assert self._max_behind is not None
        oldest = self._tail.progress.sequence - self._max_behind + 1
        said: list[Event | Gap] = []
        for event in events:
            is_late = self._recorded_before < event.sequence < oldest
            if not (is_late and isinstance(event.body, StepMetrics)):
                said.append(event)
            elif said and isinstance(said[-1], Gap):
                said[-1] = Gap(said[-1].first_sequence, event.sequence)
            else:
                said.append(Gap(event.sequence, event.sequence))
        return said


async def _read_piece(reader: EventReader) -> list[Event]:
    """The next events, about PIECE_BYTES of them. Raises DataLoss if the record is damaged."""
    try:
        return await asyncio.to_thread(reader.read, PIECE_BYTES)
    except ValueError:
        job = reader.path.parent.name
        raise DataLoss("job record", job, f"the record of job {job} is damaged") from None
