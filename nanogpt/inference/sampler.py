"""Logits to token ids, in numpy: the same answer on every device, and no torch.

The order is that of protos/nanogpt/v1/inference.proto, SamplingParams: bias and bans, repetition
penalty, presence and frequency penalties, temperature, min_p, top_k, top_p, draw. Arithmetic is
float32; running totals are float64.

A draw is a pure function of (seed, sample index, position), `uniform` below, so that a request's
tokens depend on nothing else in the batch. The token drawn is the first, in order of ids, at which
the running total of the surviving probabilities exceeds the draw times their total: this is exact
and, unlike a walk from the likeliest down, sorts nothing.

Shapes: R = rows, V = the tokenizer's vocabulary (padding of the embedding is cut off before).
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanogpt.inference.sampling_params import SamplingParams

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

DRAWS_AT_ONCE = 64  # constructing a generator costs 30 times a draw
CDF_BLOCK = 256  # tokens totalled at once: V / 256 + 256 running totals instead of V
NUCLEUS_GUESS = 1024  # likeliest tokens tried first for top_p, then all


class Row:
    """What the sampler knows of one sequence: parameters and what was sampled so far."""

    def __init__(
        self,
        params: SamplingParams,
        sample_index: int = 0,
        prompt_ids: ArrayLike = (),
        ending_ids: tuple[int, ...] = (),
        min_new_tokens: int = 0,
    ) -> None:
        self.params = params
        self.sample_index = sample_index
        self.position = 0
        """Tokens sampled so far."""
        self.output_counts: Counter[int] = Counter()
        """How often tokens are in the output; followed for penalties only."""
        self.seen_ids: Ids = np.asarray(prompt_ids, np.intp)
        """Tokens in the prompt or the output, some twice; followed for repetition_penalty only."""
        self._penalizes = params.repetition_penalty != 1 or bool(
            params.presence_penalty or params.frequency_penalty
        )
        self._ending_ids = ending_ids
        self._min_new_tokens = min_new_tokens

    def push(self, token_id: int) -> None:
        """Records that `token_id` was sampled."""
        self.position += 1
        if not self._penalizes:
            return
        if self.params.repetition_penalty != 1 and token_id not in self.output_counts:
            self.seen_ids = np.append(self.seen_ids, token_id)
        self.output_counts[token_id] += 1

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that may not be sampled yet."""
        return self._ending_ids if self.position < self._min_new_tokens else ()

    def filters(self, vocab_size: int) -> bool:
        """Whether tokens may be dropped before the draw."""
        params = self.params
        return (
            (params.top_k or vocab_size) < vocab_size
            or (params.min_p or 0.0) > 0
            or (params.top_p or 1.0) < 1
        )


def sample(logits: Floats, rows: Sequence[Row]) -> list[int | None]:
    """One token id per row, None where the logits are not finite, from logits (R, V).

    Overwrites `logits` with the adjusted ones. Temperature 0 takes the likeliest token, the lowest
    id among equals, and draws nothing.
    """
    for i, row in enumerate(rows):
        _adjust(logits[i], row)
    chosen = logits.argmax(axis=-1)  # of equals the first; of NaN and anything, NaN
    peaks = logits[np.arange(len(rows)), chosen]
    finite = np.isfinite(peaks)

    plain: list[int] = []
    for i, row in enumerate(rows):
        if row.params.temperature == 0 or not finite[i]:
            continue
        if row.filters(logits.shape[1]):
            chosen[i] = _draw_filtered(logits[i], peaks[i], row)
        else:
            plain.append(i)
    if plain:
        kept = logits if len(plain) == len(rows) else logits[plain]
        temperatures = np.stack([_temperature(rows[i].params) for i in plain])
        weights = _weights(kept, peaks[plain, None], temperatures[:, None])
        draws = np.array([_draw(rows[i]) for i in plain])
        chosen[plain] = _inverse_cdf(weights, draws)
    return [int(id) if ok else None for id, ok in zip(chosen, finite, strict=True)]


def uniform(seed: int, sample_index: int, position: int) -> float:
    """The draw in [0, 1) for the token at `position` of sample `sample_index`.

    It is made of the upper 53 bits of word number `position` of the Philox4x64-10 stream whose key
    is the two words (seed, sample_index). https://doi.org/10.1145/2063384.2063405
    """
    block, offset = divmod(position, DRAWS_AT_ONCE)
    return _uniforms(seed, sample_index, block)[offset]


@lru_cache(maxsize=1024)
def _uniforms(seed: int, sample_index: int, block: int) -> list[float]:
    words_per_count = 4
    philox = np.random.Philox(
        key=seed | sample_index << 64, counter=block * DRAWS_AT_ONCE // words_per_count
    )
    words: NDArray[np.uint64] = philox.random_raw(DRAWS_AT_ONCE)
    return ((words >> np.uint64(11)) * 2.0**-53).tolist()


