"""Tells what happens in a run: to its record, to trackers, to whoever reads the log.

It measures speed from the durations it is given, and decides nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nanogpt import device, flops
from nanogpt.training.events import (
    Action,
    CheckpointWritten,
    Divergence,
    Evaluation,
    EventWriter,
    RunStarted,
    Sample,
    StepMetrics,
)
from nanogpt.training.step import StepResult
from nanogpt.training.tracking import Tracking

StepBody = StepMetrics | Evaluation | Sample | CheckpointWritten | Divergence


@dataclass(frozen=True, slots=True)
class _News:
    """Something that happened, not recorded yet."""

    body: StepBody
    figures: dict[str, float | None] | None
    rollbacks: int
    time: float


class Report:
    """One run's news. What the record has already is logged again and not recorded again.

    While a checkpoint is being written, events are held back: its own has to come first, and only
    if it was written. A crash in between loses none, since the resumed run offers them again.
    """

    def __init__(self, events: EventWriter, tracking: Tracking, log: Callable[[str], None]) -> None:
        self._events = events
        self._tracking = tracking
        self._log = log
        self._durations: list[float] = []
        """Of the steps since the last step event, in seconds."""
        self._held: list[_News] | None = None
        self.rollbacks = 0
        """How often the run has gone back so far; part of each event's place in the record."""

    def started(self, run: RunStarted) -> None:
        self._run = run
        self._flops_per_token = flops.training_flops_per_token(run.model_config)
        self._events.append(run)
        shape, peak = run.model_config, run.peak_flops
        several = f"{shape.n_member} networks, each " if shape.n_member > 1 else ""
        self._log(
            f"{run.parameter_count:,} weights: {several}{shape.arch}, {shape.n_layer} layers, "
            f"{shape.n_head} heads, width {shape.n_embd}, block {shape.block_size}, "
            f"vocabulary {shape.vocab_size}"
        )
        self._log(
            f"{run.train_tokens:,} training and {run.val_tokens:,} validation tokens "
            f"({run.tokenizer}); {run.tokens_per_step:,} tokens a step, {run.max_iters:,} steps"
        )
        self._log(
            f"{run.device} ({run.device_name}), {run.dtype}, peak "
            + ("unknown" if peak is None else f"{peak / 1e9:,.0f} GFLOP/s ({run.peak_source})")
        )

    def timed(self, seconds: float) -> None:
        """Counts a step that took so long."""
        self._durations.append(seconds)

    def stepped(
        self, step: int, learning_rate: float, result: StepResult, clipped_steps: int
    ) -> None:
        """Tells of the latest step, with the mean duration of those since the last time.

        `clipped_steps` of those were clipped.
        """
        seconds = sum(self._durations) / len(self._durations)
        self._durations.clear()
        tokens_per_second = self._run.tokens_per_step / seconds
        metrics = StepMetrics(
            step=step,
            loss=result.loss,
            learning_rate=learning_rate,
            grad_norm=result.grad_norm,
            clipped=result.clipped,
            step_seconds=seconds,
            tokens_per_second=tokens_per_second,
            mfu=flops.mfu(self._flops_per_token * tokens_per_second, self._run.peak_flops),
            tokens=step * self._run.tokens_per_step,
            memory_bytes=device.peak_memory_bytes(torch.device(self._run.device)),
            clipped_steps=clipped_steps,
        )
        mfu = "" if metrics.mfu is None else f", {metrics.mfu:.1%} of peak"
        self._log(
            f"step {step}/{self._run.max_iters}: loss {result.loss:.4f}, rate {learning_rate:.2e}, "
            f"gradient {result.grad_norm:.3f}, {seconds * 1e3:.1f} ms, "
            f"{tokens_per_second:,.0f} tokens/s{mfu}"
        )
        self.record(
            metrics,
            {
                "loss": metrics.loss,
                "lr": learning_rate,
                "grad_norm": metrics.grad_norm,
                "tokens_per_second": tokens_per_second,
                "mfu": None if metrics.mfu is None else 100 * metrics.mfu,
            },
        )

    def evaluated(self, evaluation: Evaluation, samples: Sequence[Sample]) -> None:
        self._log(
            f"step {evaluation.step}: train loss {evaluation.train_loss:.4f}, "
            f"val loss {evaluation.val_loss:.4f}{' (best)' if evaluation.is_best else ''}, "
            f"{evaluation.seconds:.1f} s"
        )
        for sample in samples:
            self._log(f"step {sample.step}: {sample.prompt!r} is continued with {sample.text!r}")
        losses: dict[str, float | None] = {
            "train/loss": evaluation.train_loss,
            "val/loss": evaluation.val_loss,
        }
        self.record(evaluation, losses)
        for sample in samples:
            self.record(sample)

    def diverged(self, event: Divergence) -> None:
        """Tells of a step that was left out, or that the run goes back."""
        what = f"loss {event.loss}, gradient {event.grad_norm}"
        if event.action == Action.SKIPPED:
            self._log(f"step {event.step + 1}: left out: {what}")
        else:
            self._log(
                f"step {event.step}: back to step {event.rolled_back_to_step} with "
                f"{event.learning_rate_factor:g} of the learning rate: {what}"
            )
        self.record(event)

    def record(self, body: StepBody, figures: dict[str, float | None] | None = None) -> None:
        """Records an event, and tracks its figures if the record did not have it yet."""
        news = _News(body, figures, self.rollbacks, time.time())
        if self._held is None:
            self._record(news)
        else:
            self._held.append(news)

    def hold(self) -> None:
        """Keeps events in memory from now on, in order, until `release`."""
        self._held = []

    def release(self, first: CheckpointWritten | None, rollbacks: int) -> None:
        """Records the event `first`, of a run that had gone back so often, then those held back."""
        held, self._held = self._held or [], None
        if first is not None:
            self._record(_News(first, None, rollbacks, time.time()))
        for news in held:
            self._record(news)

    def _record(self, news: _News) -> None:
        event = self._events.append(news.body, news.rollbacks, news.time)
        if event is not None and news.figures is not None:
            self._tracking.add(news.body.step, news.figures)

    def sync(self) -> None:
        """Waits until all that was recorded is on the disk. Raises OSError."""
        self._events.sync()
