"""What a training job is: its identity, its state and its history. No I/O.

Names of states and reasons are those of `Job.State` and `Job.Reason` in
protos/nanogpt/v1/training.proto, without their prefix.
"""

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from nanogpt.config import TrainConfig


class JobState(StrEnum):
    """Stages of a job's life."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    RECOVERING = "RECOVERING"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: nothing follows."""
        return self in (JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED)


class JobReason(StrEnum):
    """Causes of a state."""

    UNSPECIFIED = "UNSPECIFIED"
    REQUESTED = "REQUESTED"
    SERVER_RESTART = "SERVER_RESTART"
    CRASHED = "CRASHED"
    CRASH_LOOP = "CRASH_LOOP"
    DIVERGED = "DIVERGED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    BAD_DATASET = "BAD_DATASET"
    BAD_CONFIG = "BAD_CONFIG"
    EARLY_STOPPED = "EARLY_STOPPED"
    LIMIT_REACHED = "LIMIT_REACHED"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job is in its life, and why."""

    state: JobState
    reason: JobReason = JobReason.UNSPECIFIED
    error: str = ""
    """What happened and what to do, for the caller; empty unless the job failed."""
    since: float = 0.0
    """When the state was entered, in unix seconds."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the trainer. Times are unix seconds."""

    number: int
    """Counted from 1."""
    start_time: float
    end_time: float | None
    exit_code: int | None
    """Negative is the signal that ended it. None while it runs and if nobody saw it end."""
    first_step: int | None = None
    """Updates that were done when it started; None until it says so."""
    ending: str = ""
    """How it ended, in a few words; empty while it runs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run. Times are unix seconds."""

    id: str
    model: str
    dataset: str
    config: TrainConfig
    config_origin: dict[str, str]
    """For each field of `config`: `default`, `preset NAME`, `model NAME` or `request`."""
    create_time: float
    priority: int = 0
    """Lower goes first, see queue.py."""
    request_id: str | None = None
    request: str = ""
    """What the caller asked for, as canonical JSON: tells a repeated request from another one."""
    standing: Standing = Standing(JobState.QUEUED)
    attempts: tuple[Attempt, ...] = ()

    @property
    def state(self) -> JobState:
        return self.standing.state

    @property
    def start_time(self) -> float | None:
        """When it first started; None before."""
        return self.attempts[0].start_time if self.attempts else None

    @property
    def end_time(self) -> float | None:
        """When it succeeded, failed or was cancelled; None before."""
        return self.standing.since if self.state.is_final else None


def new_job_id(now: float, newest: str | None) -> str:
    """An id that sorts after `newest` and, where the clock allows, by time (unix seconds).

    12 hexadecimal digits of milliseconds, 8 of chance.
    """
    milliseconds = int(now * 1000)
    if newest is not None:
        milliseconds = max(milliseconds, int(newest[:12], 16) + 1)
    return f"{milliseconds:012x}{secrets.token_hex(4)}"


def submit_time(job_id: str) -> float:
    """When the job with that id was submitted, in unix seconds: never before an older one."""
    return int(job_id[:12], 16) / 1000


def is_job_id(text: str) -> bool:
    """Whether the text has the form of what `new_job_id` gives."""
    return re.fullmatch("[0-9a-f]{20}", text) is not None
