"""Decides what the next step computes. Policy only: no torch, no clock, no I/O.

Samples wait in one queue, first come first served, for one of a fixed number of KV slots; the
lowest free slot is given first, so that the batch stays a prefix of the slots. Each step computes
one token of every sequence that has one left to compute (decode) and, within a budget of tokens,
chunks of those that have more (prefill): a long prompt delays running streams by one chunk at most.

Sequences take turns at the budget in the order in which they came to need it, so one that needs it
for each token (context overflow `exact`) cannot starve the others.

    while scheduler.has_work():
        batch = scheduler.schedule()
        ...compute it...
        scheduler.computed(batch)
        ...append a token to each of batch.sampled, release those that are over...
"""

import heapq
from collections import deque
from dataclasses import dataclass

from nanogpt.inference.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` uncached tokens of a running sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """Whether nothing is left to compute after it, so that a token is sampled."""
        return self.num_tokens == self.sequence.num_uncached


@dataclass(frozen=True, slots=True)
class PromptCopy:
    """The first `num_tokens` cached tokens of one slot are also those of another."""

    from_slot: int
    to_slot: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: copies first, then all chunks in one forward pass."""

    admitted: list[Sequence]
    copies: list[PromptCopy]
    decodes: list[Chunk]
    """One token each, by slot."""
    prefills: list[Chunk]
    """Several tokens each, in turn."""
    sampled: list[Sequence]
    """The sequences that get a token, in the order of decodes and prefills."""

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prefills


class Scheduler:
    """Slots, waiting queue and the turns at the prefill budget."""

    def __init__(self, num_slots: int, prefill_chunk_tokens: int) -> None:
        self.num_slots = num_slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot, in order of admission
        self._free_slots = list(range(num_slots))  # a heap
        self._prefilling: list[Sequence] = []  # in turn

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the KV cache holds for running sequences."""
        return sum(sequence.num_cached for sequence in self.running.values())

    def schedule(self) -> Batch:
        """The next step; never empty while there is work."""
        admitted = self._admit()
        self._prefilling += [
            sequence
            for sequence in self.running.values()
            if sequence.num_uncached > 1 and sequence not in self._prefilling
        ]
        copies: list[PromptCopy] = []
        prefills: list[Chunk] = []
        budget = self.prefill_chunk_tokens
        for sequence in self._prefilling:
            donor = self._donor(sequence)
            if donor is None:
                if budget > 0:
                    prefills.append(Chunk(sequence, min(budget, sequence.num_uncached)))
                    budget -= prefills[-1].num_tokens
            elif donor.num_cached >= sequence.num_uncached - 1:
                # all but the last token, whose logits this sample needs itself
                sequence.num_cached = sequence.num_uncached - 1
                assert donor.slot is not None and sequence.slot is not None
                copies.append(PromptCopy(donor.slot, sequence.slot, sequence.num_cached))
        decodes = [
            Chunk(sequence, 1)
            for _, sequence in sorted(self.running.items())
            if sequence.num_uncached == 1
        ]
        sampled = [chunk.sequence for chunk in decodes + prefills if chunk.completes]
        return Batch(admitted, copies, decodes, prefills, sampled)

    def computed(self, batch: Batch) -> None:
        """Records that the KV cache now holds the tokens of `batch`."""
        for chunk in batch.chunks:
            chunk.sequence.num_cached += chunk.num_tokens
        self._prefilling = [s for s in self._prefilling if s.num_uncached > 1]

    def release(self, sequence: Sequence) -> None:
        """Frees the slot of a running sequence."""
        assert sequence.slot is not None
        del self.running[sequence.slot]
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = None
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def cancel(self, request_id: str) -> list[int]:
        """Forgets every sample of a request, waiting or running; the slots that became free."""
        self.waiting = deque(s for s in self.waiting if s.request.id != request_id)
        slots = [slot for slot, s in self.running.items() if s.request.id == request_id]
        for slot in slots:
            self.release(self.running[slot])
        return slots

    def check(self) -> None:
        """Asserts what holds between steps, whatever came before."""
        assert sorted([*self._free_slots, *self.running]) == list(range(self.num_slots))
        for sequence in self.waiting:
            assert sequence.slot is None and sequence.num_cached == 0
        for slot, sequence in self.running.items():
            assert sequence.slot == slot
            assert sequence.num_cached >= 0 and sequence.num_uncached >= 1
        for sequence in self._prefilling:
            assert sequence.slot in self.running
        assert len(set(self._prefilling)) == len(self._prefilling)

    def _admit(self) -> list[Sequence]:
        admitted = []
        while self.waiting and self._free_slots:
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self._free_slots)
            self.running[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def _donor(self, sequence: Sequence) -> Sequence | None:
        """An earlier sample of the same request that has computed this prompt, or is about to."""
        if sequence.num_sampled or sequence.num_cached:
            return None
        for other in self.running.values():
            if (
                other.request is sequence.request
                and other.sample_index < sequence.sample_index
                and other.window_start == sequence.window_start
            ):
                return other
        return None
