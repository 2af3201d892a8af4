"""When a run ends: after so many steps, tokens, epochs or seconds, or when its losses say so.

Knows the clock and the run's progress. What is done at the end is the trainer's business.
"""

import math
import time

from nanogpt.config import TrainConfig
from nanogpt.training.run_directory import ExitCode
from nanogpt.training.snapshot import Progress
from nanogpt.training.world import World


class Limits:
    """The limits of one run, and its clock, which goes on from where an earlier attempt left it."""

    def __init__(self, config: TrainConfig, train_tokens: int, world: World) -> None:
        """The processes of a `world` end together."""
        self._config = config
        self._world = world
        self.last_step = last_step(config, train_tokens)
        self._first_step, self._earlier_seconds = 0, 0.0
        self._started = time.perf_counter()

    def go_on(self, first_step: int, earlier_seconds: float) -> None:
        """This attempt begins after so many steps, which took so long."""
        self._first_step, self._earlier_seconds = first_step, earlier_seconds

    def seconds(self) -> float:
        """Duration of the run over all attempts, without what a crash undid."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def time_is_up(self, progress: Progress) -> bool:
        """Whether it is for one of the processes; all of them have to ask.

        An attempt that begins too late still takes a step, unless its losses are known.
        """
        if self._config.max_seconds == 0:
            return False
        is_new = progress.step > self._first_step or progress.step == progress.evaluated_step
        return self._world.any(is_new and self.seconds() >= self._config.max_seconds)

    def ending(self, progress: Progress, time_is_up: bool) -> ExitCode | None:
        """How the run ends now, or None if it goes on."""
        config = self._config
        if config.eval_only or progress.step >= config.max_iters:
            return ExitCode.DONE
        patience, target = config.early_stop_patience, config.target_val_loss
        if 0 < patience <= progress.stale_evaluations:
            return ExitCode.EARLY_STOPPED
        if target > 0 and progress.val_loss is not None and progress.val_loss <= target:
            return ExitCode.EARLY_STOPPED
        if progress.step >= self.last_step or time_is_up:
            return ExitCode.LIMIT_REACHED
        return None


def last_step(config: TrainConfig, train_tokens: int) -> int:
    """Steps after which the first of the limits on steps, tokens and epochs is reached."""
    last = config.max_iters
    if config.max_tokens:
        last = min(last, -(-config.max_tokens // config.tokens_per_step))  # rounded up
    if config.max_epochs:
        steps = config.max_epochs * train_tokens / config.tokens_per_step
        last = math.ceil(min(last, steps))  # which may be infinitely many
    return last
