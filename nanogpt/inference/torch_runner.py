"""The runner of PyTorch: any device, the network of training with a KV cache for attention.

It knows nothing of requests, see runner.py.
"""

from collections.abc import Sequence

import numpy as np
import torch

from nanogpt.inference.kv_cache import (
    ROW_BLOCK,
    CachedAttention,
    InvariantAttention,
    KVCache,
    Span,
)
from nanogpt.inference.runner import ChunkInput, Runner
from nanogpt.inference.sampler import Floats
from nanogpt.model import GPT, Attend


class TorchRunner:
    """A Runner over a model, which it puts into evaluation mode.

    `vocab_size` is the tokenizer's. If `batch_invariant`, logits of a token are a function of its
    sequence alone, bit for bit: neither neighbours nor the cuts between chunks change them. Raises
    ValueError if the model has fewer tokens.
    """

    def __init__(
        self, model: GPT, vocab_size: int, *, num_slots: int = 32, batch_invariant: bool = False
    ) -> None:
        if vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens; this model has {model.config.vocab_size}"
            )
        self._model = model.eval()
        self.num_slots = num_slots
        self.block_size = model.config.block_size
        self.vocab_size = vocab_size
        self.batch_invariant = batch_invariant
        # on CPUs bfloat16 attention was measured 3 to 5 times slower than float32
        dtype = torch.float32 if model.device.type == "cpu" else model.lm_head.weight.dtype
        self._cache = KVCache(model.config, num_slots, dtype, model.device)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[ChunkInput]) -> Floats:
        """Float32 logits (rows, V), see Runner."""
        # the order of attention: single tokens first, by slot
        order = sorted(chunks, key=lambda chunk: (len(chunk.token_ids) > 1, chunk.slot))
        tokens: list[int] = []
        positions: list[int] = []
        ends: dict[int, int] = {}  # of each slot's tokens among all
        for chunk in order:
            tokens += chunk.token_ids
            positions += range(chunk.start, chunk.start + len(chunk.token_ids))
            ends[chunk.slot] = len(tokens)
        rows = [
            row
            for chunk in chunks
            for row in range(ends[chunk.slot] - chunk.num_logits, ends[chunk.slot])
        ]
        num_rows = len(rows)
        if self.batch_invariant:
            for numbers in (tokens, positions, rows):
                numbers += [0] * (-len(numbers) % ROW_BLOCK)
        device = self._model.device
        hidden = self._model.hidden(  # (1, N, C): each weight is read once for all tokens
            torch.tensor([tokens], device=device),
            torch.tensor([positions], device=device),
            self._attention(order),
        )[0]
        logits = self._model.logits(hidden[rows])[:num_rows, : self.vocab_size]
        return logits.float().cpu().numpy()

    def _attention(self, chunks: list[ChunkInput]) -> Attend:
        spans = [Span(chunk.slot, chunk.start, len(chunk.token_ids)) for chunk in chunks]
        if self.batch_invariant:
            return InvariantAttention(self._cache, spans)
        num_decodes = sum(span.num_tokens == 1 for span in spans)
        return CachedAttention(self._cache, spans[:num_decodes], spans[num_decodes:])

    @torch.inference_mode()
    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """See Runner."""
        self._cache.copy(from_slot, to_slot, num_tokens)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """See Runner."""
        self._cache.clear(slot)


def is_batch_invariant(runner: Runner) -> bool:
    """Whether logits are those of the sequence alone on this machine, by a small experiment.

    Uses the first slots, which must be free.
    """
    length = min(13, runner.block_size)
    tokens = [index % runner.vocab_size for index in range(length)]
    alone = runner.forward([ChunkInput(0, 0, tokens, length)])
    beside = list(range(1, min(8, runner.num_slots)))
    rows: list[Floats] = []
    for start, end in ((0, 5), (5, 6), (6, 7), (7, length)):
        if start < length:
            chunks = [ChunkInput(slot, start, tokens[start : start + 1]) for slot in beside]
            part = tokens[start : min(end, length)]
            rows.append(runner.forward([*chunks, ChunkInput(0, start, part, len(part))]))
    return np.array_equal(np.concatenate(rows), alone)
