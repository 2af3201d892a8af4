"""The learning rate as a pure function of the step. No torch, no state."""

import math

from nanogpt.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that follows `step` updates.

    Linear warm-up, half a cosine down to `min_lr`, then constant. nanoGPT's schedule point for
    point; without restarts as in https://arxiv.org/abs/1608.03983
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step > config.lr_decay_iters:
        return config.min_lr
    progress = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
    height = 0.5 * (1.0 + math.cos(math.pi * progress))  # from 1 to 0
    return config.min_lr + height * (config.learning_rate - config.min_lr)
