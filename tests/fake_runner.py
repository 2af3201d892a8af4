"""A runner without a network: logits are a function of position and token, at no cost."""

from collections.abc import Sequence

import numpy as np

from nanogpt.inference.runner import ChunkInput


class FakeRunner:
    """Checks what every runner may rely on, and computes nothing."""

    def __init__(self, vocab_size: int, *, num_slots: int = 4, block_size: int = 64) -> None:
        self.num_slots = num_slots
        self.block_size = block_size
        self.vocab_size = vocab_size
        self._rows = np.random.default_rng(0).normal(size=(97, vocab_size)).astype(np.float32)

    def forward(self, chunks: Sequence[ChunkInput]) -> np.ndarray:
        assert len({chunk.slot for chunk in chunks}) == len(chunks) > 0
        rows = []
        for chunk in chunks:
            end = chunk.start + len(chunk.token_ids)
            assert chunk.start < end <= self.block_size
            assert 0 <= chunk.num_logits <= len(chunk.token_ids)
            assert all(0 <= token < self.vocab_size for token in chunk.token_ids)
            first = len(chunk.token_ids) - chunk.num_logits
            for offset in range(first, len(chunk.token_ids)):
                rows.append((31 * (chunk.start + offset) + chunk.token_ids[offset]) % 97)
        return self._rows[rows]

    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        assert from_slot != to_slot and 0 < num_tokens < self.block_size

    def clear(self, slot: int) -> None:
        assert 0 <= slot < self.num_slots
