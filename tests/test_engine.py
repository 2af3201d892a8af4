"""The engine against the plain forward pass, and against neighbours, cancels and failures."""

import gc
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_runner import FakeRunner
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.inference.engine import Engine, NonFiniteLogits
from nanogpt.inference.events import Delta, Event, Failed, Finished, Prefilled, Started
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.torch_runner import TorchRunner
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

TOKENIZER = CharTokenizer("\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
BLOCK_SIZE = 24
# the vocabulary is padded: ids from 54 on have no text and must never be sampled
CONFIG = ModelConfig(BLOCK_SIZE, 64, n_layer=2, n_head=4, n_embd=32, dropout=0.1)
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model() -> GPT:
    """Random weights, large enough that the likeliest token stands out."""
    torch.manual_seed(1)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def request(
    id: str = "r",
    prompt: str = "Hello",
    sampling: SamplingParams = GREEDY,
    num_samples: int = 1,
    logprobs: bool = False,
    top_logprobs: int = 0,
    prompt_logprobs: int | None = None,
    **stopping: Any,
) -> Request:
    stopping = {"max_new_tokens": 12, **stopping}
    ids = TOKENIZER.encode(prompt)
    return Request(
        id,
        ids,
        sampling,
        StoppingParams(**stopping),
        num_samples,
        logprobs,
        top_logprobs,
        prompt_logprobs,
    )


def engine_of(
    model: GPT, *, num_slots: int = 32, batch_invariant: bool = False, **options: Any
) -> Engine:
    runner = TorchRunner(
        model, TOKENIZER.vocab_size, num_slots=num_slots, batch_invariant=batch_invariant
    )
    return Engine(runner, TOKENIZER, **options)


class Transcript:
    """What a reader of the events knows; checks that they come in the promised order."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cached: dict[str, int] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprob]] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.text: dict[tuple[str, int], str] = {}
        self.logprobs: dict[tuple[str, int], list[TokenLogprob]] = {}
        self.finished: dict[tuple[str, int], Finished] = {}
        self.failed: dict[str, BaseException] = {}

    def read(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.request_id not in self.failed
            if isinstance(event, Started):
                assert event.request_id not in self.started
                self.started.append(event.request_id)
                continue
            assert event.request_id in self.started
            if isinstance(event, Failed):
                self.failed[event.request_id] = event.error
                continue
            if isinstance(event, Prefilled):
                assert event.request_id not in self.cached
                self.cached[event.request_id] = event.cached_tokens
                self.prompt_logprobs[event.request_id] = event.prompt_logprobs
                continue
            assert event.request_id in self.cached
            key = (event.request_id, event.sample_index)
            assert key not in self.finished
            if isinstance(event, Delta):
                self.tokens.setdefault(key, []).extend(event.token_ids)
                self.text[key] = self.text.get(key, "") + event.text
                self.logprobs.setdefault(key, []).extend(event.logprobs)
            else:
                self.finished[key] = event


def run(model: GPT, *requests: Request, **options: Any) -> Transcript:
    """Everything that the requests, added at once, bring about."""
    engine = engine_of(model, **options)
    transcript = Transcript()
    for added in requests:
        engine.add(added)
    while engine.has_work():
        transcript.read(engine.step().events)
    assert engine.num_running == engine.num_waiting == engine.kv_cache_usage_ratio == 0
    return transcript


def uncached_greedy(model: GPT, prompt: list[int], count: int, overflow: str) -> list[int]:
    """One whole forward pass a token, no cache, no batch."""
    window, output = prompt[-BLOCK_SIZE:], []
    for _ in range(count):
        logits, _ = model(torch.tensor([window]))
        output.append(int(logits[0, -1, : TOKENIZER.vocab_size].argmax()))
        window = [*window, output[-1]]
        if len(window) > BLOCK_SIZE:
            window = window[-(BLOCK_SIZE if overflow == "exact" else BLOCK_SIZE // 2) :]
    return output


def prompts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Different lengths, from 1 to `longest`."""
    choose = random.Random(seed)
    lengths = [1 + index * (longest - 1) // (count - 1) for index in range(count)]
    choose.shuffle(lengths)
    return ["".join(choose.choices(TOKENIZER.characters, k=length)) for length in lengths]


SAMPLED = SamplingParams(temperature=1.3, seed=11)


# The plain forward pass


@pytest.mark.parametrize("overflow", ["roll", "exact"])
@pytest.mark.parametrize("prefill_chunk_tokens", [5, 256])
def test_greedy_equals_the_uncached_model(
    model: GPT, overflow: str, prefill_chunk_tokens: int
) -> None:
    """Token for token, prompts of different lengths at once, beyond block_size."""
    count = BLOCK_SIZE + 8
    requests = [
        request(str(index), prompt, max_new_tokens=count, context_overflow=overflow)
        for index, prompt in enumerate(prompts(12, 2 * BLOCK_SIZE))
    ]
    found = run(model, *requests, prefill_chunk_tokens=prefill_chunk_tokens)
    for each in requests:
        expected = uncached_greedy(model, each.prompt_ids, count, overflow)
        assert found.tokens[each.id, 0] == expected
        assert found.text[each.id, 0] == TOKENIZER.decode(expected)
        assert found.finished[each.id, 0] == Finished(each.id, 0, "length")


def test_stop_ends_with_the_window(model: GPT) -> None:
    stopping = {"max_new_tokens": 1000, "context_overflow": "stop"}
    found = run(model, request("r", "a" * 10, **stopping))
    expected = uncached_greedy(model, TOKENIZER.encode("a" * 10), BLOCK_SIZE - 10, "stop")
    assert found.tokens["r", 0] == expected
    assert found.finished["r", 0].reason == "length"


def test_byte_pair_tokens_too() -> None:
    """A padded vocabulary of several thousand tokens, and a window filled by the prompt."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(8, 50304, 1, 2, 16)).eval()
    engine = Engine(TorchRunner(model, GPT2Tokenizer().vocab_size), GPT2Tokenizer())
    ids = GPT2Tokenizer().encode("In the beginning was the Word, and the")
    engine.add(Request("r", ids, SAMPLED, StoppingParams(max_new_tokens=20)))
    text, tokens = "", []
    while engine.has_work():
        for event in engine.step().events:
            if isinstance(event, Delta):
                tokens += event.token_ids
                text += event.text
    assert max(tokens) < 50257
    assert text == GPT2Tokenizer().decode(tokens)


# Neighbours


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_32_requests_together_equal_each_alone(model: GPT, sampling: SamplingParams) -> None:
    requests = [
        request(str(index), prompt, replace(sampling, seed=index), max_new_tokens=30)
        for index, prompt in enumerate(prompts(32, BLOCK_SIZE))
    ]
    together = run(model, *requests, num_slots=7)
    for each in requests:
        assert together.tokens[each.id, 0] == run(model, each).tokens[each.id, 0]


def test_tokens_and_logprobs_do_not_depend_on_the_batch(model: GPT) -> None:
    """Bit for bit: alone, and among 31 others of random lengths, with the prefix cache, guesses and
    chunks of any size."""
    dice = random.Random(9)
    beginnings = prompts(3, BLOCK_SIZE)
    requests = [
        replace(
            request(
                str(index),
                dice.choice(beginnings)[: dice.randint(1, BLOCK_SIZE)] + end,
                replace(SAMPLED, seed=index, temperature=dice.choice([0, 0.7, 1.3])),
                top_logprobs=2,
                max_new_tokens=dice.randint(1, 2 * BLOCK_SIZE),
                context_overflow=dice.choice(["roll", "exact"]),
            ),
            max_draft_tokens=dice.choice([0, 4]),
        )
        for index, end in enumerate(prompts(32, 8))
    ]
    together = run(model, *requests, prefill_chunk_tokens=11, batch_invariant=True)
    assert sum(together.cached.values()) > 50
    for each in requests[::3]:
        alone = run(model, replace(each, use_prefix_cache=False), batch_invariant=True)
        assert alone.tokens == {key: together.tokens[key] for key in alone.tokens}
        assert alone.logprobs == {key: together.logprobs[key] for key in alone.logprobs}


def test_chunks_equal_the_whole(model: GPT) -> None:
    each = request("r", "a long prompt of letters", SAMPLED, logprobs=True)
    whole = run(model, each)
    for size in (1, 2, 7):
        chunked = run(model, each, prefill_chunk_tokens=size)
        assert chunked.tokens == whole.tokens
        pairs = zip(chunked.logprobs["r", 0], whole.logprobs["r", 0], strict=True)
        for ours, theirs in pairs:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_a_seed_decides_whatever_comes_and_goes_beside_it(model: GPT) -> None:
    seeded = request("seeded", "abc", SAMPLED, max_new_tokens=60)
    alone = run(model, seeded).tokens["seeded", 0]
    engine = engine_of(model, num_slots=4, prefill_chunk_tokens=6)
    transcript, choose = Transcript(), random.Random(3)
    for number in range(3):
        engine.add(request(str(number), "x" * 20, SAMPLED, max_new_tokens=5 + number))
    engine.add(seeded)
    while ("seeded", 0) not in transcript.finished:
        transcript.read(engine.step().events)
        if choose.random() < 0.3:
            engine.add(request(str(choose.random()), "y" * choose.randint(1, 40), SAMPLED))
    assert transcript.tokens["seeded", 0] == alone
    other_seed = replace(seeded, sampling=replace(SAMPLED, seed=12))
    assert run(model, other_seed).tokens["seeded", 0] != alone


@pytest.mark.parametrize("overflow", ["roll", "exact"])
@pytest.mark.parametrize("length", [12, BLOCK_SIZE - 1, BLOCK_SIZE, 40])
@pytest.mark.parametrize("num_slots", [1, 2, 32])
def test_sample_i_is_the_same_whatever_the_number_of_samples(
    model: GPT, num_slots: int, length: int, overflow: str
) -> None:
    prompt = ("To be or not to be " * 3)[:length]
    wanted = request("r", prompt, SAMPLED, num_samples=4, context_overflow=overflow)
    four = run(model, wanted, num_slots=num_slots)
    for count in (1, 2, 3):
        fewer = run(model, replace(wanted, num_samples=count))
        assert fewer.tokens == {key: four.tokens[key] for key in fewer.tokens}
    assert len({tuple(tokens) for tokens in four.tokens.values()}) == 4
    assert four.started == ["r"] and len(four.finished) == 4


@pytest.mark.parametrize(
    ("length", "prompt_logprobs"),
    [(2, None), (20, None), (63, None), (63, 0), (64, None), (64, 0), (100, None)],
)
def test_samples_compute_their_prompt_once(length: int, prompt_logprobs: int | None) -> None:
    """Also one that fills the window, which moves with the first token."""
    engine = Engine(FakeRunner(TOKENIZER.vocab_size, num_slots=8, block_size=64), TOKENIZER)
    wanted = request(
        "r", "x" * length, SAMPLED, 8, prompt_logprobs=prompt_logprobs, max_new_tokens=3
    )
    engine.add(replace(wanted, use_prefix_cache=False))
    begun: set[int] = set()
    computed = 0
    while len(begun) < 8:
        result = engine.step()
        computed += result.num_tokens
        begun |= {event.sample_index for event in result.events if isinstance(event, Delta)}
    assert computed == min(length, 64) - 1 + 8  # each its last prompt token itself


def test_a_long_prompt_stalls_nobody(model: GPT) -> None:
    engine = engine_of(model, prefill_chunk_tokens=4)
    engine.add(request("stream", "a", max_new_tokens=1000))
    engine.step()
    engine.add(request("long", "x" * 23))
    for _ in range(5):
        result = engine.step()
        assert (result.prefill_tokens, result.decode_tokens, result.batch_size) == (4, 1, 2)
        assert [e.request_id for e in result.events if isinstance(e, Delta)] == ["stream"]
    result = engine.step()
    assert (result.prefill_tokens, result.decode_tokens) == (3, 1)
    assert [e.request_id for e in result.events if isinstance(e, Delta)] == ["stream", "long"]


# The prefix cache


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_cached_answer_equals_the_uncached_one(model: GPT, sampling: SamplingParams) -> None:
    """Token for token, of prompts with common beginnings that come while others run or are over."""
    choose = random.Random(7)
    beginnings = [prompt for prompt in prompts(3, BLOCK_SIZE) if len(prompt) > 1]
    requests = [
        request(
            str(index),
            choose.choice(beginnings)[: choose.randint(5, BLOCK_SIZE)] + end,
            replace(sampling, seed=index),
            num_samples=choose.choice([1, 1, 3]),
            max_new_tokens=choose.randint(1, BLOCK_SIZE),
        )
        for index, end in enumerate(prompts(30, 5))
    ]
    engine, transcript = engine_of(model, num_slots=5, prefill_chunk_tokens=9), Transcript()
    coming = list(requests)
    while engine.has_work() or coming:
        if coming and choose.random() < 0.3:
            engine.add(coming.pop())
        transcript.read(engine.step().events)
    assert sum(transcript.cached.values()) > 100
    for each in requests:
        alone = run(model, replace(each, use_prefix_cache=False))
        assert alone.cached == {each.id: 0}
        assert alone.tokens == {key: transcript.tokens[key] for key in alone.tokens}


def test_what_the_cache_held_is_told_and_not_computed(model: GPT) -> None:
    engine, transcript = engine_of(model), Transcript()
    computed = []
    for id, cached in [("first", True), ("second", True), ("third", False)]:
        added = request(id, "a prompt of some letters", max_new_tokens=1)
        engine.add(replace(added, use_prefix_cache=cached))
        result = engine.step()
        computed.append(result.prefill_tokens + result.decode_tokens)
        transcript.read(result.events)
    assert computed == [24, 1, 24]
    assert transcript.cached == {"first": 0, "second": 23, "third": 0}
    assert engine.kv_cache_usage_ratio == 0


def test_a_new_engine_knows_nothing_of_an_old_one(model: GPT) -> None:
    """The cache of one set of weights is gone with its engine."""
    for _ in range(2):
        assert run(model, request("r", "the same prompt")).cached == {"r": 0}


# Guessing ahead


REPETITIVE = "the cat sat the cat sat "


@pytest.mark.parametrize("overflow", ["roll", "stop", "exact"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.3])
def test_guesses_change_nothing(model: GPT, temperature: float, overflow: str) -> None:
    """Whatever else acts on tokens: penalties, stop strings, minima, the edge of the window."""
    sampling = SamplingParams(temperature, presence_penalty=0.5, top_k=3, repetition_penalty=0.8)
    requests = [
        request(
            str(index),
            REPETITIVE[index : index + BLOCK_SIZE - 4],
            replace(sampling, seed=index),
            num_samples=1 + index % 2,
            logprobs=True,
            max_new_tokens=3 * BLOCK_SIZE,
            context_overflow=overflow,
            stop_strings=("tt",) if index % 3 == 1 else (),
            min_new_tokens=index,
        )
        for index in range(5)
    ]
    plain = run(model, *requests)
    guessed = [replace(each, max_draft_tokens=3 + number) for number, each in enumerate(requests)]
    found = run(model, *guessed)
    assert found.tokens == plain.tokens and found.text == plain.text
    for key, logprobs in plain.logprobs.items():
        for ours, theirs in zip(found.logprobs[key], logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert sum(each.drafted_tokens for each in found.finished.values()) > 5
    for key, finished in found.finished.items():
        assert 0 <= finished.accepted_tokens <= finished.drafted_tokens
        end = replace(finished, drafted_tokens=0, accepted_tokens=0)
        assert end == plain.finished[key]


@pytest.mark.parametrize("length", range(62, 68))
def test_a_scored_prompt_is_not_guessed_beyond(length: int) -> None:
    """Its last chunk may be one token, which has logits of its own alone: neighbours would lend
    theirs."""
    torch.manual_seed(1)
    model = GPT(replace(CONFIG, block_size=128)).eval()
    scored = request("scored", (REPETITIVE * 3)[:length], prompt_logprobs=0, max_new_tokens=8)
    company = request("company", "Hello")
    plain = run(model, scored, company)
    found = run(model, replace(scored, max_draft_tokens=8), company)
    assert found.tokens == plain.tokens


def test_right_guesses_spare_steps(model: GPT) -> None:
    """A text that repeats itself: several tokens a step, in one event."""
    loop = SamplingParams(temperature=0, repetition_penalty=0.01)  # what was said is said again
    wanted = request("r", "abcabcabcabc", loop, max_new_tokens=12)
    plain = run(model, wanted)
    engine, transcript = engine_of(model), Transcript()
    engine.add(replace(wanted, max_draft_tokens=4))
    results = []
    while engine.has_work():
        results.append(engine.step())
        transcript.read(results[-1].events)
    assert transcript.tokens == plain.tokens
    assert len(results) <= 6
    finished = transcript.finished["r", 0]
    assert finished.accepted_tokens == sum(result.accepted_tokens for result in results) >= 6
    assert finished.drafted_tokens == sum(result.drafted_tokens for result in results)
    deltas = [e for result in results for e in result.events if isinstance(e, Delta)]
    assert len(deltas) == len(results)
    assert max(result.decode_tokens for result in results) == 5  # one and four guesses


# Log-probabilities of prompts


@torch.inference_mode()
def expected_logprobs(model: GPT, tokens: list[int]) -> list[float]:
    """Of all tokens but the first."""
    logits = model.lm_head(model.hidden(torch.tensor([tokens[:-1]])))[0]
    raw = logits[:, : TOKENIZER.vocab_size].log_softmax(-1)
    return [float(row[token]) for row, token in zip(raw, tokens[1:], strict=True)]


@pytest.mark.parametrize("prefill_chunk_tokens", [5, 256])
def test_logprobs_of_a_prompt(model: GPT, prefill_chunk_tokens: int) -> None:
    """Those of the plain model, from the first chunk to the last; the answer stays the same."""
    plain = request("r", "a prompt of some letters", SAMPLED, num_samples=2)
    wanted = replace(plain, prompt_logprobs=3)
    before = request("before", "a prompt of some")  # the prefix cache has a part of it
    engine = engine_of(model, prefill_chunk_tokens=prefill_chunk_tokens)
    transcript = Transcript()
    for each in (before, wanted):
        engine.add(each)
        while engine.has_work():
            transcript.read(engine.step().events)
    found = transcript.prompt_logprobs["r"]
    assert [each.token_id for each in found] == plain.prompt_ids[1:]
    expected = expected_logprobs(model, plain.prompt_ids)
    assert [each.logprob for each in found] == pytest.approx(expected, abs=1e-4)
    assert all(len(each.top) == 3 and each.rank >= 1 for each in found)
    alone = run(model, plain)
    assert alone.tokens == {key: transcript.tokens[key] for key in alone.tokens}
    assert transcript.cached["r"] == 0 and alone.prompt_logprobs == {"r": []}


@pytest.mark.parametrize("length", [2, 3, BLOCK_SIZE, BLOCK_SIZE + 1, BLOCK_SIZE + 2, 3 * 24 + 7])
def test_a_text_of_any_length_is_scored(model: GPT, length: int) -> None:
    """In windows of block_size that begin afresh, beside somebody who generates."""
    tokens = TOKENIZER.encode("".join(prompts(2, length, seed=length))[:length])
    tokens += [3] * (length - len(tokens))
    score = request("score", prompt_logprobs=0, max_new_tokens=1)
    score = replace(score, prompt_ids=tokens, scores_only=True)
    beside = request("beside", "abc", SAMPLED, max_new_tokens=30)
    found = run(model, beside, score, prefill_chunk_tokens=10)
    expected: list[float] = []
    for start in range(0, length - 1, BLOCK_SIZE):
        expected += expected_logprobs(model, tokens[start : start + BLOCK_SIZE + 1])
    logprobs = found.prompt_logprobs["score"]
    assert [each.token_id for each in logprobs] == tokens[1:]
    assert [each.logprob for each in logprobs] == pytest.approx(expected, abs=1e-4)
    assert ("score", 0) not in found.tokens and ("score", 0) in found.finished
    assert found.tokens["beside", 0] == run(model, beside).tokens["beside", 0]


# What comes back


def test_tokens_come_one_by_one_in_order(model: GPT) -> None:
    engine = engine_of(model)
    engine.add(request("r", "abc", max_new_tokens=3))
    kinds = [[type(event).__name__ for event in engine.step().events] for _ in range(3)]
    assert kinds == [["Started", "Prefilled", "Delta"], ["Delta"], ["Delta", "Finished"]]
    assert not engine.has_work() and engine.step().events == []


def test_logprobs_are_raw(model: GPT) -> None:
    """Of the model itself, whatever temperature, bias and filters do to the choice."""
    bent = SamplingParams(
        temperature=0.5, top_k=5, repetition_penalty=1.5, logit_bias={3: 4.0}, seed=5
    )
    each = request("r", "abc", bent, top_logprobs=4)
    plain = run(model, replace(each, top_logprobs=0))
    found = run(model, each, request("beside", "xyz", SAMPLED))
    assert found.tokens["r", 0] == plain.tokens["r", 0] and plain.logprobs["r", 0] == []
    assert found.logprobs["beside", 0] == []
    tokens = list(each.prompt_ids)
    for token_id, logprob in zip(found.tokens["r", 0], found.logprobs["r", 0], strict=True):
        logits, _ = model(torch.tensor([tokens]))
        raw = logits[0, -1, : TOKENIZER.vocab_size].log_softmax(-1)
        values, ids = raw.topk(4)
        assert logprob.token_id == token_id
        assert logprob.logprob == pytest.approx(raw[token_id].item(), abs=1e-4)
        assert logprob.rank == 1 + int((raw > raw[token_id]).sum())
        assert [a.token_id for a in logprob.top] == ids.tolist()
        assert [a.logprob for a in logprob.top] == pytest.approx(values.tolist(), abs=1e-4)
        tokens.append(token_id)


def test_a_stop_string_frees_the_slot_at_once(model: GPT) -> None:
    plain = run(model, request(max_new_tokens=20))
    text = plain.text["r", 0]
    stop = text[7:10]
    engine, transcript = engine_of(model), Transcript()
    engine.add(request(max_new_tokens=20, stop_strings=(stop,)))
    while not transcript.finished:
        transcript.read(engine.step().events)
    assert engine.num_running == 0
    assert transcript.text["r", 0] == text[: text.index(stop)]
    assert transcript.finished["r", 0] == Finished("r", 0, "stop", stop_string=stop)
    assert len(transcript.tokens["r", 0]) == text.index(stop) + 3  # all that were sampled


def test_a_stop_token_is_counted_but_not_returned(model: GPT) -> None:
    tokens = run(model, request(max_new_tokens=20)).tokens["r", 0]
    stop = tokens[5]
    first = tokens.index(stop)
    found = run(model, request(max_new_tokens=20, stop_token_ids=(stop,)))
    assert found.tokens["r", 0] == tokens[: first + 1]
    assert found.text["r", 0] == TOKENIZER.decode(tokens[:first])
    assert found.finished["r", 0] == Finished("r", 0, "stop", stop_token_id=stop)
    later = run(model, request(max_new_tokens=20, stop_token_ids=(stop,), min_new_tokens=15))
    assert len(later.tokens["r", 0]) >= 15 and stop not in later.tokens["r", 0][:15]


def test_padding_of_the_vocabulary_is_never_sampled(model: GPT) -> None:
    hot = SamplingParams(temperature=2.0, seed=1)
    found = run(model, request("r", "a", hot, num_samples=16, max_new_tokens=50))
    sampled = [token for tokens in found.tokens.values() for token in tokens]
    assert max(sampled) < TOKENIZER.vocab_size and len(set(sampled)) > 30


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    small = GPT(ModelConfig(8, 53, 1, 1, 8))
    with pytest.raises(ValueError, match="the tokenizer has 54 tokens; this model has 53"):
        engine_of(small)


def test_dropout_plays_no_part(model: GPT) -> None:
    expected = run(model, request()).tokens
    assert run(model.train(), request()).tokens == expected


# Cost


def calls_of(work: Callable[[], object]) -> int:
    """How many Python and C functions it calls: a cost that no busy machine changes."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_step_costs_the_same_however_many_wait() -> None:
    costs = {}
    for num_waiting in (0, 1000):
        engine = Engine(FakeRunner(TOKENIZER.vocab_size, block_size=24), TOKENIZER)
        for index in range(4 + num_waiting):
            engine.add(request(str(index), "abc", SAMPLED, max_new_tokens=1000))
        engine.step()
        steps = calls_of(lambda: [engine.step() for _ in range(8)])  # noqa: B023
        last = str(3 + num_waiting)
        costs[num_waiting] = (steps, calls_of(lambda: engine.cancel(last)))  # noqa: B023
    assert costs[1000][0] <= 1.02 * costs[0][0]
    assert costs[1000][1] < 30


def test_memory_is_flat_over_5000_requests() -> None:
    """With repetitions, guesses, several samples, cancels and log-probabilities."""
    engine, dice = Engine(FakeRunner(TOKENIZER.vocab_size), TOKENIZER), random.Random(1)

    def serve(count: int) -> None:
        for number in range(count):
            wanted = request(
                str(number),
                "".join(dice.choices("abc ", k=dice.randint(1, 90))),
                replace(SAMPLED, repetition_penalty=1.1),
                num_samples=1 + number % 2,
                top_logprobs=number % 3,
                max_new_tokens=2,
                stop_strings=("zz",),
            )
            engine.add(replace(wanted, max_draft_tokens=number % 5, priority=number % 7))
            if number % 10 == 0:
                engine.cancel(str(number - 1))
            while engine.num_waiting > 20:
                engine.step()
        while engine.has_work():
            engine.step()
        gc.collect()

    serve(1000)
    before = sys.getallocatedblocks()
    serve(4000)
    assert sys.getallocatedblocks() - before < 500  # less than one in eight requests
    assert engine.num_running == engine.num_waiting == engine.kv_cache_usage_ratio == 0


# Cancels, accounting and failures


def test_usage_of_the_cache_is_exact_at_every_step(model: GPT) -> None:
    engine = engine_of(model, num_slots=2, prefill_chunk_tokens=4)
    engine.add(request("r", "x" * 6, max_new_tokens=4))
    held = []
    while engine.has_work():
        engine.step()
        held.append(round(engine.kv_cache_usage_ratio * 2 * BLOCK_SIZE))
    assert held == [4, 6, 7, 8, 0]


def test_cancel_takes_effect_at_once(model: GPT) -> None:
    engine = engine_of(model, num_slots=2)
    engine.add(request("a", num_samples=5))
    engine.add(request("b"))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 4)
    engine.cancel("a")
    assert (engine.num_running, engine.num_waiting) == (0, 1)
    assert engine.kv_cache_usage_ratio == 0
    assert {event.request_id for event in engine.step().events} == {"b"}
    engine.cancel("a")
    engine.cancel("unknown")
    engine.add(request("a"))  # the id is free again
    assert Started("a") in engine.step().events


def test_cancels_at_random_moments_leave_nothing_and_disturb_nobody(model: GPT) -> None:
    """Of 60 requests 20 are cancelled; the others are as they would be alone."""
    choose = random.Random(5)
    requests = {
        str(index): request(
            str(index),
            prompt,
            replace(SAMPLED, seed=index),
            num_samples=choose.choice([1, 1, 3]),
            max_new_tokens=choose.randint(1, 40),
            context_overflow=choose.choice(["roll", "exact"]),
        )
        for index, prompt in enumerate(prompts(60, 2 * BLOCK_SIZE, seed=5))
    }
    doomed = set(choose.sample(sorted(requests), 20))
    engine, transcript = engine_of(model, num_slots=6), Transcript()
    coming = list(requests.values())
    while engine.has_work() or coming:
        if coming and choose.random() < 0.5:
            engine.add(coming.pop())
        transcript.read(engine.step().events)
        for id in sorted(doomed & set(transcript.started)):
            if choose.random() < 0.2:
                engine.cancel(id)
                doomed.remove(id)
        assert engine.num_running <= 6 and 0 <= engine.kv_cache_usage_ratio <= 1
    assert engine.num_running == engine.num_waiting == engine.kv_cache_usage_ratio == 0
    complete = {id for id in requests if (id, requests[id].num_samples - 1) in transcript.finished}
    assert len(complete) >= 40
    for id in sorted(complete)[::4]:
        alone = run(model, requests[id])
        assert alone.tokens == {key: transcript.tokens[key] for key in alone.tokens}


class Unreliable(GPT):
    """Raises in the forward passes whose numbers, from 1, are given."""

    def __init__(self, model: GPT, failing: set[int]) -> None:
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.failing, self.passes = failing, 0

    def hidden(self, *args: Any) -> Tensor:
        self.passes += 1
        if self.passes in self.failing:
            raise MemoryError("out of memory")
        return super().hidden(*args)


def test_a_forward_pass_that_raises_fails_its_batch_only(model: GPT) -> None:
    engine = engine_of(Unreliable(model, failing={3}), num_slots=2)
    transcript = Transcript()
    for id in ("a", "b"):
        engine.add(request(id, max_new_tokens=20))
    engine.add(request("c", "waiting"))
    for _ in range(3):
        transcript.read(engine.step().events)
    assert set(transcript.failed) == {"a", "b"}
    assert isinstance(transcript.failed["a"], MemoryError)
    assert engine.num_running == 0 and engine.num_waiting == 1
    while engine.has_work():
        transcript.read(engine.step().events)
    assert transcript.tokens["c", 0] == run(model, request("c", "waiting")).tokens["c", 0]


def test_a_failure_takes_all_samples_of_its_request(model: GPT) -> None:
    engine = engine_of(Unreliable(model, failing={1}), num_slots=2)
    engine.add(request("a", num_samples=5))
    events = engine.step().events
    assert [type(event) for event in events] == [Started, Failed]
    assert not engine.has_work()


def test_what_waits_for_its_turn_is_not_in_the_failing_batch(model: GPT) -> None:
    engine = engine_of(Unreliable(model, failing={1}), prefill_chunk_tokens=5)
    transcript = Transcript()
    engine.add(request("a", "x" * 5))
    engine.add(request("b", "y" * 5))
    while engine.has_work():
        transcript.read(engine.step().events)
    assert set(transcript.failed) == {"a"} and ("b", 0) in transcript.finished


def test_logits_that_are_not_finite_fail_their_request_only(model: GPT) -> None:
    """And nothing of it is left in the slot for the next owner."""
    sick = GPT(CONFIG)
    sick.load_state_dict(model.state_dict())
    with torch.no_grad():
        sick.transformer.wpe.weight[10] = float("nan")  # those who reach position 10 are lost
    engine, transcript = engine_of(sick), Transcript()
    long = request("long", "x" * 8, num_samples=2, max_new_tokens=20, logprobs=True)
    short = request("short", "abc", SAMPLED, max_new_tokens=8)
    engine.add(long)
    engine.add(short)
    while engine.has_work():
        transcript.read(engine.step().events)
    assert list(transcript.failed) == ["long"]
    assert isinstance(transcript.failed["long"], NonFiniteLogits)
    assert len(transcript.tokens["long", 0]) == 3
    expected = run(model, short).tokens["short", 0]
    assert transcript.tokens["short", 0] == expected
    # healthy again, new owners of the spoiled slots sit beside one that sees more positions
    sick.load_state_dict(model.state_dict())
    for index in range(3):
        engine.add(replace(short, id=str(index)))
    engine.add(request("longest", "x" * 16))
    while engine.has_work():
        transcript.read(engine.step().events)
    for index in range(3):
        assert transcript.tokens[str(index), 0] == expected
