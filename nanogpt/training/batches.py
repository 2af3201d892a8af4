"""Which tokens each step sees: random crops of a split, a pure function of (seed, stream, step).

There is no iterator state to save or lose, and no draw from torch's generator: the data of step N
is the same whether the run came there at once or through a restart. It does not know what the
tokens mean or what is done with them.

Shapes: A = micro-batches, B = sequences, T = block_size.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanogpt.datasets.dataset import BadDataset


class Stream(IntEnum):
    """Independent draws from one seed."""

    TRAIN = 0
    EVALUATE_TRAIN = 1
    EVALUATE_VAL = 2
    SAMPLE = 3


Share = tuple[slice, slice]
"""Which micro-batches of a step, and which of their sequences."""

EVERYTHING: Share = (slice(None), slice(None))


class Batches:
    """Crops of T + 1 tokens: T inputs, and as targets the same shifted by one."""

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        *,
        shape: tuple[int, int, int],
        seed: int,
        stream: Stream,
        share: Share = EVERYTHING,
    ) -> None:
        """`shape` is (A, B, T), of which `share` is read.

        Raises BadDataset if there are fewer than T + 1 tokens.
        """
        if len(tokens) < shape[-1] + 1:
            split = "validation" if stream == Stream.EVALUATE_VAL else "training"
            raise BadDataset(
                f"the {split} split has {len(tokens)} tokens, but block_size {shape[-1]} needs at "
                f"least {shape[-1] + 1}"
            )
        self._tokens = tokens
        self._shape = shape
        self._seed = seed
        self._stream = stream
        self._share = share

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the update that follows `step` updates: (A, B, T) int64 each.

        Starts are uniform in 0..N-T-1, with replacement, as nanoGPT draws them. All of a step are
        drawn together, so neither accumulation nor sharing changes what a step sees.
        """
        A, B, T = self._shape
        generator = np.random.default_rng((self._seed, self._stream, step))
        starts = generator.integers(0, len(self._tokens) - T, size=(A, B, 1))[self._share]
        crops = torch.from_numpy(self._tokens[starts + np.arange(T + 1)].astype(np.int64))
        return crops[..., :-1], crops[..., 1:]


class Prefetcher:
    """Steps of batches in order, on a device, the next one being read while this one is used."""

    def __init__(self, batches: Batches, device: torch.device, first_step: int) -> None:
        self._batches = batches
        self._device = device
        self._step = first_step
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[tuple[Tensor, Tensor]] = self._thread.submit(self._read, first_step)

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next step, (A, B, T) int64 each."""
        inputs, targets = self._next.result()
        self._step += 1
        self._next = self._thread.submit(self._read, self._step)
        return to_device(inputs, self._device), to_device(targets, self._device)

    def seek(self, step: int) -> None:
        """Goes on with that step, forwards or backwards."""
        self._step = step
        self._next = self._thread.submit(self._read, step)

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self._batches.at(step)
        if self._device.type == "mps":  # which a second thread may not use, see
            return inputs, targets  # https://github.com/pytorch/pytorch/issues/197805
        return to_device(inputs, self._device), to_device(targets, self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
