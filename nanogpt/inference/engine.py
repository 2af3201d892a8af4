"""The engine: generations go in, events come out, one step at a time.

It knows nothing of threads, clocks or the wire, and of the network only its Runner: whoever owns it
calls `step` while `has_work`, all from one thread, and `cancel` takes effect before the next step.

    engine = Engine(TorchRunner(model, tokenizer.vocab_size), tokenizer)
    engine.add(Request("r1", tokenizer.encode("O Romeo"), SamplingParams(), StoppingParams()))
    while engine.has_work():
        for event in engine.step().events:
            print(event)
"""

from dataclasses import dataclass, field, replace

import numpy as np

from nanogpt.inference.events import (
    Delta,
    Event,
    Failed,
    Finished,
    Prefilled,
    Queued,
    Started,
    StepResult,
)
from nanogpt.inference.logprobs import TokenLogprob, token_logprob
from nanogpt.inference.request import Request
from nanogpt.inference.runner import ChunkInput, Runner
from nanogpt.inference.sampler import Floats, sample
from nanogpt.inference.scheduler import Batch, Chunk, Scheduler
from nanogpt.inference.sequence import Sequence
from nanogpt.tokenizer import Tokenizer


class NonFiniteLogits(ArithmeticError):
    """The model's output was NaN or infinite, so no token could be chosen."""


@dataclass(slots=True)
class _Turn:
    """A sequence whose next token is drawn from a row of logits."""

    sequence: Sequence
    row: int
    drafts: list[int]
    """Guesses; if the token is the first of them, the row after this one decides the next."""
    num_accepted: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


