"""Log-probabilities and ranks of the raw distribution."""

import math

import numpy as np
import pytest

from nanogpt.inference.logprobs import token_logprob

LOGITS = np.array([1, 3, 2, 3, -math.inf], np.float32)
LOG_TOTAL = math.log(math.e + 2 * math.e**3 + math.e**2)


@pytest.mark.parametrize(("token_id", "rank"), [(1, 1), (3, 2), (2, 3), (0, 4), (4, 5)])
def test_logprob_and_rank(token_id: int, rank: int) -> None:
    """Equals rank by id; what is impossible has minus infinity."""
    found = token_logprob(LOGITS, token_id, num_top=0)
    assert (found.token_id, found.rank, found.top) == (token_id, rank, [])
    assert found.logprob == pytest.approx(float(LOGITS[token_id]) - LOG_TOTAL)


def test_alternatives_are_the_likeliest_whatever_was_chosen() -> None:
    top = token_logprob(LOGITS, 0, num_top=3).top
    assert [alternative.token_id for alternative in top] == [1, 3, 2]
    expected = [3 - LOG_TOTAL, 3 - LOG_TOTAL, 2 - LOG_TOTAL]
    assert [alternative.logprob for alternative in top] == pytest.approx(expected)


def test_there_are_no_more_alternatives_than_tokens() -> None:
    assert len(token_logprob(LOGITS, 0, num_top=20).top) == 5


def test_probabilities_sum_to_1_however_large_the_logits() -> None:
    logits = np.array([1000, 1001, 999], np.float32)
    total = sum(math.exp(token_logprob(logits, id, num_top=0).logprob) for id in range(3))
    assert total == pytest.approx(1)
