"""The loss of both splits, over the same batches every time.

The batches have draws of their own, so evaluating more or less often changes nothing in training.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from nanogpt.config import TrainConfig
from nanogpt.model import GPT
from nanogpt.training.batches import Batches, Stream, to_device
from nanogpt.training.step import Forward, autocast


class Interrupted(Exception):
    """A stop was asked for before the evaluation was complete."""


class Evaluator:
    """Measures a model on fixed batches of the training and the validation split."""

    def __init__(
        self,
        train_tokens: NDArray[np.uint16],
        val_tokens: NDArray[np.uint16],
        config: TrainConfig,
        should_stop: Callable[[], bool],
    ) -> None:
        """Raises BadDataset if a split is too short to crop."""
        shape = (1, config.batch_size, config.block_size)
        self._splits = [
            Batches(train_tokens, shape=shape, seed=config.seed, stream=Stream.EVALUATE_TRAIN),
            Batches(val_tokens, shape=shape, seed=config.seed, stream=Stream.EVALUATE_VAL),
        ]
        self._num_batches = config.eval_iters
        self._should_stop = should_stop

    def __call__(self, model: GPT, forward: Forward, dtype: torch.dtype) -> tuple[float, float]:
        """Mean cross-entropy, in nats, of the training and the validation batches.

        Raises Interrupted as soon as a stop is asked for: an evaluation may last longer than
        whoever asks is ready to wait.
        """
        was_training = model.training
        model.eval()
        try:
            train_loss, val_loss = (
                self._mean_loss(model, forward, dtype, split) for split in self._splits
            )
            return train_loss, val_loss
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _mean_loss(
        self, model: GPT, forward: Forward, dtype: torch.dtype, batches: Batches
    ) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for index in range(self._num_batches):
            if self._should_stop():
                raise Interrupted
            inputs, targets = (to_device(x[0], model.device) for x in batches.at(index))
            with autocast(model.device, dtype):
                _, loss = forward(inputs, targets)
            total += loss.cpu()
        return total.item() / self._num_batches
