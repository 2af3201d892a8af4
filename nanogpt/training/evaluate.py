"""The loss of both splits, over the same batches every time.

The batches have draws of their own, so evaluating more or less often changes nothing in training.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.ensemble import Network
from nanogpt.training.batches import Batches, Stream, to_device
from nanogpt.training.step import autocast
from nanogpt.training.world import Forward, World


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
        world: World | None = None,
    ) -> None:
        """The processes of a `world` take turns with the batches, and each gets both losses.

        Raises BadDataset if a split is too short to crop.
        """
        shape = (1, config.batch_size, config.block_size)
        self._train = Batches(
            train_tokens, shape=shape, seed=config.seed, stream=Stream.EVALUATE_TRAIN
        )
        self._val = Batches(val_tokens, shape=shape, seed=config.seed, stream=Stream.EVALUATE_VAL)
        self._windows = Windows(val_tokens, shape[1:]) if config.eval_whole_split else None
        self._num_batches = config.eval_iters
        self._should_stop = should_stop
        self._world = world or World()

    def __call__(self, model: Network, forward: Forward, dtype: torch.dtype) -> tuple[float, float]:
        """Mean cross-entropy, in nats, of training batches and of the validation split.

        Raises Interrupted as soon as a stop is asked for: an evaluation may last longer than
        whoever asks is ready to wait.
        """
        was_training = model.training
        model.eval()
        try:
            val_batches = self._windows or self._draw(self._val)
            return (
                self._mean_loss(model, forward, dtype, self._draw(self._train)),
                # the last batch of windows is smaller: not worth compiling for
                self._mean_loss(model, model if self._windows else forward, dtype, val_batches),
            )
        finally:
            model.train(was_training)

    def _draw(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self._num_batches):
            inputs, targets = batches.at(index)
            yield inputs[0], targets[0]

    @torch.no_grad()
    def _mean_loss(
        self,
        model: Network,
        forward: Forward,
        dtype: torch.dtype,
        batches: Iterable[tuple[Tensor, Tensor]],
    ) -> float:
        """Mean over all sequences of all batches, (B, T) each."""
        total, num_sequences = torch.zeros((), dtype=torch.float64), 0
        for (inputs, targets), counts in self._turns(batches):
            if self._should_stop():
                raise Interrupted
            with autocast(model.device, dtype):
                _, loss = forward(to_device(inputs, model.device), to_device(targets, model.device))
            if counts:
                total += loss.cpu() * len(inputs)
                num_sequences += len(inputs)
        return self._world.sum(total.item()) / self._world.sum(num_sequences)

    def _turns(
        self, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[tuple[Tensor, Tensor], bool]]:
        """This process's batches, and whether they count.

        All processes get equally many, since a model that is spread needs them all: who has nothing
        to do in the last round repeats a batch, which does not count.
        """
        remaining, rank = iter(batches), self._world.rank
        while turns := list(islice(remaining, self._world.size)):
            counts = rank < len(turns)
            yield turns[rank if counts else -1], counts


class Windows:
    """A split cut into sequences that do not overlap, in order; fewer than T tokens are left."""

    def __init__(self, tokens: NDArray[np.uint16], shape: tuple[int, int]) -> None:
        """`shape` is (B, T): sequences in a batch, tokens in a sequence."""
        self._tokens, (self._batch_size, self._length) = tokens, shape

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, (B, T) int64 each; the last batch may be smaller."""
        B, T = self._batch_size, self._length
        num_windows = (len(self._tokens) - 1) // T
        for first in range(0, num_windows, B):
            last = min(first + B, num_windows)
            span = torch.from_numpy(self._tokens[first * T : last * T + 1].astype(np.int64))
            yield span[:-1].view(-1, T), span[1:].view(-1, T)