def top_k(values: NDArray[Any], k: int) -> Ids:
    """Indices of the k largest of `values` (V,), ascending; among equals the lowest are taken."""
    size = len(values)
    if k >= size:
        return np.arange(size)
    edge = np.partition(values, size - k)[size - k]  # the k-th largest
    ids = np.flatnonzero(values >= edge)
    surplus = len(ids) - k
    if surplus > 0:
        equal_to_edge = np.flatnonzero(values[ids] == edge)
        ids = np.delete(ids, equal_to_edge[-surplus:])
    return ids


def _adjust(logits: Floats, row: Row) -> None:
    """Bias, bans and penalties, in place, on logits (V,)."""
    params = row.params
    if params.logit_bias:
        logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    if row.banned_ids:
        logits[list(row.banned_ids)] = -np.inf
    if params.repetition_penalty != 1:
        # https://arxiv.org/abs/1909.05858, with the sign taken into account
        seen, penalty = row.seen_ids, np.float32(params.repetition_penalty)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if row.output_counts and (params.presence_penalty or params.frequency_penalty):
        counts = np.array(list(row.output_counts.values()), np.float32)
        logits[list(row.output_counts)] -= (
            np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
        )


def _temperature(params: SamplingParams) -> np.float32:
    """Never 0, not even for a temperature that float32 rounds to 0."""
    return np.maximum(np.float32(params.temperature), np.finfo(np.float32).tiny)


def _weights(logits: Floats, peak: Any, temperature: Any) -> Floats:
    """Unnormalized probabilities; the likeliest token's is 1."""
    weights = logits - peak
    with np.errstate(over="ignore"):  # a quotient of -inf is a weight of 0, as it should be
        weights /= temperature
    return np.exp(weights, out=weights)


def _draw(row: Row) -> float:
    return uniform(row.params.seed, row.sample_index, row.position)


def _draw_filtered(logits: Floats, peak: np.float32, row: Row) -> int:
    """A token of logits (V,) that min_p, top_k and top_p let through.

    top_k goes first because it leaves little to do. That changes nothing: both it and min_p keep
    the likeliest tokens, so the tokens that both keep do not depend on their order.
    """
    params = row.params
    ids = np.arange(len(logits)) if params.top_k is None else top_k(logits, params.top_k)
    weights = _weights(logits[ids], peak, _temperature(params))
    if params.min_p is not None:
        weights[weights < np.float32(params.min_p)] = 0
    if params.top_p is not None and params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    return int(ids[_inverse_cdf(weights[None], np.array([_draw(row)]))[0]])


def _nucleus(weights: Floats, top_p: float) -> Ids:
    """Ascending indices of the smallest likeliest set whose share of all weights reaches top_p.

    https://arxiv.org/abs/1904.09751. Only the size of the set has to be found: which of equal
    tokens are in it is top_k's rule.
    """
    needed = top_p * weights.sum(dtype=np.float64)
    likeliest = weights
    if len(weights) > NUCLEUS_GUESS:
        guess = np.partition(weights, -NUCLEUS_GUESS)[-NUCLEUS_GUESS:]
        if guess.sum(dtype=np.float64) >= needed:
            likeliest = guess  # spares sorting the rest
    totals = np.cumsum(np.sort(likeliest)[::-1], dtype=np.float64)
    return top_k(weights, int(np.searchsorted(totals, needed)) + 1)


def _inverse_cdf(weights: Floats, draws: NDArray[np.float64]) -> Ids:
    """First index (R,) at which the running total of weights (R, V) exceeds draw times total.

    Looks for the block of tokens first and then inside it.
    """
    size = weights.shape[1]
    rows = np.arange(len(weights))
    starts = np.arange(0, size, CDF_BLOCK)
    blocks = np.add.reduceat(weights, starts, axis=1, dtype=np.float64)  # (R, V / 256)
    totals = blocks.cumsum(axis=1)
    wanted = draws * totals[:, -1]
    block = (totals > wanted[:, None]).argmax(axis=1)
    wanted -= totals[rows, block] - blocks[rows, block]
    # past the end of the last block the last token repeats, and is never reached
    ids = np.minimum(starts[block][:, None] + np.arange(CDF_BLOCK), size - 1)  # (R, 256)
    inside = np.take_along_axis(weights, ids, axis=1).cumsum(axis=1, dtype=np.float64)
    # two ways of adding differ in the last bit: the draw must stay below this one's total
    wanted = np.minimum(wanted, np.nextafter(inside[:, -1], 0))
    return ids[rows, (inside > wanted[:, None]).argmax(axis=1)]
