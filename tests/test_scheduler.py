"""Scheduling policy against a fake cache that remembers which token is where."""

import random
from dataclasses import replace

from nanogpt.config import SamplingParams, StoppingParams
from nanogpt.inference.request import Request
from nanogpt.inference.scheduler import Batch, Scheduler
from nanogpt.inference.sequence import Sequence
from nanogpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abcdefgh")
BLOCK_SIZE = 16


class FakeEngine:
    """A scheduler with a cache of token ids in place of keys and values, and random draws.

    Every step checks that the cache holds what the scheduler says, before it is attended to.
    """

    def __init__(self, num_slots: int = 4, prefill_chunk_tokens: int = 6, seed: int = 0) -> None:
        self.scheduler = Scheduler(num_slots, prefill_chunk_tokens)
        self.cache: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
        self.random = random.Random(seed)
        self.admitted: list[tuple[str, int]] = []
        self.finished: list[tuple[str, int]] = []

    def add(self, request: Request) -> None:
        for index in range(request.num_samples):
            self.scheduler.add(Sequence(request, index, BLOCK_SIZE, TOKENIZER))

    def step(self) -> Batch:
        ready = [s for s in self.scheduler.running.values() if s.num_uncached == 1]
        batch = self.scheduler.schedule()
        self.scheduler.check()
        assert batch.chunks or not self.scheduler.has_work()
        assert set(ready) <= {chunk.sequence for chunk in batch.decodes}
        budget = self.scheduler.prefill_chunk_tokens
        assert sum(chunk.num_tokens for chunk in batch.prefills) <= budget
        self.admitted += [(s.request.id, s.sample_index) for s in batch.admitted]

        for copy in batch.copies:
            self.cache[copy.to_slot] = self.cache[copy.from_slot][: copy.num_tokens]
        slots = [chunk.sequence.slot for chunk in batch.chunks]
        assert len(set(slots)) == len(slots)
        assert slots[: len(batch.decodes)] == sorted(slots[: len(batch.decodes)])
        for chunk in batch.chunks:
            sequence = chunk.sequence
            start, cached = sequence.window_start, sequence.num_cached
            kept = self.cache[sequence.slot][:cached]
            assert kept == sequence.tokens[start : start + cached]
            self.cache[sequence.slot] = kept + sequence.next_tokens(chunk.num_tokens)
            assert len(self.cache[sequence.slot]) <= BLOCK_SIZE

        self.scheduler.computed(batch)
        for sequence in batch.sampled:
            assert sequence.num_uncached == 0
            token_id = self.random.randrange(TOKENIZER.vocab_size)
            _, finished = sequence.append(token_id)
            if finished is not None:
                self.scheduler.release(sequence)
                self.finished.append((sequence.request.id, sequence.sample_index))
        self.scheduler.check()
        return batch


def request(id: str, prompt_tokens: int, num_samples: int = 1, **stopping: object) -> Request:
    ids = [position % TOKENIZER.vocab_size for position in range(prompt_tokens)]
    return Request(
        id, ids, SamplingParams(), StoppingParams(**{"max_new_tokens": 4, **stopping}), num_samples
    )


