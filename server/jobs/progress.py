"""What a run's recorded events amount to: how far it is and how long it will take. No I/O."""

from dataclasses import dataclass, replace

from nanogpt.config import TrainConfig
from nanogpt.training.events import (
    Action,
    CheckpointWritten,
    Divergence,
    Evaluation,
    Event,
    RunStarted,
    StepMetrics,
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A run after its first `sequence` events."""

    sequence: int = 0
    step: int = 0
    """Optimizer updates done, as far as the events tell."""
    run: RunStarted | None = None
    latest_step: StepMetrics | None = None
    latest_evaluation: Evaluation | None = None
    best_val_loss: float | None = None
    """Lowest validation loss so far, in nats."""
    checkpoint_step: int | None = None
    """Step of the newest checkpoint."""
    checkpoint_time: float | None = None
    """When it was recorded, in unix seconds."""

    def after(self, event: Event) -> "Progress":
        """The run one event later."""
        body = event.body
        now = replace(self, sequence=event.sequence)
        if isinstance(body, RunStarted):
            return replace(now, run=body)
        if isinstance(body, Divergence) and body.action == Action.ROLLED_BACK:
            # the steps since then are taken again; the lowest loss may not be reached again
            return replace(now, step=body.rolled_back_to_step or 0)
        now = replace(now, step=max(self.step, body.step))
        if isinstance(body, StepMetrics):
            return replace(now, latest_step=body)
        if isinstance(body, CheckpointWritten):
            return replace(now, checkpoint_step=body.step, checkpoint_time=event.time)
        if isinstance(body, Evaluation):
            best = self.best_val_loss
            if best is None or body.val_loss < best:
                best = body.val_loss
            return replace(now, latest_evaluation=body, best_val_loss=best)
        return now

    def remaining_seconds(self, config: TrainConfig) -> float | None:
        """Estimated time until the last step, evaluations included; None before the first step."""
        if self.latest_step is None:
            return None
        last_step = config.max_iters if self.run is None else self.run.max_iters
        steps = max(0, last_step - self.step)
        seconds = steps * self.latest_step.step_seconds
        if self.latest_evaluation is not None:
            last = self.latest_evaluation.step
            evaluations = -(-(last_step - last) // config.eval_interval)  # rounded up
            seconds += evaluations * self.latest_evaluation.seconds
        return seconds