class Engine:
    """Continuous batching of one network over the slots of its runner.

    Requests must be valid (`validate_request`) and their ids unique among unfinished ones.
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, *, prefill_chunk_tokens: int = 256
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(runner.num_slots, prefill_chunk_tokens)

    @property
    def block_size(self) -> int:
        """Tokens that the model sees at a time. Never changes."""
        return self._runner.block_size

    @property
    def num_running(self) -> int:
        """Samples that hold a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Samples that wait for a slot."""
        return len(self._scheduler.waiting)

    @property
    def kv_cache_usage_ratio(self) -> float:
        """Share of the KV cache's positions in use, in [0, 1]."""
        positions = self._runner.num_slots * self.block_size
        return self._scheduler.num_cached_tokens / positions

    def add(self, request: Request) -> None:
        """Queues every sample of a request; the one with the lowest priority number goes first."""
        for index in range(request.num_samples):
            self._scheduler.add(Sequence(request, index, self.block_size, self._tokenizer))

    def cancel(self, request_id: str) -> None:
        """Forgets a request and frees its slots at once. Unknown or finished ids are fine."""
        self._scheduler.cancel(request_id)

    def place_of(self, request_id: str) -> Queued | None:
        """Where a request is in the queue; None if no sample of it waits."""
        requests_ahead = self._scheduler.waiting.requests_ahead(request_id)
        return None if requests_ahead is None else Queued(request_id, requests_ahead)

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def step(self) -> StepResult:
        """Computes one token for each running stream, and a chunk of the prompts that wait.

        If that raises, the requests of this step fail and the engine goes on with the others.
        """
        batch = self._scheduler.schedule()
        events: list[Event] = [
            Started(sequence.request.id)
            for sequence in batch.admitted
            if sequence.sample_index == 0  # the first in the queue of its request
        ]
        turns: list[_Turn] = []
        try:
            if batch.chunks:
                turns, computed = self._compute(batch)
                events += computed
        except Exception as error:
            for request_id in dict.fromkeys(chunk.sequence.request.id for chunk in batch.chunks):
                events.append(self._fail(request_id, error))
        drafts = [chunk.drafts for chunk in batch.decodes if chunk.drafts]
        num_drafted = sum(map(len, drafts))
        return StepResult(
            events,
            prefill_tokens=sum(chunk.num_tokens for chunk in batch.prefills),
            decode_tokens=len(batch.decodes) + num_drafted,
            batch_size=len(batch.chunks),
            drafts=len(drafts),
            drafted_tokens=num_drafted,
            accepted_tokens=sum(turn.num_accepted for turn in turns),
        )

    def _compute(self, batch: Batch) -> tuple[list[_Turn], list[Event]]:
        """The forward pass, what it says of prompts, and the draws: as many as there are guesses
        that turn out right, and one more."""
        for copy in batch.copies:
            self._runner.copy(copy.from_slot, copy.to_slot, copy.num_tokens)
        logits = self._runner.forward([_chunk_input(chunk) for chunk in batch.chunks])
        turns, events = [], []
        sick: set[str] = set()  # requests whose logits are not finite
        row = 0
        for chunk in batch.chunks:
            sequence, end = chunk.sequence, row + chunk.num_logits
            if sequence.scores_prompt and not self._score(chunk, logits[row:end]):
                sick.add(sequence.request.id)
            if chunk.completes and not sequence.request.scores_only:
                turns.append(_Turn(sequence, end - 1 - len(chunk.drafts), chunk.drafts))
            row = end
        scored = [
            c.sequence for c in batch.chunks if c.completes and c.sequence.request.scores_only
        ]
        self._scheduler.computed(batch)
        sick |= self._draw(logits, turns)
        for turn in turns:
            if turn.sequence.request.id not in sick:
                events += self._tell(turn)
        for sequence in scored:
            if sequence.request.id not in sick:
                self._scheduler.release(sequence)
                events += [_prefilled(sequence), Finished(sequence.request.id, 0, "length")]
        for request_id in sick:
            error = NonFiniteLogits("the model's logits are not finite")
            events.append(self._fail(request_id, error))
        return turns, events

    def _score(self, chunk: Chunk, logits: Floats) -> bool:
        """Log-probabilities of the prompt's tokens that follow those of a chunk, whose logits these
        are. Says whether they are finite."""
        sequence, request = chunk.sequence, chunk.sequence.request
        assert request.prompt_logprobs is not None
        start = sequence.window_start + sequence.num_cached + 1
        for index, token_id in enumerate(request.prompt_ids[start : start + len(logits)]):
            row = logits[index]  # the last one of a prompt is for the token that follows it
            if not np.isfinite(row.max()):
                return False
            sequence.prompt_logprobs.append(token_logprob(row, token_id, request.prompt_logprobs))
        return True

    def _draw(self, logits: Floats, turns: list[_Turn]) -> set[str]:
        """Draws tokens, all sequences together: the first of each, then the second of those whose
        first was guessed, and so on. Returns the requests whose logits are not finite."""
        sick: set[str] = set()
        going = turns
        while going:
            # as they are if all have a turn; else copies, since the sampler overwrites its rows
            rows = [turn.row for turn in going]
            current = logits if rows == list(range(len(logits))) else logits[rows]
            raw = [
                row.copy() if turn.sequence.request.wants_logprobs else None
                for turn, row in zip(going, current, strict=True)
            ]
            token_ids = sample(current, [turn.sequence.row for turn in going])
            right = []
            for turn, token_id, row in zip(going, token_ids, raw, strict=True):
                if token_id is None:
                    sick.add(turn.sequence.request.id)
                elif self._take(turn, token_id, row):
                    right.append(turn)
            going = right
        for turn in turns:
            turn.sequence.checked(len(turn.drafts), turn.num_accepted)
        return sick

    def _take(self, turn: _Turn, token_id: int, logits: Floats | None) -> bool:
        """Hands a token to its sequence. Says whether another can follow: it was guessed."""
        sequence = turn.sequence
        if logits is not None:
            logprob = token_logprob(logits, token_id, sequence.request.top_logprobs)
            turn.logprobs.append(logprob)
        text, turn.finished = sequence.append(token_id)
        turn.text += text
        turn.token_ids.append(token_id)
        index = turn.num_accepted
        if index >= len(turn.drafts) or token_id != turn.drafts[index]:
            return False
        turn.num_accepted += 1
        if turn.finished is not None:
            return False
        sequence.computed(1)  # its keys and values are there: it was computed as a guess
        turn.row += 1
        return True

    def _tell(self, turn: _Turn) -> list[Event]:
        """The events of a sequence that got tokens."""
        sequence = turn.sequence
        request_id, index = sequence.request.id, sequence.sample_index
        events: list[Event] = []
        if index == 0 and sequence.num_sampled == len(turn.token_ids):
            events.append(_prefilled(sequence))
        events.append(Delta(request_id, index, turn.token_ids, turn.text, turn.logprobs))
        if turn.finished is not None:
            self._scheduler.release(sequence)
            events.append(
                replace(
                    turn.finished,
                    drafted_tokens=sequence.num_drafted,
                    accepted_tokens=sequence.num_accepted,
                )
            )
        return events

    def _fail(self, request_id: str, error: Exception) -> Failed:
        for slot in self._scheduler.cancel(request_id, keep=False):
            self._runner.clear(slot)
        return Failed(request_id, error)


def _chunk_input(chunk: Chunk) -> ChunkInput:
    sequence = chunk.sequence
    assert sequence.slot is not None  # only running sequences are scheduled
    return ChunkInput(
        sequence.slot,
        sequence.num_cached,
        sequence.next_tokens(chunk.num_tokens) + chunk.drafts,
        chunk.num_logits,
    )


def _prefilled(sequence: Sequence) -> Prefilled:
    return Prefilled(sequence.request.id, sequence.num_reused, sequence.prompt_logprobs)
