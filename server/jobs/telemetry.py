"""Recorded events of running jobs, as Prometheus metrics. It reads no files.

Several jobs may run at a time: their counters and speeds add up, and of losses the latest is shown.
"""

import math

from nanogpt.training.events import CheckpointWritten, Event, StepMetrics
from server.jobs.progress import Progress
from server.metrics import Metrics


class Telemetry:
    """The training metrics, fed by one RunTelemetry for each running job."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._latest: dict[RunTelemetry, StepMetrics] = {}

    def begin(self, recorded: Progress) -> "RunTelemetry":
        """A job begins or goes on; what is recorded already does not count again."""
        return RunTelemetry(self, recorded)

    def show_speed(self, run: "RunTelemetry", step: StepMetrics | None) -> None:
        """Takes in how fast one job is, None once it runs no more; unknown is NaN, not zero."""
        if step is None:
            self._latest.pop(run, None)
        else:
            self._latest[run] = step
        steps = list(self._latest.values())
        speeds = [step.tokens_per_second for step in steps]
        shares = [step.mfu for step in steps if step.mfu is not None]
        self.metrics.train_tokens_per_second.set(sum(speeds) if speeds else math.nan)
        self.metrics.train_mfu_ratio.set(sum(shares) if shares else math.nan)


class RunTelemetry:
    """One running job."""

    def __init__(self, all_runs: Telemetry, recorded: Progress) -> None:
        self._all_runs = all_runs
        latest = recorded.latest_step
        self._step = latest.step if latest else 0
        self._tokens = latest.tokens if latest else 0

    def observe(self, event: Event) -> None:
        """Takes in one new event."""
        metrics, body = self._all_runs.metrics, event.body
        if isinstance(body, StepMetrics):
            metrics.train_steps_total.inc(max(0, body.step - self._step))
            metrics.train_tokens_total.inc(max(0, body.tokens - self._tokens))
            self._step, self._tokens = body.step, body.tokens
            self._all_runs.show_speed(self, body)
            metrics.train_step_seconds.observe(body.step_seconds)
            metrics.train_loss.set(body.loss)
            metrics.train_learning_rate.set(body.learning_rate)
            metrics.train_grad_norm.set(body.grad_norm)
            metrics.train_last_step_timestamp_seconds.set(event.time)
        elif isinstance(body, CheckpointWritten):
            metrics.train_checkpoint_last_success_timestamp_seconds.set(body.create_time)

    def end(self) -> None:
        """It trains no more: its speed no longer counts, the last losses stay."""
        self._all_runs.show_speed(self, None)
