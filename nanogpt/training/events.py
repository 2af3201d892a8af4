"""What a run reports, and its record on disk: `metrics.jsonl`, one event a line. No torch.

Fields are those of the messages of the same name in protos/nanogpt/v1/training.proto, where their
units are explained; times are seconds since 1970, None is unset.

A run is deterministic, so a resumed run offers the same events again. Each event has a place in
the run's order (how often the run had gone back, step, kind, number); the writer drops what is not
after the last recorded place. The record therefore has no gap and no repeat, whatever checkpoint a
run resumes from. A run that went back to a checkpoint takes steps twice: they are events of their
own, since it had gone back once more.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from nanogpt import durable
from nanogpt.config import ModelConfig


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run's shape and device."""

    model_config: ModelConfig
    parameter_count: int
    tokenizer: str
    train_tokens: int
    val_tokens: int
    tokens_per_step: int
    device: str
    device_name: str
    dtype: str
    peak_flops: float | None
    peak_source: str
    max_iters: int
    processes: int = 1
    estimated_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """An optimizer update was done."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    clipped: bool
    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    tokens: int
    memory_bytes: int
    clipped_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss of both splits was measured."""

    step: int
    train_loss: float
    val_loss: float
    is_best: bool
    seconds: float
    val_bits_per_byte: float | None = None

    @property
    def val_perplexity(self) -> float:
        """exp(val_loss); infinite where that is no float."""
        return math.exp(self.val_loss) if self.val_loss < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Sample:
    """The model wrote a text."""

    step: int
    prompt: str
    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint is on the disk."""

    step: int
    val_loss: float | None
    is_best: bool
    size_bytes: int
    create_time: float


class Action(StrEnum):
    """What was done about a step that cannot be used."""

    SKIPPED = "skipped"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Loss or gradient were not what they should be; the weights did not change."""

    step: int
    action: str
    """An `Action`."""
    loss: float | None
    grad_norm: float | None
    rolled_back_to_step: int | None
    learning_rate_factor: float


Body = RunStarted | StepMetrics | Evaluation | Sample | CheckpointWritten | Divergence

# in the order in which events of one step happen
KINDS: dict[str, type[Body]] = {
    "started": RunStarted,
    "step": StepMetrics,
    "evaluation": Evaluation,
    "sample": Sample,
    "checkpoint": CheckpointWritten,
    "divergence": Divergence,
}
KIND_NAMES = {body_type: name for name, body_type in KINDS.items()}
RANKS = {body_type: rank for rank, body_type in enumerate(KINDS.values())}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the record; `sequence` counts from 1 without a gap."""

    sequence: int
    time: float
    body: Body
    rollbacks: int = 0
    """How often the run had gone back when it happened."""


OrderKey = tuple[int, int, int, int]


def order_key(body: Body, rollbacks: int = 0) -> OrderKey:
    """The place of an event in its run: larger is later, equal is the same event."""
    if isinstance(body, RunStarted):
        return 0, 0, 0, 0
    number = body.index if isinstance(body, Sample) else 0
    if isinstance(body, Divergence) and body.action == Action.ROLLED_BACK:
        number = 1  # after the last step that was left out
    return rollbacks, body.step, RANKS[type(body)], number


def to_json_line(event: Event) -> str:
    """The event as one line of JSON, newline included. Raises ValueError for NaN and infinity."""
    values = {
        "sequence": event.sequence,
        "time": event.time,
        "kind": KIND_NAMES[type(event.body)],
        "rollbacks": event.rollbacks,
        **asdict(event.body),
    }
    return json.dumps(values, allow_nan=False) + "\n"


def from_json_line(line: str) -> Event:
    """The event that `to_json_line` wrote. Raises ValueError if it is none."""
    try:
        values = json.loads(line)
        sequence, when = values.pop("sequence"), values.pop("time")
        rollbacks = values.pop("rollbacks", 0)
        body_type = KINDS[values.pop("kind")]
        if body_type is RunStarted:
            values["model_config"] = ModelConfig(**values["model_config"])
        return Event(sequence, when, body_type(**values), rollbacks)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an event: {line[:200]!r}") from error


class EventWriter:
    """The one writer of a record.

    A line that the disk has no room for stays in memory and is tried again with the next event,
    so a full disk delays the record and never stops the run.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._unwritten = b""
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        os.ftruncate(self._file, end)  # a line without its newline was cut by a crash
        self._sequence, self._last_key = 0, (-1, 0, 0, 0)
        if end:
            last = from_json_line(data[data.rfind(b"\n", 0, end - 1) + 1 : end].decode())
            self._sequence = last.sequence
            self._last_key = order_key(last.body, last.rollbacks)

    def append(self, body: Body, rollbacks: int = 0, when: float | None = None) -> Event | None:
        """Records an event and returns it, or returns None if the record is already past it.

        `when` it happened defaults to now.
        """
        key = order_key(body, rollbacks)
        if key <= self._last_key:
            return None
        now = time.time() if when is None else when
        event = Event(self._sequence + 1, now, body, rollbacks)
        self._unwritten += to_json_line(event).encode()
        self._sequence, self._last_key = event.sequence, key
        try:
            self._flush()
        except OSError:
            pass  # kept in memory, see the class; `sync` reports it
        return event

    def sync(self) -> None:
        """Waits until every event is on the disk. Raises OSError if one cannot be written.

        Called before a checkpoint is committed: a run that resumes from it does not offer the
        events before it again.
        """
        self._flush()
        durable.sync(self._file)

    def _flush(self) -> None:
        while self._unwritten:  # a full disk may take part of a line; the rest follows later
            written = os.write(self._file, self._unwritten)
            self._unwritten = self._unwritten[written:]

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class NoEvents(EventWriter):
    """For a process that trains along and does not write: there is one writer of a record."""

    def __init__(self) -> None:
        pass

    def append(self, body: Body, rollbacks: int = 0, when: float | None = None) -> None:
        """Records nothing."""

    def sync(self) -> None:
        """Waits for nothing."""

    def close(self) -> None:
        """Has nothing to close."""


class EventReader:
    """Follows a record that may still grow, each event once. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last_sequence = 0

    def read(self, max_bytes: int = -1) -> list[Event]:
        """The next complete events; none if nothing is new or there is no record yet.

        At most `max_bytes` of them, or one that is longer; -1 is no limit. Raises ValueError for a
        line that is no event or not the next one.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(max_bytes)
                if b"\n" not in data:
                    data += file.readline()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]  # what follows is not a line yet
        events = [from_json_line(line.decode()) for line in complete.splitlines()]
        for expected, event in enumerate(events, self._last_sequence + 1):
            if event.sequence != expected:
                raise ValueError(f"event {event.sequence} is where {expected} should be")
        self._offset += len(complete)
        self._last_sequence += len(events)
        return events
