"""The learning rate as a pure function of the step. No torch, no state."""

import math

from nanogpt.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that follows `step` updates.

    Linear warm-up, then down to `min_lr` at `lr_decay_iters` in the shape of `lr_schedule`, then
    constant. With `cosine` it is nanoGPT's schedule point for point; without restarts as in
    https://arxiv.org/abs/1608.03983
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if config.lr_schedule == "constant":
        return config.learning_rate
    if step > config.lr_decay_iters:
        return config.min_lr
    height = _height(config, step)  # from 1 to 0
    return config.min_lr + height * (config.learning_rate - config.min_lr)


def _height(config: TrainConfig, step: int) -> float:
    """How much of the way from `min_lr` up to the peak, after warm-up."""
    span = config.lr_decay_iters - config.warmup_iters
    progress = (step - config.warmup_iters) / span
    if config.lr_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if config.lr_schedule == "linear":
        return 1.0 - progress
    # warm-up, stable, decay: https://arxiv.org/abs/2404.06395
    fall = min(float(span), config.wsd_decay_fraction * config.lr_decay_iters)
    return min(1.0, (config.lr_decay_iters - step) / fall)
