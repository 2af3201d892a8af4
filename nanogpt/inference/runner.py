"""What an engine asks of a network: to run tokens through it, one forward pass a step. No torch.

A runner owns weights and the keys and values of a fixed number of slots. Each slot holds the window
of one sequence, at positions from 0; the runner knows slots and positions, and neither requests nor
tokens that were there before. All numbers that depend on a device, a kernel or a precision are
behind this seam; scheduling, sampling and text are in front of it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from nanogpt.inference.sampler import Floats


class ChunkInput(NamedTuple):
    """Consecutive tokens of one slot to compute, and how many of them need logits."""

    slot: int
    start: int
    """Position of the first of them: the slot holds as many tokens already, and whatever it holds
    beyond is to be forgotten. `start + len(token_ids)` is at most `block_size`."""
    token_ids: list[int]
    """At least one, each in [0, vocab_size)."""
    num_logits: int = 0
    """Logits are wanted of the last `num_logits` tokens, in [0, len(token_ids)]."""


class Runner(Protocol):
    """Weights and slots. Used by one thread at a time, not always by the same."""

    @property
    def num_slots(self) -> int:
        """Windows that are kept, numbered from 0."""

    @property
    def block_size(self) -> int:
        """Longest window, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens that have logits: those of the tokenizer, without padding."""

    def forward(self, chunks: Sequence[ChunkInput]) -> Floats:
        """Computes and stores the tokens of all chunks, at least one, each of another slot.

        Each token attends to its slot's tokens up to itself. Returns float32 logits (rows, V): for
        each chunk, in the order given, the rows of its last `num_logits` tokens. The caller owns
        the array and may overwrite it. If this raises, what the slots of these chunks hold is not
        defined.
        """

    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Makes the first `num_tokens` tokens of a slot those of another one too."""

    def clear(self, slot: int) -> None:
        """Forgets what a failed computation may have left: NaN would spoil the next owner."""
