"""Decides what the next step computes. Policy only: no torch, no clock, no I/O.

Samples wait in one queue for one of a fixed number of KV slots. Each step computes one token of
every sequence that has one left to compute (decode) and, within a budget of tokens, chunks of those
that have more (prefill): a long prompt delays running streams by one chunk at most.

A prompt that begins like what some slot holds, of a sequence that runs or is over, does not compute
that beginning again: it gets the slot or a copy, see free_slots.py.

Sequences take turns at the budget in the order in which they came to need it, so one that needs it
for each token (context overflow `exact`) cannot starve the others.

    while scheduler.has_work():
        batch = scheduler.schedule()
        ...compute it...
        scheduler.computed(batch)
        ...append a token where a chunk completes, release those that are over...
"""

from dataclasses import dataclass, field

from nanogpt.inference.free_slots import FreeSlots, shared_prefix
from nanogpt.inference.sequence import Sequence
from nanogpt.inference.waiting_queue import WaitingQueue

SCORED_CHUNK_TOKENS = 64
"""Most tokens of a chunk of which all have logits: those of a large vocabulary take as long to turn
into log-probabilities as the network itself."""

DRAFT_TOKENS_PER_STEP = 32
"""Tokens to guess over all sequences: about as many as a step of few sequences has to spare, whose
time is that of reading the weights."""


@dataclass(slots=True)
class Chunk:
    """The next `num_tokens` uncached tokens of a running sequence."""

    sequence: Sequence
    num_tokens: int
    drafts: list[int] = field(default_factory=list)
    """Guesses of what follows, computed with them to see whether they are right."""
    completes: bool = field(init=False)
    """Whether nothing is left to compute after it, so that a token is sampled."""
    num_logits: int = field(init=False)
    """How many of its tokens need logits, counted from the last."""

    def __post_init__(self) -> None:
        self.completes = self.num_tokens == self.sequence.num_uncached
        if self.sequence.scores_prompt:
            self.num_logits = self.num_tokens
        else:
            self.num_logits = 1 + len(self.drafts) if self.completes else 0


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """The first `num_tokens` cached tokens of one slot are also those of another."""

    from_slot: int
    to_slot: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: copies first, then all chunks in one forward pass."""

    admitted: list[Sequence]
    copies: list[SlotCopy]
    decodes: list[Chunk]
    """One token each and its guesses, in order of admission: a request's first sample first."""
    prefills: list[Chunk]
    """Several tokens each, in turn."""

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prefills


