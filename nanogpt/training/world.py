"""What the processes that train one run agree on, for a run of one process: nothing.

A `World` says what a trainer has to ask instead of deciding by itself, so that the same loop runs
in one process or in many; `distributed.py` has the one of many. There, every method marked
*together* must be called by all processes, in the same order: what one of them finds out alone,
such as that it should stop, goes through `any` before anybody acts on it. Only the first process
writes files.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nanogpt.config import TrainConfig
from nanogpt.ensemble import Network
from nanogpt.option import InvalidConfig
from nanogpt.training.batches import EVERYTHING, Share

T = TypeVar("T")

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Inputs and targets, (B, T) each, to logits (B, T, V) and the mean loss."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those that train a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of its machine: the number of its GPU."""

    def share(self, config: TrainConfig) -> Share:
        """The part of each step's batch that is this process's: all parts are equally large.

        Whole micro-batches if they go round, else some sequences of each. Raises InvalidConfig.
        """
        if found := config.share_violations(self.size):
            raise InvalidConfig(found)
        if self.size == 1:
            return EVERYTHING
        if config.gradient_accumulation_steps % self.size == 0:
            return self._part(config.gradient_accumulation_steps), slice(None)
        return slice(None), self._part(config.batch_size)

    def _part(self, length: int) -> slice:
        part = length // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


ALONE = Place()


class World:
    """All processes that train a run, as one of them sees them; here it is alone."""

    def __init__(self, place: Place = ALONE) -> None:
        self.place = place

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.place.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process. Together."""
        return flag

    def sum(self, value: float) -> float:
        """The sum over all processes. Together."""
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, of a tensor on any device. Together."""
        return value

    def of_first(self, value: T) -> T:
        """The first process's value. Together."""
        return value

    def check_equal(self, value: object, what: str) -> None:
        """Raises RuntimeError in all processes if they do not have the same value. Together."""
        if self.any(value != self.of_first(value)):
            raise RuntimeError(f"the processes do not see the same {what}: is the folder shared?")

    def spread(self, model: Network, sharding: str, device: torch.device) -> None:
        """With `fsdp` keeps only this process's share of each weight, and that on the device, where
        the whole may have no room. Before the optimizer."""

    def synchronize(
        self,
        model: Network,
        forward: Forward,
        example: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> Forward:
        """`forward`, such that a backward pass averages the gradients of all processes. Together.

        It is `model` or a compiled form of it; `example` is a micro-batch, (B, T) each, and `dtype`
        the arithmetic type of the steps.
        """
        return forward

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around each micro-batch: only the last one's backward pass exchanges gradients."""
        return nullcontext()

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, with the shares of all processes put together. Together.

        Only the first process gets them, the others get nothing.
        """
        return tensors

    def whole_number(self, value: Tensor) -> Tensor:
        """A number that may be spread over the processes, such as a norm. Together."""
        return value

    def part_like(self, weight: Tensor, tensor: Tensor) -> Tensor:
        """What this process keeps of a whole tensor that belongs to that weight of its model."""
        return tensor

    def of_each(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every process's tensors, named apart, for the first process. Together."""
        return tensors

    def own(self, tensors: dict[str, Tensor], name: str) -> Tensor | None:
        """This process's tensor among those that `of_each` named apart; None if there is none."""
        return tensors.get(self._own_name(name, self.rank))

    def diverge_draws(self, seed: int, step: int) -> None:
        """Gives all but the first process random numbers of their own: dropout must differ."""

    @staticmethod
    def _own_name(name: str, rank: int) -> str:
        """`rng.cpu` of process 0, as if it were alone, and `rng.cpu.1` of process 1."""
        return name if rank == 0 else f"{name}.{rank}"