def test_20_000_random_steps() -> None:
    engine = FakeEngine(seed=7)
    choose = engine.random
    added: dict[str, int] = {}
    cancelled: set[str] = set()
    for number in range(20_000):
        if len(engine.scheduler.waiting) < 10 and choose.random() < 0.4:
            overflow = choose.choice(["roll", "stop", "exact"])
            longest = BLOCK_SIZE if overflow == "stop" else 3 * BLOCK_SIZE
            new = request(
                str(number),
                choose.randint(1, longest),
                choose.choice([1, 1, 1, 2, 5]),
                max_new_tokens=choose.choice([1, 5, 40]),
                stop_token_ids=(0,) if choose.random() < 0.3 else (),
                context_overflow=overflow,
            )
            engine.add(replace(new, prompt_ids=[choose.randrange(8) for _ in new.prompt_ids]))
            added[new.id] = new.num_samples
        if added and choose.random() < 0.03:
            gone = choose.choice([*list(added)[-12:], "unknown"])
            engine.scheduler.cancel(gone)
            engine.scheduler.check()
            cancelled.add(gone)
        engine.step()
    while engine.scheduler.has_work():
        engine.step()
    assert engine.scheduler.num_cached_tokens == 0 and not engine.scheduler.running
    # each sample exactly once, first come first served; all finished that nobody cancelled
    order = {id: position for position, id in enumerate(added)}
    assert engine.admitted == sorted(engine.admitted, key=lambda key: (order[key[0]], key[1]))
    assert len(set(engine.admitted)) == len(engine.admitted)
    assert len(set(engine.finished)) == len(engine.finished)
    samples = {(id, index) for id, count in added.items() for index in range(count)}
    assert {key for key in samples if key[0] not in cancelled} <= set(engine.finished)
    assert len(engine.finished) > 1000 and len(cancelled) > 200


def test_the_lowest_free_slot_is_given_first() -> None:
    engine = FakeEngine(num_slots=4, prefill_chunk_tokens=100)
    for id in "abcd":
        engine.add(request(id, 2))
    engine.step()
    for id in "ca":
        engine.scheduler.cancel(id)
    engine.add(request("e", 2))
    engine.step()
    assert {slot: s.request.id for slot, s in sorted(engine.scheduler.running.items())} == {
        0: "e",
        1: "b",
        3: "d",
    }


def test_a_long_prompt_stalls_nobody() -> None:
    engine = FakeEngine(prefill_chunk_tokens=4)
    engine.add(request("stream", 1, max_new_tokens=20))
    engine.step()
    engine.add(request("long", 15))
    for _ in range(4):
        batch = engine.step()
        assert [chunk.sequence.request.id for chunk in batch.decodes] == ["stream"]
        assert [chunk.num_tokens for chunk in batch.prefills] in ([4], [3])
    assert [s.request.id for s in batch.sampled] == ["stream", "long"]


def test_prefill_takes_turns() -> None:
    """A sequence that recomputes its window for each token leaves room for others."""
    engine = FakeEngine(prefill_chunk_tokens=4)
    engine.add(request("exact", 30, context_overflow="exact", max_new_tokens=1000))
    engine.step()
    engine.add(request("other", 8, max_new_tokens=1))
    for _ in range(BLOCK_SIZE // 4 + 8 // 4):
        engine.step()
    assert ("other", 0) in engine.finished


def test_samples_share_their_prompt() -> None:
    """Only the first computes it; the others copy all but its last token."""
    engine = FakeEngine(prefill_chunk_tokens=4)
    engine.add(request("r", 10, num_samples=4))
    batches = [engine.step() for _ in range(4)]
    assert [[c.num_tokens for c in batch.prefills] for batch in batches] == [[4], [4], [2], []]
    assert [len(batch.copies) for batch in batches] == [0, 0, 0, 3]
    assert {copy.num_tokens for copy in batches[3].copies} == {9}
    assert len(batches[3].decodes) == 4


def test_samples_that_find_no_copy_compute_the_prompt_themselves() -> None:
    engine = FakeEngine(prefill_chunk_tokens=100)
    engine.add(request("r", 10, num_samples=2, max_new_tokens=1))
    assert engine.step().prefills
    assert engine.step().prefills  # the first sample is over, and its slot may be anybody's
    assert engine.finished == [("r", 0), ("r", 1)]


def test_cancel_forgets_waiting_and_running_samples() -> None:
    engine = FakeEngine(num_slots=2)
    engine.add(request("a", 3, num_samples=3))
    engine.add(request("b", 3))
    engine.step()
    assert sorted(engine.scheduler.cancel("a")) == [0, 1]
    assert engine.scheduler.cancel("a") == []
    assert [s.request.id for s in engine.scheduler.waiting] == ["b"]
    engine.step()
    assert list(engine.scheduler.running) == [0]
