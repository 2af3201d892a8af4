"""The runner of an ensemble: each member computes by itself, and their mean probability answers.

It knows nothing of what its runners compute with. No torch.
"""

import math
from collections.abc import Sequence

import numpy as np

from nanogpt.inference.runner import ChunkInput, Runner
from nanogpt.inference.sampler import Floats


class EnsembleRunner:
    """A Runner over those of the members, which have equally many slots, positions and tokens."""

    def __init__(self, members: Sequence[Runner]) -> None:
        self._members = members
        self.num_slots = members[0].num_slots
        self.block_size = members[0].block_size
        self.vocab_size = members[0].vocab_size

    def forward(self, chunks: Sequence[ChunkInput]) -> Floats:
        """Logarithms of the mean probabilities (rows, V), see Runner."""
        with np.errstate(invalid="ignore"):  # what is not finite is seen by whoever draws from it
            first, *others = (_log_softmax(member.forward(chunks)) for member in self._members)
            for found in others:
                np.logaddexp(first, found, out=first)
        first -= math.log(len(self._members))
        return first

    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """See Runner."""
        for member in self._members:
            member.copy(from_slot, to_slot, num_tokens)

    def clear(self, slot: int) -> None:
        """See Runner."""
        for member in self._members:
            member.clear(slot)


def _log_softmax(logits: Floats) -> Floats:
    """In place, of each row (rows, V)."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
