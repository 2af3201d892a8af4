"""Recorded events of the running job, as Prometheus metrics. It reads no files."""

import math

from nanogpt.training.events import CheckpointWritten, Event, StepMetrics
from server.jobs.progress import Progress
from server.metrics import Metrics


class Telemetry:
    """Feeds the training metrics with one job's events at a time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._step = 0
        self._tokens = 0

    def begin(self, recorded: Progress) -> None:
        """A job begins or goes on; what is recorded already does not count again."""
        latest = recorded.latest_step
        self._step = latest.step if latest else 0
        self._tokens = latest.tokens if latest else 0

    def observe(self, event: Event) -> None:
        """Takes in one new event."""
        metrics, body = self._metrics, event.body
        if isinstance(body, StepMetrics):
            metrics.train_steps_total.inc(body.step - self._step)
            metrics.train_tokens_total.inc(body.tokens - self._tokens)
            self._step, self._tokens = body.step, body.tokens
            metrics.train_tokens_per_second.set(body.tokens_per_second)
            metrics.train_mfu_ratio.set(math.nan if body.mfu is None else body.mfu)
            metrics.train_step_seconds.observe(body.step_seconds)
            metrics.train_loss.set(body.loss)
            metrics.train_learning_rate.set(body.learning_rate)
            metrics.train_grad_norm.set(body.grad_norm)
            metrics.train_last_step_timestamp_seconds.set(event.time)
        elif isinstance(body, CheckpointWritten):
            metrics.train_checkpoint_last_success_timestamp_seconds.set(body.create_time)

    def end(self) -> None:
        """Nothing trains any more: speeds are unknown, the last losses stay."""
        self._metrics.train_tokens_per_second.set(math.nan)
        self._metrics.train_mfu_ratio.set(math.nan)
