"""Scheduling policy against a fake cache that remembers which token is where."""

import random
from dataclasses import replace

from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.scheduler import Batch, Chunk, Scheduler
from nanogpt.inference.sequence import Sequence
from nanogpt.inference.waiting_queue import AGEING_STEPS
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
        self.finished: list[tuple[str, int]] = []
        self.num_steps = 0
        self.waiting: dict[Sequence, tuple[int, int]] = {}  # what decides who is next
        self.num_added = 0
        self.num_reused = 0
        self.has_tokens: set[str] = set()
        self.num_accepted = 0
        self.completed: list[Chunk] = []  # of the latest step

    def add(self, request: Request) -> None:
        for index in range(request.num_samples):
            sequence = Sequence(request, index, BLOCK_SIZE, TOKENIZER)
            self.scheduler.add(sequence)
            rank = self.num_steps + AGEING_STEPS * request.priority
            self.waiting[sequence] = (rank, self.num_added)
            self.num_added += 1

    def cancel(self, request_id: str, keep: bool = True) -> list[int]:
        slots = self.scheduler.cancel(request_id, keep=keep)
        self.waiting = {s: rank for s, rank in self.waiting.items() if s.request.id != request_id}
        if not keep:
            for slot in slots:
                self.cache[slot] = [-1] * BLOCK_SIZE
        self.scheduler.check()
        return slots

    def step(self) -> Batch:
        self.num_steps += 1
        ready = [s for s in self.scheduler.running.values() if s.num_uncached == 1]
        batch = self.scheduler.schedule()
        self.scheduler.check()
        assert batch.chunks or not self.scheduler.has_work()
        assert set(ready) <= {chunk.sequence for chunk in batch.decodes}
        budget = self.scheduler.prefill_chunk_tokens
        assert sum(chunk.num_tokens for chunk in batch.prefills) <= budget
        next_ones = sorted(self.waiting, key=self.waiting.__getitem__)[: len(batch.admitted)]
        assert batch.admitted == next_ones
        assert len(self.scheduler.running) == min(self.scheduler.num_slots, len(self.unfinished))
        for sequence in batch.admitted:
            del self.waiting[sequence]

        for copy in batch.copies:
            assert copy.from_slot != copy.to_slot and copy.num_tokens > 0
            self.cache[copy.to_slot] = self.cache[copy.from_slot][: copy.num_tokens]
        slots = [chunk.sequence.slot for chunk in batch.chunks]
        assert len(set(slots)) == len(slots)
        self.completed = [chunk for chunk in batch.chunks if chunk.completes]
        firsts: dict[str, list[int]] = {}
        for sequence in [chunk.sequence for chunk in self.completed]:
            if not sequence.num_sampled:
                firsts.setdefault(sequence.request.id, []).append(sequence.sample_index)
        for id, indices in firsts.items():
            assert indices == sorted(indices)
            assert indices[0] == 0 or id in self.has_tokens
        self.has_tokens |= set(firsts)
        for chunk in batch.chunks:
            sequence = chunk.sequence
            start, cached = sequence.window_start, sequence.num_cached
            assert len(chunk.drafts) <= sequence.request.max_draft_tokens
            if not sequence.has_begun:
                self.num_reused += sequence.num_reused
                may_reuse = sequence.request.use_prefix_cache
                assert may_reuse or sequence.num_reused == 0
                assert cached == sequence.num_reused or sequence.sample_index > 0
            kept = self.cache[sequence.slot][:cached]
            assert kept == sequence.tokens[start : start + cached]
            self.cache[sequence.slot] = kept + sequence.next_tokens(chunk.num_tokens) + chunk.drafts
            assert len(self.cache[sequence.slot]) <= BLOCK_SIZE

        self.scheduler.computed(batch)
        for chunk in self.completed:
            sequence, finished = chunk.sequence, None
            assert sequence.num_uncached == 0
            if sequence.request.scores_only:
                finished = True
            for draft in [*chunk.drafts, None]:
                if finished:
                    break
                token_id = self.random.randrange(3)
                _, finished = sequence.append(token_id)
                if token_id != draft:
                    break
                self.num_accepted += 1
                if finished is None:
                    sequence.computed(1)
                    assert (
                        self.cache[sequence.slot][: sequence.num_cached]
                        == (sequence.tokens[sequence.window_start :])
                    )
            if finished:
                self.scheduler.release(sequence)
                self.finished.append((sequence.request.id, sequence.sample_index))
        self.scheduler.check()
        return batch

    @property
    def unfinished(self) -> set[Sequence]:
        return {*self.waiting, *self.scheduler.running.values()}


