"""Copies of the metrics for other programs: Weights & Biases, TensorBoard.

The truth is metrics.jsonl; this is a courtesy. Each copy is made in a thread that the run never
waits for, so neither an error nor a hanging network can stop or slow training.
"""

import importlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nanogpt.config import TrainConfig

CLOSING_SECONDS = 10.0


class Sink(Protocol):
    """Where metrics go. May raise anything, and take its time."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """Hands metrics over to the sinks that the config asks for."""

    def __init__(
        self, config: TrainConfig, run_id: str, run_dir: Path, log: Callable[[str], None]
    ) -> None:
        self._copies: list[_Copy] = []
        if config.wandb_log:
            self._copies.append(_Copy("Weights & Biases", lambda: _Wandb(config, run_id), log))
        if config.tensorboard_log:
            folder = run_dir / "tensorboard"
            self._copies.append(_Copy("TensorBoard", lambda: _TensorBoard(folder), log))

    def add(self, step: int, metrics: dict[str, float | None]) -> None:
        """Copies metrics of one step; those that are None are left out."""
        known = {name: value for name, value in metrics.items() if value is not None}
        for copy in self._copies:
            copy.add(step, known)

    def close(self) -> None:
        """Gives the copies a few seconds to finish."""
        for copy in self._copies:
            copy.close()


class _Copy:
    """One sink in its thread; says once in the log if that does not work."""

    def __init__(
        self, name: str, open_sink: Callable[[], Sink], log: Callable[[str], None]
    ) -> None:
        self._name, self._open, self._log = name, open_sink, log
        self._metrics: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def add(self, step: int, metrics: dict[str, float]) -> None:
        if self._thread.is_alive():
            self._metrics.put((step, metrics))

    def close(self) -> None:
        if self._thread.is_alive():
            self._metrics.put(None)
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            sink = self._open()
            while (item := self._metrics.get()) is not None:
                sink.log(*item)
            sink.close()
        except Exception as error:  # whatever a package may raise: the run goes on without
            self._log(f"no metrics for {self._name}: {type(error).__name__}: {error}")


class _Wandb:
    """https://docs.wandb.ai/ref/python/"""

    def __init__(self, config: TrainConfig, run_id: str) -> None:
        self._run = importlib.import_module("wandb").init(
            project=config.wandb_project,
            name=config.wandb_run_name,
            id=run_id or None,
            resume="allow",
            config=config.to_mapping(),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"iter": step, **metrics}, step=step)  # nanoGPT's name for the step

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    """Event files as `tensorboard --logdir` reads them. https://tensorboardx.readthedocs.io"""

    def __init__(self, folder: Path) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
