"""The sampler against a slow oracle, its draws against their distribution."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.inference.sampler import Floats, Row, sample, top_k, uniform
from nanogpt.inference.sampling_params import SamplingParams

many_examples = settings(max_examples=300)


def oracle(logits: Floats, row: Row, prompt: list[int], output: list[int], bans: set[int]) -> int:
    """One token at a time, in the order that the protocol documents."""
    params, float32 = row.params, np.float32
    adjusted = {}
    for token, logit in enumerate(logits):
        if token in bans:
            continue
        logit = logit + float32(params.logit_bias.get(token, 0.0))
        if token in prompt or token in output:
            penalty = float32(params.repetition_penalty)
            logit = logit / penalty if logit > 0 else logit * penalty
        if token in output:
            logit -= float32(params.presence_penalty) + float32(params.frequency_penalty) * float32(
                output.count(token)
            )
        adjusted[token] = float32(logit)
    ranking = sorted(adjusted, key=lambda token: (-adjusted[token], token))
    if params.temperature == 0:
        return ranking[0]
    scores = (np.array(list(adjusted.values())) - adjusted[ranking[0]]) / float32(
        params.temperature
    )
    weights = dict(zip(adjusted, np.exp(scores), strict=True))
    if params.min_p is not None:
        ranking = [token for token in ranking if weights[token] >= float32(params.min_p)]
    if params.top_k is not None:
        ranking = ranking[: params.top_k]
    if params.top_p is not None and params.top_p < 1:
        wanted = params.top_p * math.fsum(float(weights[token]) for token in ranking)
        total, kept = 0.0, []
        for token in sorted(ranking, key=lambda token: (-weights[token], token)):
            kept.append(token)
            total += float(weights[token])
            if total >= wanted:
                break
        ranking = kept
    wanted = uniform(params.seed, row.sample_index, row.position) * math.fsum(
        float(weights[token]) for token in ranking
    )
    total = 0.0
    for token in sorted(ranking):
        total += float(weights[token])
        if total > wanted:
            return token
    raise AssertionError("the draw is below the total")


# from a small set, so that ties are everywhere; negative and positive for the penalties
tied_logits = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=12)
free_logits = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Row, list[int], list[int], set[int]]:
    logits = np.array(draw(st.one_of(tied_logits, free_logits)), np.float32)
    tokens = st.integers(0, len(logits) - 1)

    def maybe(strategy: st.SearchStrategy[float]) -> float | None:
        return draw(st.none() | strategy)

    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
        top_k=draw(st.none() | st.integers(1, 15)),
        top_p=maybe(st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0])),
        min_p=maybe(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, -1.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.4, 0.9])),
        logit_bias=draw(st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=3)),
        seed=draw(st.integers(0, (1 << 64) - 1)),
    )
    prompt, output = draw(st.lists(tokens, max_size=4)), draw(st.lists(tokens, max_size=6))
    bans = draw(st.sets(tokens, max_size=len(logits) - 1))
    row = Row(params, draw(st.integers(0, 63)), prompt, tuple(bans), min_new_tokens=100)
    for token in output:
        row.push(token)
    return logits, row, prompt, output, bans


@many_examples
@given(st.lists(cases(), min_size=1, max_size=4))
def test_agrees_with_the_oracle(
    found: list[tuple[Floats, Row, list[int], list[int], set[int]]],
) -> None:
    for logits, row, prompt, output, bans in found:
        assert sample(logits[None].copy(), [row]) == [oracle(logits, row, prompt, output, bans)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=50),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.02),
        SamplingParams(top_k=300, top_p=0.8, min_p=0.001),
    ],
    ids=str,
)
def test_agrees_with_the_oracle_on_a_large_vocabulary(params: SamplingParams) -> None:
    """Several blocks of the distribution, and more likely tokens than are guessed at first."""
    rng = np.random.default_rng(0)
    for scale in (0.2, 1.0, 3.0):
        logits = (rng.standard_normal((8, 3001)) * scale).astype(np.float32)
        rows = [Row(params, sample_index) for sample_index in range(8)]
        expected = [oracle(logits[i], row, [], [], set()) for i, row in enumerate(rows)]
        assert sample(logits.copy(), rows) == expected


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    params = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0),
        SamplingParams(seed=3, top_k=7),
        SamplingParams(seed=4, temperature=0.5, logit_bias={3: 2.0}),
        SamplingParams(seed=5, top_p=0.5),
        SamplingParams(seed=6, repetition_penalty=2.0),
    ]
    for _ in range(20):
        logits = rng.standard_normal((len(params), 700)).astype(np.float32)
        rows = [Row(p, prompt_ids=range(300)) for p in params]
        alone = [sample(logits[[i]], [row])[0] for i, row in enumerate(rows)]
        order = rng.permutation(len(params))
        together = sample(logits[order], [rows[i] for i in order])
        assert together == [alone[i] for i in order]


def chi_square(params: SamplingParams, logits: Floats, draws: int = 5000) -> tuple[float, int]:
    """Statistic and degrees of freedom of drawn frequencies against the exact distribution."""
    rows = [Row(params) for _ in range(draws)]
    for position, row in enumerate(rows):
        row.position = position
    counts = Counter(sample(np.tile(logits, (draws, 1)), rows))
    weights = np.exp(logits.astype(np.float64) / params.temperature)
    kept = np.argsort(-weights, kind="stable")[: params.top_k]
    expected = weights[kept] / weights[kept].sum() * draws
    assert set(counts) <= set(kept.tolist())
    observed = np.array([counts[token] for token in kept.tolist()])
    return float(((observed - expected) ** 2 / expected).sum()), len(kept) - 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1337),
        SamplingParams(temperature=0.6, seed=2),
        SamplingParams(top_k=5, seed=3),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(5).standard_normal(20).astype(np.float32)
    statistic, freedom = chi_square(params, logits)
    # mean `freedom`, variance twice that; the seeds are fixed, so this never flickers
    assert abs(statistic - freedom) < 3 * math.sqrt(2 * freedom)


def test_draws_are_words_of_the_documented_stream() -> None:
    for seed, sample_index in [(0, 0), (1337, 1), ((1 << 64) - 1, 63)]:
        philox = np.random.Philox(key=np.array([seed, sample_index], np.uint64))
        expected = [(int(word) >> 11) / 2**53 for word in philox.random_raw(300)]
        assert [uniform(seed, sample_index, position) for position in range(300)] == expected


def test_streams_differ() -> None:
    draws = {uniform(seed, index, p) for seed in range(9) for index in range(9) for p in range(99)}
    assert len(draws) == 9 * 9 * 99
    assert all(0 <= draw < 1 for draw in draws)


def test_greedy_takes_the_lowest_of_equals_whatever_the_filters() -> None:
    logits = np.array([[1, 5, 5, 0]], np.float32)
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, top_k=3, top_p=0.1, min_p=1.0),
    ):
        assert sample(logits.copy(), [Row(params)]) == [1]


def test_greedy_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_draw(*_: object) -> float:
        raise AssertionError("a number was drawn")

    monkeypatch.setattr("nanogpt.inference.sampler.uniform", no_draw)
    assert sample(np.zeros((1, 4), np.float32), [Row(SamplingParams(temperature=0))]) == [0]


def test_greedy_heeds_penalties() -> None:
    row = Row(SamplingParams(temperature=0, repetition_penalty=2.0), prompt_ids=[0, 1])
    assert sample(np.array([[3, -1, 1.6]], np.float32), [row]) == [2]  # 1.5, -2, 1.6


def test_a_token_in_prompt_and_output_is_penalized_once() -> None:
    row = Row(SamplingParams(temperature=0, repetition_penalty=2.0), prompt_ids=[1, 1])
    for token_id in (1, 1, 0):
        row.push(token_id)
    logits = np.array([[3, 4, 1]], np.float32)
    assert sample(logits, [row]) == [1]
    assert logits.tolist() == [[1.5, 2, 1]]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7, 100])
def test_top_k_is_exact_among_equals(k: int) -> None:
    values = np.array([1, 3, 2, 3, 2, 2], np.float32)
    ranking = [1, 3, 2, 4, 5, 0]
    assert top_k(values, k).tolist() == sorted(ranking[:k])


def survivors(params: SamplingParams, logits: list[float]) -> set[int | None]:
    row = Row(params)
    found = set()
    for _ in range(400):
        found.add(sample(np.array([logits], np.float32), [row])[0])
        row.position += 1
    return found


def test_which_tokens_each_filter_keeps() -> None:
    logits = [math.log(p) for p in (0.1, 0.4, 0.25, 0.25)]
    assert survivors(SamplingParams(), logits) == {0, 1, 2, 3}
    assert survivors(SamplingParams(top_k=2), logits) == {1, 2}
    assert survivors(SamplingParams(top_p=0.39), logits) == {1}
    assert survivors(SamplingParams(top_p=0.41), logits) == {1, 2}  # equals go by id
    assert survivors(SamplingParams(top_p=1.0), logits) == {0, 1, 2, 3}
    assert survivors(SamplingParams(min_p=0.5), logits) == {1, 2, 3}
    assert survivors(SamplingParams(min_p=1.0), logits) == {1}
    # top_p looks at what top_k left: 0.4 of 0.65 is 0.62
    assert survivors(SamplingParams(top_k=2, top_p=0.6), logits) == {1}
    assert survivors(SamplingParams(top_k=2, top_p=0.63), logits) == {1, 2}


def test_top_p_of_1_keeps_the_tail() -> None:
    """Rounding of the running total must not cost the least likely tokens their chance."""
    logits = np.full((1, 50257), -8.0, np.float32)
    logits[0, 0] = 0
    whole, unset = Row(SamplingParams(top_p=1.0)), Row(SamplingParams())
    for position in range(100):
        whole.position = unset.position = position
        assert sample(logits.copy(), [whole]) == sample(logits.copy(), [unset])


def test_top_k_beyond_the_vocabulary_changes_nothing() -> None:
    logits = np.random.default_rng(2).standard_normal((1, 65)).astype(np.float32)
    for seed in range(50):
        params = SamplingParams(seed=seed)
        expected = sample(logits.copy(), [Row(params)])
        assert sample(logits.copy(), [Row(replace(params, top_k=200))]) == expected


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([[0.0, 1.0, 0.999]], np.float32)
    for temperature in (1e-6, 1e-40, 1e-300):
        assert sample(logits.copy(), [Row(SamplingParams(temperature=temperature))]) == [1]


def test_ending_tokens_are_banned_until_enough_are_sampled() -> None:
    row = Row(SamplingParams(temperature=0), ending_ids=(2,), min_new_tokens=2)
    chosen = []
    for _ in range(4):
        token = sample(np.array([[0, 1, 9]], np.float32), [row])[0]
        assert token is not None
        chosen.append(token)
        row.push(token)
    assert chosen == [1, 1, 2, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_choose_nothing(bad: float) -> None:
    for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=2)):
        logits = np.array([[0, 1, 9], [0, bad, 1], [-math.inf, 3, 1]], np.float32)
        rows = [Row(SamplingParams(temperature=0)), Row(params), Row(SamplingParams(temperature=0))]
        assert sample(logits, rows) == [2, None, 1]
