"""Keys and values of every running sequence, and attention over them.

One block of memory, allocated once: each slot holds the window of one sequence. The cache knows
slots and positions, not requests; which slot belongs to whom is the scheduler's business.

Shapes: S = slots, H = heads, P = block_size, D = head size, N = tokens of one step, in the order
decodes, then prefills. All N go through the linear layers as one sequence, (1, N, C), so that
each weight is read once a step; only attention takes them apart.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.config import ModelConfig

GATHER_BELOW = 0.25
"""Copying the keys of scattered slots costs about 4 times the attention over them: below this
share of decoding slots it is cheaper than attending over the idle ones between them too."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens to compute: `num_tokens` of them at `start` in the window of `slot`."""

    slot: int
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class KVCache:
    """Storage for `num_slots` windows of block_size tokens."""

    def __init__(
        self, config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layer, num_slots, config.n_head, config.block_size, config.head_size)
        # zeros, not empty: a masked position has weight 0, but 0 times NaN is NaN
        self.keys = _zeros(shape, dtype, device)  # (L, S, H, P, D)
        self.values = _zeros(shape, dtype, device)

    def copy(self, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copies the first `num_tokens` positions of a slot."""
        for tensor in (self.keys, self.values):
            tensor[:, to_slot, :, :num_tokens] = tensor[:, from_slot, :, :num_tokens]

    def clear(self, slot: int) -> None:
        """Forgets what a failed computation may have left: NaN would spoil the next owner."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.zeros, which on a CPU writes all of it: gigabytes that most slots never use. These
    are pages of the system's, which take neither time nor memory until they are written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


class CachedAttention:
    """Attention of one step, to be passed to the model as `attend`: stores, then attends.

    `decodes` are spans of one token, by slot; each token of `prefills` sees the cached tokens
    before its span and the span up to itself.
    """

    def __init__(self, cache: KVCache, decodes: list[Span], prefills: list[Span]) -> None:
        device = cache.keys.device
        self._cache = cache
        self._num_decodes = len(decodes)
        self._prefills = [(span, _causal_mask(span, device)) for span in prefills]
        if decodes:
            self._plan_decodes(decodes, device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one layer, (1, H, N, D), from q, k, v of the same shape."""
        dtype, count = q.dtype, self._num_decodes
        keys, values = self._cache.keys[layer], self._cache.values[layer]  # (S, H, P, D)
        q, k, v = (x[0].to(keys.dtype) for x in (q, k, v))  # (H, N, D)
        outputs = []
        if count:
            keys[self._slots, :, self._positions] = k[:, :count].transpose(0, 1)
            values[self._slots, :, self._positions] = v[:, :count].transpose(0, 1)
            outputs.append(self._decode(q[:, :count], keys, values))
        first = count
        for span, mask in self._prefills:
            last = first + span.num_tokens
            keys[span.slot, :, span.start : span.end] = k[:, first:last]
            values[span.slot, :, span.start : span.end] = v[:, first:last]
            known = (span.slot, slice(None), slice(0, span.end))
            outputs.append(
                F.scaled_dot_product_attention(
                    q[None, :, first:last],
                    keys[known][None],
                    values[known][None],
                    attn_mask=mask,
                    is_causal=mask is None,
                )[0]
            )
            first = last
        y = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        return y[None].to(dtype)

    def _plan_decodes(self, decodes: list[Span], device: torch.device) -> None:
        """Chooses the rows of keys and values to attend over, once for all layers.

        Rows are the first slots, idle ones included and their results thrown away, unless few of
        them decode: then rows are copies of the decoding slots.
        """
        slots = [span.slot for span in decodes]
        self._slots = torch.tensor(slots, device=device)
        self._positions = torch.tensor([span.start for span in decodes], device=device)
        self._used = max(span.end for span in decodes)
        self._num_rows = slots[-1] + 1
        self._rows: slice | Tensor = slice(0, self._num_rows)
        if len(slots) < GATHER_BELOW * self._num_rows:
            self._rows, self._num_rows = self._slots, len(slots)
        self._idle_rows = len(slots) < self._num_rows
        self._mask: Tensor | None = None  # added to scores; (rows, 1, 1, used)
        if self._idle_rows or any(span.end < self._used for span in decodes):
            last = torch.zeros(slots[-1] + 1, dtype=torch.long, device=device)
            last[self._slots] = self._positions
            beyond = torch.arange(self._used, device=device) > last[self._rows, None]
            mask = torch.zeros(beyond.shape, dtype=self._cache.keys.dtype, device=device)
            self._mask = mask.masked_fill_(beyond, float("-inf"))[:, None, None]

    def _decode(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One query per decoding slot: (H, decodes, D) of q of that shape."""
        q = q.transpose(0, 1)[:, :, None]  # (decodes, H, 1, D)
        if self._idle_rows:
            all_rows = q.new_zeros((self._num_rows, *q.shape[1:]))
            all_rows[self._slots] = q
            q = all_rows
        keys = keys[self._rows, :, : self._used]  # (rows, H, used, D)
        values = values[self._rows, :, : self._used]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask)
        if self._idle_rows:
            y = y[self._slots]
        return y[:, :, 0].transpose(0, 1)


TILE_TOKENS = 64
"""Queries of positions in one tile see as many keys, those up to the tile's end."""

ROW_BLOCK = 4
"""In matrix products of a multiple of this many rows, a row does not depend on how many there are:
MKL has other kernels for the 1 to 3 that are left over. Measured on AVX-512, with 1 and 2 threads;
`is_batch_invariant` in torch_runner.py checks it where a model is loaded."""


class InvariantAttention:
    """Attention of one step in which each token's result is a function of its sequence alone, bit
    for bit, whatever shares the step and however a prompt was cut into chunks.

    Shapes decide how a kernel adds up, so each token gets the same ones wherever it turns up: its
    keys are those up to the end of its tile of positions, the ones after it masked, and a tile has
    a multiple of ROW_BLOCK queries. The spans come in the order of the step's tokens.
    """

    def __init__(self, cache: KVCache, spans: list[Span]) -> None:
        device = cache.keys.device
        self._cache = cache
        slots = [span.slot for span in spans for _ in range(span.num_tokens)]
        positions = [position for span in spans for position in range(span.start, span.end)]
        self._slots = torch.tensor(slots, device=device)
        self._positions = torch.tensor(positions, device=device)
        self._tiles = [
            _Tile(cache, slots[0], len(slots), first, positions)
            for first, slots, positions in _tiles(spans)
        ]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one layer, (1, H, N, D), from q, k, v of the same shape."""
        dtype = q.dtype
        keys, values = self._cache.keys[layer], self._cache.values[layer]  # (S, H, P, D)
        count = len(self._slots)  # the rest fills the last block of rows
        padding = q.shape[2] - count
        q, k, v = (x[0, :, :count].to(keys.dtype) for x in (q, k, v))  # (H, tokens, D)
        keys[self._slots, :, self._positions] = k.transpose(0, 1)
        values[self._slots, :, self._positions] = v.transpose(0, 1)
        outputs = [tile.attend(q, keys, values) for tile in self._tiles]
        y = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        if padding:
            y = F.pad(y, (0, 0, 0, padding))
        return y[None].to(dtype)


class _Tile:
    """Queries of the same tile of positions in neighbouring slots, as many in each."""

    def __init__(
        self, cache: KVCache, slot: int, num_slots: int, first: int, positions: list[list[int]]
    ) -> None:
        """`first` is where its tokens begin among those of the step; `positions` are those of each
        slot's queries."""
        self._rows = slice(slot, slot + num_slots)
        self._num_queries = len(positions[0])
        self._tokens = slice(first, first + num_slots * self._num_queries)
        block_size = cache.keys.shape[3]
        tile = positions[0][0] // TILE_TOKENS
        self._num_keys = min(block_size, (tile + 1) * TILE_TOKENS)
        self._padding = -self._num_queries % ROW_BLOCK
        device = cache.keys.device
        last = torch.tensor([p + [p[-1]] * self._padding for p in positions], device=device)
        beyond = torch.arange(self._num_keys, device=device) > last[:, None, :, None]
        self._mask = torch.zeros(beyond.shape, dtype=cache.keys.dtype, device=device)
        self._mask.masked_fill_(beyond, float("-inf"))  # added to scores; (rows, 1, queries, keys)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Its tokens' attention (H, tokens, D) out of q (H, N, D)."""
        heads, _, size = q.shape
        q = q[:, self._tokens].reshape(heads, -1, self._num_queries, size).transpose(0, 1)
        if self._padding:
            q = F.pad(q, (0, 0, 0, self._padding))
        y = F.scaled_dot_product_attention(
            q,
            keys[self._rows, :, : self._num_keys],
            values[self._rows, :, : self._num_keys],
            attn_mask=self._mask,
        )  # (rows, H, queries, D)
        return y[:, :, : self._num_queries].transpose(0, 1).reshape(heads, -1, size)


def _tiles(spans: list[Span]) -> Iterator[tuple[int, list[int], list[list[int]]]]:
    """For each tile where its tokens begin, its slots, and the positions in each of them.

    A span is cut where tiles end. Single tokens of one tile in slots side by side go together.
    """
    first, slots, positions = 0, list[int](), list[list[int]]()
    for span in spans:
        start = span.start
        while start < span.end:
            end = min(span.end, (start // TILE_TOKENS + 1) * TILE_TOKENS)
            joins = (
                slots
                and end - start == len(positions[0]) == 1
                and span.slot == slots[-1] + 1
                and start // TILE_TOKENS == positions[0][0] // TILE_TOKENS
            )
            if slots and not joins:
                yield first, slots, positions
                first += sum(map(len, positions))
                slots, positions = [], []
            slots.append(span.slot)
            positions.append(list(range(start, end)))
            start = end
    yield first, slots, positions


def _causal_mask(span: Span, device: torch.device) -> Tensor | None:
    """Which of the window's first `end` tokens each token of the span sees, (num_tokens, end).

    None if the span is the whole window so far: plain causal attention has a faster path.
    """
    if span.start == 0:
        return None
    shape = (span.num_tokens, span.end)
    return torch.ones(shape, dtype=torch.bool, device=device).tril(span.start)