def request(id: str, prompt_tokens: int, num_samples: int = 1, **stopping: object) -> Request:
    first = sum(map(ord, id))  # prompts of different requests have nothing in common
    ids = [(first + position) % TOKENIZER.vocab_size for position in range(prompt_tokens)]
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
                stop_token_ids=(2,) if choose.random() < 0.3 else (),
                context_overflow=overflow,
            )
            new = replace(
                new,
                # of two tokens, so that many prompts begin alike
                prompt_ids=[choose.randrange(2) for _ in new.prompt_ids],
                priority=choose.choice([0, 0, 0, -1, 3]),
                use_prefix_cache=choose.random() < 0.8,
                max_draft_tokens=choose.choice([0, 3]),
            )
            if choose.random() < 0.1 and len(new.prompt_ids) > 1:
                new = replace(new, num_samples=1, prompt_logprobs=0, scores_only=True)
            engine.add(new)
            added[new.id] = new.num_samples
        if added and choose.random() < 0.03:
            gone = choose.choice([*list(added)[-12:], "unknown"])
            engine.cancel(gone, keep=choose.random() < 0.7)
            cancelled.add(gone)
        engine.step()
    while engine.scheduler.has_work():
        engine.step()
    assert engine.scheduler.num_cached_tokens == 0 and not engine.scheduler.running
    # each sample exactly once; all finished that nobody cancelled
    assert len(set(engine.finished)) == len(engine.finished)
    samples = {(id, index) for id, count in added.items() for index in range(count)}
    assert {key for key in samples if key[0] not in cancelled} <= set(engine.finished)
    assert len(engine.finished) > 1000 and len(cancelled) > 200 and engine.num_reused > 2000
    assert engine.num_accepted > 1000


def test_who_begins_alike_computes_the_beginning_once() -> None:
    """From a sequence that is over: its slot. From one that runs: a copy of what it has so far."""
    engine = FakeEngine(prefill_chunk_tokens=100)
    first = request("first", 10)
    engine.add(first)
    engine.step()
    engine.add(replace(first, id="beside", prompt_ids=[*first.prompt_ids[:8], 7, 7]))
    batch = engine.step()
    assert [(copy.from_slot, copy.to_slot, copy.num_tokens) for copy in batch.copies] == [(0, 1, 8)]
    assert [chunk.num_tokens for chunk in batch.prefills] == [2]
    while engine.scheduler.has_work():
        engine.step()
    engine.add(replace(first, id="again"))
    batch = engine.step()
    assert not batch.copies and not batch.prefills
    assert [(c.sequence.slot, c.sequence.num_reused) for c in batch.decodes] == [(0, 9)]
    engine.add(replace(first, id="afresh", use_prefix_cache=False))
    batch = engine.step()
    assert not batch.copies and [chunk.num_tokens for chunk in batch.prefills] == [10]


def test_what_failed_is_not_reused() -> None:
    engine = FakeEngine(num_slots=2, prefill_chunk_tokens=100)
    sick = request("sick", 10)
    engine.add(sick)
    engine.step()
    engine.cancel("sick", keep=False)
    engine.add(replace(sick, id="next"))
    batch = engine.step()
    assert not batch.copies and [chunk.num_tokens for chunk in batch.prefills] == [10]


def test_a_long_prompt_stalls_nobody() -> None:
    engine = FakeEngine(prefill_chunk_tokens=4)
    engine.add(request("stream", 1, max_new_tokens=20))
    engine.step()
    engine.add(request("long", 15))
    for _ in range(4):
        batch = engine.step()
        assert [chunk.sequence.request.id for chunk in batch.decodes] == ["stream"]
        assert [chunk.num_tokens for chunk in batch.prefills] in ([4], [3])
    assert [chunk.sequence.request.id for chunk in engine.completed] == ["stream", "long"]


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
    """Only the first computes it; the others copy all but its last token, and begin with it."""
    engine = FakeEngine(prefill_chunk_tokens=4)
    engine.add(request("r", 10, num_samples=4))
    batches = [engine.step() for _ in range(4)]
    assert [[c.num_tokens for c in batch.prefills] for batch in batches] == [[4], [4], [1], []]
    assert [len(batch.copies) for batch in batches] == [0, 0, 0, 3]
    assert {copy.num_tokens for copy in batches[3].copies} == {9}
    assert len(batches[3].decodes) == 4


def test_samples_that_find_no_copy_compute_the_prompt_themselves() -> None:
    engine = FakeEngine(num_slots=1, prefill_chunk_tokens=100)
    wanted = request("r", 10, num_samples=2, max_new_tokens=1)
    engine.add(replace(wanted, use_prefix_cache=False))
    assert [chunk.num_tokens for chunk in engine.step().prefills] == [10]
    # the first sample is over, and its slot may be anybody's
    assert [chunk.num_tokens for chunk in engine.step().prefills] == [10]
    assert engine.finished == [("r", 0), ("r", 1)]


def test_cancel_forgets_waiting_and_running_samples() -> None:
    engine = FakeEngine(num_slots=2)
    engine.add(request("a", 3, num_samples=3))
    engine.add(request("b", 3))
    engine.step()
    assert sorted(engine.cancel("a")) == [0, 1]
    assert engine.cancel("a") == []
    assert [s.request.id for s in engine.waiting] == ["b"] and len(engine.scheduler.waiting) == 1
    engine.step()
    assert [s.request.id for s in engine.scheduler.running.values()] == ["b"]
