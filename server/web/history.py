"""A run's record as charts need it: few points a line, however long the run, and no peak lost.

A line keeps the lowest and the highest point of each stretch of the run. When it holds too many,
two neighbouring stretches become one; so it is made in one pass, in bounded memory, and goes on as
the run does.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from nanogpt.training.events import KIND_NAMES, Divergence, Evaluation, Event, Sample, StepMetrics
from server.jobs.service import JobService

MAX_POINTS = 2000
"""Points of one line: more than a screen has columns."""

MAX_EVENTS = 200
MAX_SAMPLES = 50
REMEMBERED_RUNS = 16

STEP_LINES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu")
EVALUATION_LINES = ("train_loss", "val_loss")

SILENCE_SECONDS = 1.0

Point = tuple[int, float]


class Line:
    """Points in order of x, thinned."""

    def __init__(self) -> None:
        self._kept: list[Point] = []
        self._open: list[Point] = []  # the stretch that is not full yet
        self._width = 2  # points in a stretch: with 2 nothing is lost
        self._last: Point | None = None
        self.num_points = 0
        """Points that were added."""

    def add(self, x: int, y: float) -> None:
        self.num_points += 1
        self._last = (x, y)
        self._open.append(self._last)
        if len(self._open) == self._width:
            self._kept += _extremes(self._open)
            self._open = []
        if len(self._kept) > MAX_POINTS:
            self._kept = [
                point
                for first in range(0, len(self._kept), 4)
                for point in _extremes(self._kept[first : first + 4])
            ]
            self._width *= 2

    def drop_after(self, x: int) -> None:
        """Forgets points beyond x: the run went back to there."""
        self._kept = [point for point in self._kept if point[0] <= x]
        self._open = [point for point in self._open if point[0] <= x]
        left = self._kept + self._open
        self._last = left[-1] if left else None

    def points(self) -> list[Point]:
        """At most MAX_POINTS and a few, the newest among them."""
        points = self._kept + _extremes(self._open)
        if self._last is not None and points[-1] != self._last:
            points.append(self._last)
        return points


def _extremes(stretch: list[Point]) -> list[Point]:
    """The lowest and the highest point, in order of x."""
    if len(stretch) <= 2:
        return list(stretch)
    low = min(stretch, key=lambda point: point[1])
    high = max(stretch, key=lambda point: point[1])
    return [low] if low == high else sorted((low, high))


class History:
    """One run's record up to event `sequence`."""

    def __init__(self) -> None:
        self.sequence = 0
        self.lock = asyncio.Lock()
        self._lines = {name: Line() for name in (*STEP_LINES, *EVALUATION_LINES)}
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._samples: deque[dict[str, Any]] = deque(maxlen=MAX_SAMPLES)

    def add(self, events: Iterable[Event]) -> None:
        """Takes in the next events."""
        for event in events:
            body, self.sequence = event.body, event.sequence
            if isinstance(body, StepMetrics):
                self._add_points(STEP_LINES, body)
                continue
            if isinstance(body, Evaluation):
                self._add_points(EVALUATION_LINES, body)
            if isinstance(body, Divergence) and body.rolled_back_to_step is not None:
                for line in self._lines.values():
                    line.drop_after(body.rolled_back_to_step)
            self._events.append(_to_json(event))
            if isinstance(body, Sample):
                self._samples.append(_to_json(event))

    def to_json(self) -> dict[str, Any]:
        """Lines as two lists, x and y; the newest events that are no steps; the newest samples."""
        return {
            "sequence": self.sequence,
            "lines": {
                name: {
                    "x": [x for x, _ in points],
                    "y": [float(f"{y:.6g}") for _, y in points],
                    "num_points": line.num_points,
                }
                for name, line in self._lines.items()
                for points in [line.points()]
            },
            "events": list(self._events),
            "samples": list(self._samples),
        }

    def _add_points(self, names: Iterable[str], body: StepMetrics | Evaluation) -> None:
        for name in names:
            value = getattr(body, name)
            if value is not None:
                self._lines[name].add(body.step, value)


def _to_json(event: Event) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "time": event.time,
        "kind": KIND_NAMES[type(event.body)],
        **asdict(event.body),
    }


class Histories:
    """Histories of the runs that were looked at last; each is read once and then goes on."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._known: OrderedDict[str, History] = OrderedDict()

    async def of(self, job_id: str) -> History:
        """The run up to now. Raises NotFound, DataLoss, Unavailable."""
        last = (await self._jobs.report(job_id)).progress.sequence
        history = self._known.setdefault(job_id, History())
        self._known.move_to_end(job_id)
        if len(self._known) > REMEMBERED_RUNS:
            self._known.popitem(last=False)
        async with history.lock:
            if history.sequence < last:
                async with self._jobs.follow(job_id, history.sequence + 1) as subscription:
                    while history.sequence < last:
                        news = await subscription.next(SILENCE_SECONDS)
                        if news is None:
                            break
                        if isinstance(news, list):
                            history.add(news)
        return history
