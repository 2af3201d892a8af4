"""The runner of PyTorch: any device, the network of training with a KV cache for attention.

It knows nothing of requests, see runner.py.
"""

from collections.abc import Sequence

import torch

from nanogpt.inference.kv_cache import CachedAttention, KVCache, Span
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.sampler import Floats
from nanogpt.model import GPT


class TorchRunner:
    """A Runner over a model, which it puts into evaluation mode.

    `vocab_size` is the tokenizer's. Raises ValueError if the model has fewer tokens.
    """

    def __init__(self, model: GPT, vocab_size: int, *, num_slots: int = 32) -> None:
        if vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens; this model has {model.config.vocab_size}"
            )
        self._model = model.eval()
        self.num_slots = num_slots
        self.block_size = model.config.block_size
        self.vocab_size = vocab_size
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
        spans = [Span(chunk.slot, chunk.start, len(chunk.token_ids)) for chunk in order]
        num_decodes = sum(span.num_tokens == 1 for span in spans)
        device = self._model.device
        hidden = self._model.hidden(  # (1, N, C): each weight is read once for all tokens
            torch.tensor([tokens], device=device),
            torch.tensor([positions], device=device),
            CachedAttention(self._cache, spans[:num_decodes], spans[num_decodes:]),
        )[0]
        rows = [
            row
            for chunk in chunks
            for row in range(ends[chunk.slot] - chunk.num_logits, ends[chunk.slot])
        ]
        logits = self._model.lm_head(hidden[rows])[:, : self.vocab_size]
        return logits.float().cpu().numpy()

    @torch.inference_mode()
    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """See Runner."""
        self._cache.copy(from_slot, to_slot, num_tokens)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """See Runner."""
        self._cache.clear(slot)
