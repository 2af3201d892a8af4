"""Trainers without torch for tests of the job queue: scripted, in this process."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.training.events import (
    Body,
    CheckpointWritten,
    Evaluation,
    EventWriter,
    RunStarted,
    StepMetrics,
)
from nanogpt.training.run_directory import STARTED_PREFIX, RunDirectory
from server.dataset_store import DatasetStore
from server.errors import NotFound
from server.jobs.job import JobState
from server.jobs.service import JobService
from server.metrics import Metrics

TINY = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 16,
    "batch_size": 4,
    "max_iters": 20,
    "eval_interval": 10,
    "eval_iters": 2,
    "log_interval": 1,
    "lr_decay_iters": 20,
    "warmup_iters": 2,
    "dropout": 0.0,
    "device": "cpu",
    "dtype": "float32",
    "compile": "off",
}
"""A configuration whose run takes a second."""

SHAPE = ModelConfig(block_size=16, vocab_size=32, n_layer=2, n_head=2, n_embd=32)


def started(max_iters: int = 20) -> RunStarted:
    return RunStarted(SHAPE, 1000, "char", 900, 100, 64, "cpu", "CPU", "float32", 1e9, "measured",
                      max_iters)  # fmt: skip


def step(number: int) -> StepMetrics:
    loss = 4.0 - number / 100
    return StepMetrics(number, loss, 1e-3, 0.5, False, 0.25, 256.0, 0.1, 64 * number, 1 << 20)


def evaluation(number: int, val_loss: float = 3.0) -> Evaluation:
    return Evaluation(number, 2.9, val_loss, True, 2.0)


def checkpoint(number: int) -> CheckpointWritten:
    return CheckpointWritten(number, 3.0, True, 4096, 1000.0 + number)


def record(run: RunDirectory, *bodies: Body) -> None:
    """Appends events to a run's record, as a trainer does."""
    with EventWriter(run.metrics_path) as writer:
        for body in bodies:
            writer.append(body)


class FakeTrainer:
    """Plays a script; its return value is the exit code. A killed one ends with -9."""

    def __init__(self, run: RunDirectory, script: "Script") -> None:
        self.run = run
        self.terminated = asyncio.Event()
        self._play = asyncio.ensure_future(script(self))

    async def wait(self) -> int:
        try:
            return await asyncio.shield(self._play)
        except asyncio.CancelledError:
            if self._play.cancelled():
                return -9
            raise

    def terminate(self) -> None:
        self.terminated.set()

    def kill(self) -> None:
        self._play.cancel()


Script = Callable[[FakeTrainer], Awaitable[int]]


RunLock = AbstractContextManager[None]


class FakeLauncher:
    """Plays the next script at each start, the last one for ever."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.trainers: list[FakeTrainer] = []
        self.abandoned: RunLock | None = None
        """What `kill_abandoned` takes from a trainer of a dead server."""

    def check(self, config: TrainConfig) -> None:
        """Starts anything."""

    async def end_abandoned(self, run: RunDirectory) -> None:
        """Leaves nothing behind."""

    async def start(self, run: RunDirectory) -> FakeTrainer:
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        trainer = FakeTrainer(run, script)
        self.trainers.append(trainer)
        return trainer

    def kill_abandoned(self, run: RunDirectory) -> bool:
        if self.abandoned is None:
            return False
        self.abandoned.__exit__(None, None, None)
        return True


async def succeed(trainer: FakeTrainer) -> int:
    record(trainer.run, started(), step(1), step(2), checkpoint(2))
    return 0


async def crash(trainer: FakeTrainer) -> int:
    return -11


def starts_at(step: int, script: Script) -> Script:
    """Says how many updates were done, as the trainer does, then plays the script."""

    async def begin(trainer: FakeTrainer) -> int:
        with trainer.run.log_path.open("a") as log:
            log.write(f"{STARTED_PREFIX}{step}\n")
        return await script(trainer)

    return begin


async def until_terminated(trainer: FakeTrainer) -> int:
    """Trains one step, then waits for SIGTERM and leaves as asked."""
    record(trainer.run, started(), step(1))
    await trainer.terminated.wait()
    record(trainer.run, checkpoint(1))
    return 75


async def for_ever(trainer: FakeTrainer) -> int:
    """Hears no SIGTERM."""
    await asyncio.Event().wait()
    raise AssertionError


def fails_with(exit_code: int, line: str) -> Script:
    async def script(trainer: FakeTrainer) -> int:
        with trainer.run.log_path.open("a") as log:
            log.write(f"some output\n{line}\n")
        return exit_code

    return script


class Folder:
    """A model on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


class ModelFolders:
    """The models of a data folder, by name only."""

    def __init__(self, data_dir: Path) -> None:
        self._models = data_dir / "models"

    def has(self, name: str) -> bool:
        return (self._models / name).exists()

    def resolve(self, reference: str, field: str = "model") -> Folder:
        if not self.has(reference):
            raise NotFound("model", reference)
        return Folder(self._models / reference)


def publish_name(run: RunDirectory, job_id: str, model_folder: Path) -> None:
    """Stands in for the publication of a model: makes its folder."""
    model_folder.mkdir(parents=True)


async def no_datasets() -> set[str]:
    return set()


def make_dataset(data_dir: Path, name: str = "tiny", text: str | None = None) -> None:
    """A dataset of a few thousand characters."""
    source = data_dir / f"{name}.txt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text or "the quick brown fox jumps over the lazy dog\n" * 100)
    prepare_text(source, data_dir / "datasets" / name, tokenizer="char")


async def open_jobs(data_dir: Path, launcher: object, **options: object) -> JobService:
    """A JobService on a data folder, with a dataset called `tiny`."""
    if not (data_dir / "datasets" / "tiny").exists():
        make_dataset(data_dir)
    defaults: dict[str, object] = {
        "datasets": DatasetStore(data_dir, max_upload_bytes=1 << 20, in_use=no_datasets),
        "models": ModelFolders(data_dir),
        "metrics": Metrics(),
        "max_queued_jobs": 100,
        "max_crashes": 3,
        "publish": publish_name,
        "first_backoff_seconds": 0.001,
    }
    return await JobService.open(data_dir, launcher=launcher, **{**defaults, **options})


async def reached(jobs: JobService, job_id: str, *states: JobState) -> JobState:
    """The first of these states that the job reaches, or the one it ends in."""
    async with jobs.follow(job_id, 1 << 62) as subscription:
        while (news := await subscription.next(30)) is not None:
            state = getattr(news, "state", None)
            if state in states:
                return state
    return (await jobs.report(job_id)).job.state


def tiny_config(**changes: object) -> TrainConfig:
    return TrainConfig.from_mapping({**TINY, **changes})
