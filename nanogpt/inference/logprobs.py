"""Log-probabilities and ranks of tokens under the model's raw distribution. No torch.

Raw means before bias, penalties, temperature and filters, over the tokenizer's vocabulary.
"""

from dataclasses import dataclass, field

import numpy as np

from nanogpt.inference.sampler import Floats, top_k


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token; `logprob` is the natural logarithm of its probability."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest; equally likely tokens rank by id."""
    top: list[Alternative] = field(default_factory=list)
    """The likeliest tokens, likeliest first, as many as were asked for."""


def token_logprob(logits: Floats, token_id: int, num_top: int) -> TokenLogprob:
    """Of one token under raw float32 logits (V,), with its `num_top` likeliest alternatives."""
    chosen, peak = logits[token_id], logits.max()
    log_total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    rank = 1 + np.count_nonzero(logits > chosen) + np.count_nonzero(logits[:token_id] == chosen)
    top: list[Alternative] = []
    if num_top > 0:
        ids = top_k(logits, num_top)  # ascending, so a stable sort leaves equals by id
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        top = [Alternative(int(id), float(logits[id]) - log_total) for id in ids]
    return TokenLogprob(token_id, float(chosen) - log_total, int(rank), top)