class Scheduler:
    """Slots, waiting queue and the turns at the prefill budget."""

    def __init__(self, num_slots: int, prefill_chunk_tokens: int) -> None:
        self.num_slots = num_slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting = WaitingQueue()
        self.running: dict[int, Sequence] = {}  # by slot, in order of admission
        self._free_slots = FreeSlots(num_slots)
        self._prefilling: dict[Sequence, None] = {}  # in turn
        self._samples: dict[str, list[Sequence]] = {}  # waiting or running, by request
        self._num_steps = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sample. Those of a request come in order of their indices."""
        self._samples.setdefault(sequence.request.id, []).append(sequence)
        self.waiting.push(sequence, self._num_steps)

    def has_work(self) -> bool:
        return bool(self._samples)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the KV cache holds for running sequences."""
        return sum(sequence.num_cached for sequence in self.running.values())

    def schedule(self) -> Batch:
        """The next step; never empty while there is work."""
        self._num_steps += 1
        admitted = self._admit()
        for sequence in self.running.values():
            if sequence.num_uncached > 1:
                self._prefilling.setdefault(sequence)
        copies: list[SlotCopy] = []
        prefills: list[Chunk] = []
        budget = self.prefill_chunk_tokens
        for sequence in self._prefilling:
            sibling = self._sibling(sequence)
            if sibling is not None:
                if sibling.num_cached >= len(sequence.tokens) - 1:
                    # all but the last token, whose logits this sample needs itself
                    copies.append(self._copy(sibling, sequence, len(sequence.tokens) - 1))
            elif budget > 0:
                if not sequence.has_begun and sequence.request.may_reuse:
                    copies += self._reuse(sequence)
                if sequence.num_uncached > 1:
                    most = min(budget, SCORED_CHUNK_TOKENS) if sequence.scores_prompt else budget
                    if self._is_awaited(sequence):
                        most = min(most, sequence.num_uncached - 1)
                    prefills.append(Chunk(sequence, min(most, sequence.num_computable)))
                    budget -= prefills[-1].num_tokens
        return Batch(admitted, copies, self._decodes(), prefills)

    def _decodes(self) -> list[Chunk]:
        decoding = [sequence for sequence in self.running.values() if sequence.num_uncached == 1]
        most_drafts = DRAFT_TOKENS_PER_STEP // max(1, len(decoding))
        return [Chunk(sequence, 1, sequence.draft(most_drafts)) for sequence in decoding]

    def computed(self, batch: Batch) -> None:
        """Records that the KV cache now holds the tokens of `batch`."""
        for chunk in batch.chunks:
            chunk.sequence.computed(chunk.num_tokens)
        self._prefilling = {s: None for s in self._prefilling if s.num_uncached > 1}

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Frees the slot of a running sequence, with what it holds for others unless not `keep`."""
        assert sequence.slot is not None
        del self.running[sequence.slot]
        self._free_slots.put(sequence.slot, sequence.cached_tokens if keep else [])
        sequence.slot = None
        self._prefilling.pop(sequence, None)
        samples = self._samples[sequence.request.id]
        samples.remove(sequence)
        if not samples:
            del self._samples[sequence.request.id]

    def cancel(self, request_id: str, *, keep: bool = True) -> list[int]:
        """Forgets every sample of a request, waiting or running; the slots that became free."""
        slots = []
        for sequence in self._samples.get(request_id, [])[:]:
            if sequence.slot is None:
                self.waiting.discard(sequence)
            else:
                slots.append(sequence.slot)
                self.release(sequence, keep=keep)
        self._samples.pop(request_id, None)
        return slots

    def check(self) -> None:
        """Asserts what holds between steps, whatever came before."""
        assert sorted([*self._free_slots, *self.running]) == list(range(self.num_slots))
        samples = [sequence for samples in self._samples.values() for sequence in samples]
        assert len(set(samples)) == len(samples) == len(self.waiting) + len(self.running)
        for sequence in samples:
            if sequence.slot is None:
                assert sequence in self.waiting and sequence.num_cached == 0
        for slot, sequence in self.running.items():
            assert sequence.slot == slot and sequence in samples
            assert sequence.num_cached >= 0 and sequence.num_uncached >= 1
        for sequence in self._prefilling:
            assert sequence.slot in self.running

    def _admit(self) -> list[Sequence]:
        admitted = []
        while self.waiting and self._free_slots:
            sequence = self.waiting.pop()
            reusable = None
            if sequence.request.may_reuse and self._sibling(sequence) is None:
                reusable = sequence.tokens[:-1]  # the last one's logits are needed
            sequence.slot, sequence.num_cached = self._free_slots.take(reusable)
            sequence.num_reused = sequence.num_cached
            self.running[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def _sibling(self, sequence: Sequence) -> Sequence | None:
        """An earlier sample of the same request that has computed this prompt, or is about to."""
        if sequence.has_begun:
            return None
        for other in self._samples[sequence.request.id]:
            if other.sample_index >= sequence.sample_index:
                break
            if other.slot is not None and other.window_start == 0:
                return other
        return None

    def _is_awaited(self, sequence: Sequence) -> bool:
        """Whether later samples are to copy what it computes. It then leaves its last token for the
        step in which they do: with the next one its window may move, or the sample end."""
        return any(
            self._sibling(other) is sequence
            for other in self._samples[sequence.request.id]
            if other.slot is not None
        )

    def _reuse(self, sequence: Sequence) -> list[SlotCopy]:
        """A copy of what another slot holds of this prompt's beginning, if that is more than its
        own slot does."""
        wanted = sequence.tokens[:-1]
        slot, most = self._free_slots.longest_match(wanted)
        donor = None
        for other in self.running.values():
            shared = shared_prefix(other.cached_tokens, wanted)
            if other is not sequence and shared > most:
                donor, most = other, shared
        if most <= sequence.num_cached:
            return []
        sequence.num_reused = most
        if donor is not None:
            return [self._copy(donor, sequence, most)]
        assert slot is not None and sequence.slot is not None
        self._free_slots.touch(slot)
        sequence.num_cached = most
        return [SlotCopy(slot, sequence.slot, most)]

    def _copy(self, donor: Sequence, sequence: Sequence, num_tokens: int) -> SlotCopy:
        assert donor.slot is not None and sequence.slot is not None
        sequence.num_cached = num_tokens
        return SlotCopy(donor.slot, sequence.slot, num_tokens)
