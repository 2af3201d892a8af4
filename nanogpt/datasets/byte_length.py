"""How much text the tokens of a dataset stand for, in bytes of UTF-8."""

import numpy as np
from numpy.typing import NDArray

from nanogpt.datasets.dataset import MAX_VOCAB_SIZE
from nanogpt.tokenizer import Tokenizer

PIECE_TOKENS = 1 << 16


def mean_token_bytes(tokenizer: Tokenizer, tokens: NDArray[np.uint16]) -> float | None:
    """Bytes of text for each token, on average; None if the tokens are not of this vocabulary.

    End-of-text is a mark between texts, of none of them.
    """
    counts = np.zeros(MAX_VOCAB_SIZE, np.int64)
    for first in range(0, len(tokens), PIECE_TOKENS):  # at once, it would copy them in 64 bits
        counts += np.bincount(tokens[first : first + PIECE_TOKENS], minlength=MAX_VOCAB_SIZE)
    if counts[tokenizer.vocab_size :].any():
        return None
    total = sum(
        int(counts[token]) * len(tokenizer.token_bytes(int(token)))
        for token in np.flatnonzero(counts)
        if token != tokenizer.end_of_text_id
    )
    return total / len(tokens) if total else None
