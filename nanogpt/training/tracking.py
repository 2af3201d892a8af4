"""A copy of the metrics for Weights & Biases, if its package is installed.

The truth is metrics.jsonl; this is a courtesy. All of it happens in a thread that the run never
waits for, so neither an error nor a hanging network can stop or slow training.
"""

import importlib
import queue
import threading
from collections.abc import Callable

from nanogpt.config import TrainConfig

CLOSING_SECONDS = 10.0


class Tracking:
    """Hands metrics over to Weights & Biases; says once in the log if that does not work."""

    def __init__(self, config: TrainConfig, run_id: str, log: Callable[[str], None]) -> None:
        self._config = config
        self._run_id = run_id
        self._log = log
        self._metrics: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        if config.wandb_log:
            self._thread.start()

    def add(self, step: int, metrics: dict[str, float | None]) -> None:
        """Copies metrics of one step; those that are None are left out."""
        if self._thread.is_alive():
            known = {name: value for name, value in metrics.items() if value is not None}
            self._metrics.put({"iter": step, **known})  # nanoGPT's name for the step

    def close(self) -> None:
        """Gives the copy a few seconds to finish."""
        if self._thread.is_alive():
            self._metrics.put(None)
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            wandb = importlib.import_module("wandb")
            run = wandb.init(
                project=self._config.wandb_project,
                name=self._config.wandb_run_name,
                id=self._run_id or None,
                resume="allow",
                config=self._config.to_mapping(),
            )
            while (metrics := self._metrics.get()) is not None:
                run.log(metrics, step=int(metrics["iter"]))
            run.finish()
        except Exception as error:  # whatever the package may raise: the run goes on without
            self._log(f"no metrics for Weights & Biases: {type(error).__name__}: {error}")
