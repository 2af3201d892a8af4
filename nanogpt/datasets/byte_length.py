"""How much text the tokens of a dataset stand for, in bytes of UTF-8."""

import numpy as np
from numpy.typing import NDArray

from nanogpt.tokenizer import Tokenizer


def mean_token_bytes(tokenizer: Tokenizer, tokens: NDArray[np.uint16]) -> float | None:
    """Bytes of text for each token, on average; None if the tokens are not of this vocabulary.

    End-of-text is a mark between texts, of none of them.
    """
    counts = np.bincount(tokens)
    if len(counts) > tokenizer.vocab_size:
        return None
    total = sum(
        int(counts[token]) * len(tokenizer.token_bytes(int(token)))
        for token in np.flatnonzero(counts)
        if token != tokenizer.end_of_text_id
    )
    return total / len(tokens) if total else None
