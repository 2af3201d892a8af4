"""The folder of one run: what is where, and the specification in it. No torch.

    RUN_DIR/spec.json       what to train, written once by whoever submits the run
            metrics.jsonl   events, appended by the trainer (events.py)
            log.txt         what the trainer printed
            execution.json  how it computes its steps, chosen once by the trainer (execution.py)
            checkpoints/    step_000250/ and so on (nanogpt/checkpoint_folder.py)
            trainer.lock    held by the trainer for its life; says which process that is
            exit_code       how a run of several processes ended

It does not know how training works, nor who starts it. One writer for each file.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, Self

from nanogpt import durable
from nanogpt.config import TrainConfig
from nanogpt.option import InvalidConfig, Violation, range_violations, unknown_key

ERROR_PREFIX = "error: "
"""Begins the one line of the log that is written for the user."""

STARTED_PREFIX = "starting at step "
"""Begins the line of the log that says how many updates were done when an attempt started."""

POLL_SECONDS = 0.1
"""How often a lock is tried that another process holds."""


class ExitCode(IntEnum):
    """How a trainer's process ends; any other code is a crash.

    For 64 to 71 the last line it printed is `error: <one sentence for the user>`.
    Numbers follow sysexits.h where it has a fitting one.
    """

    DONE = 0
    EARLY_STOPPED = 3
    """All is done before the last step: the validation loss stopped improving, or is low enough."""
    LIMIT_REACHED = 4
    """All is done before the last step: a limit of tokens, epochs or time was reached."""
    BAD_CONFIG = 64
    BAD_DATASET = 65
    DIVERGED = 70
    OUT_OF_MEMORY = 71
    BUSY = 73
    """Another trainer is at work in the run directory: one that a dead server had started."""
    INTERRUPTED = 75
    """Stopped on request after a checkpoint; start it again to go on."""


class RunDirectoryBusy(RuntimeError):
    """Another trainer is at work in this run directory."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What to train. Folders are relative to the run directory."""

    job_id: str
    model: str
    dataset_dir: str
    config: TrainConfig
    init_checkpoint: str | None = None
    """Folder of the weights to start from; None starts from random ones."""

    def __post_init__(self) -> None:
        if found := range_violations(self):
            raise InvalidConfig(found)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The spec that `asdict` described. Raises InvalidConfig naming all that is wrong."""
        names = [spec.name for spec in fields(cls)]
        required = [spec.name for spec in fields(cls) if spec.default is MISSING]
        found = [unknown_key(key, names) for key in values if key not in names]
        found += [Violation(name, "is missing") for name in required if name not in values]
        if found:
            raise InvalidConfig(found)
        return cls(**{**values, "config": TrainConfig.from_mapping(values["config"])})


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a run directory."""

    pid: int
    host: str
    start: str | None
    """Tells it from a later process with its number; None where the system does not say."""

    @property
    def is_alive(self) -> bool:
        """Whether it certainly still runs, on this machine."""
        here = self.host == platform.node()
        return here and self.start is not None and process_start(self.pid) == self.start


def process_start(pid: int) -> str | None:
    """When a process of this machine started, by the kernel's clock; None if it does not say.

    The 22nd field of https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, behind the
    machine's own start, since a clock that counts from there repeats itself.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # a name may hold blanks; field 3 comes next
    return None if after_name[0] == "Z" else f"{boot}:{after_name[19]}"


class RunDirectory:
    """Paths below one run's folder, its specification and its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec_path(self) -> Path:
        return self.path / "spec.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def execution_path(self) -> Path:
        return self.path / "execution.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lock_path(self) -> Path:
        return self.path / "trainer.lock"

    @property
    def exit_code_path(self) -> Path:
        return self.path / "exit_code"

    def write_spec(self, spec: RunSpec) -> None:
        """Writes spec.json at once, and makes the folder if there is none."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(spec), indent=2) + "\n"
        durable.write_file(self.spec_path, text.encode())

    def read_spec(self) -> RunSpec:
        """The run's specification. Raises InvalidConfig if it is missing or wrong."""
        try:
            values = json.loads(self.spec_path.read_bytes())
        except FileNotFoundError as error:
            raise InvalidConfig([Violation("spec.json", "there is none")]) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig([Violation("spec.json", f"is not JSON: {error}")]) from error
        if not isinstance(values, dict) or not isinstance(values.get("config", {}), dict):
            raise InvalidConfig([Violation("spec.json", "must be an object, and config in it too")])
        return RunSpec.from_mapping(values)

    def write_exit_code(self, code: ExitCode) -> None:
        """Tells whoever started the processes of a run how it ended."""
        durable.write_file(self.exit_code_path, f"{code:d}\n".encode())

    def read_exit_code(self) -> ExitCode | None:
        """How the processes say that the run ended; None if they have not said so."""
        try:
            return ExitCode(int(self.exit_code_path.read_text()))
        except (FileNotFoundError, ValueError):
            return None

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Holds the run directory. Raises RunDirectoryBusy if another process does for so long.

        The operating system releases it when the process ends, however it ends.
        """
        with self._locked(fcntl.LOCK_EX, wait_seconds=wait_seconds):
            yield

    @contextmanager
    def lead(self) -> Iterator[None]:
        """Holds the run directory for the processes that this one starts, which `follow`.

        Raises RunDirectoryBusy as long as another trainer, or one of its processes, is left.
        """
        with self._locked(fcntl.LOCK_EX, fcntl.LOCK_SH):
            yield

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Holds it too, for one that was started by a process that leads."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, *kinds: int, wait_seconds: float = 0.0) -> Iterator[None]:
        deadline = time.monotonic() + wait_seconds
        # for reading too: NFS shares no lock on a file that is only written to, see flock(2)
        with self.lock_path.open("a+") as file:
            for kind in kinds:
                while not _try_lock(file, kind):
                    if time.monotonic() >= deadline:
                        raise RunDirectoryBusy(f"another trainer is at work in {self.path.name}")
                    time.sleep(POLL_SECONDS)
            yield

    def sign_lock(self) -> None:
        """Writes into the lock, which this process holds, who holds it."""
        holder = Holder(os.getpid(), platform.node(), process_start(os.getpid()))
        self.lock_path.write_text(json.dumps(asdict(holder)) + "\n")

    def holder(self) -> "Holder | None":
        """Who signed the lock last; None if nobody did."""
        try:
            return Holder(**json.loads(self.lock_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
