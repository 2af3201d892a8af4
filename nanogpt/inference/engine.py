"""The engine: generations go in, events come out, one step at a time.

It knows nothing of threads, clocks or the wire, and of the network only its Runner: whoever owns it
calls `step` while `has_work`, all from one thread, and `cancel` takes effect before the next step.

    engine = Engine(TorchRunner(model, tokenizer.vocab_size), tokenizer)
    engine.add(Request("r1", tokenizer.encode("O Romeo"), SamplingParams(), StoppingParams()))
    while engine.has_work():
        for event in engine.step().events:
            print(event)
"""

from dataclasses import dataclass

from nanogpt.inference.events import Delta, Event, Failed, Finished, Prefilled, Started, StepResult
from nanogpt.inference.logprobs import Alternative, TokenLogprob, token_logprob
from nanogpt.inference.request import Request
from nanogpt.inference.runner import ChunkInput, Runner
from nanogpt.inference.sampler import sample
from nanogpt.inference.scheduler import Batch, Chunk, Scheduler
from nanogpt.inference.sequence import Sequence
from nanogpt.tokenizer import Tokenizer

__all__ = [
    "Alternative",
    "Delta",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "NonFiniteLogits",
    "Prefilled",
    "Started",
    "StepResult",
    "TokenLogprob",
]


class NonFiniteLogits(ArithmeticError):
    """The model's output was NaN or infinite, so no token could be chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was sampled for a sequence; no token if its logits were not finite."""

    sequence: Sequence
    token_id: int | None
    logprob: TokenLogprob | None


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
        try:
            choices = self._run(batch)
        except Exception as error:
            for request_id in dict.fromkeys(chunk.sequence.request.id for chunk in batch.chunks):
                events.append(self._fail(request_id, error))
        else:
            self._scheduler.computed(batch)
            for choice in choices:
                events += self._advance(choice)
        return StepResult(
            events,
            prefill_tokens=sum(chunk.num_tokens for chunk in batch.prefills),
            decode_tokens=len(batch.decodes),
            batch_size=len(batch.chunks),
        )

    def _run(self, batch: Batch) -> list[Choice]:
        """The forward pass and the draws: one choice for each of batch.sampled."""
        if not batch.chunks:
            return []
        for copy in batch.copies:
            self._runner.copy(copy.from_slot, copy.to_slot, copy.num_tokens)
        logits = self._runner.forward([_chunk_input(chunk) for chunk in batch.chunks])
        wanted = [sequence.request.wants_logprobs for sequence in batch.sampled]
        raw = iter(logits[wanted])  # copies: the sampler overwrites what it is given
        token_ids = sample(logits, [sequence.row for sequence in batch.sampled])
        choices = []
        for sequence, token_id in zip(batch.sampled, token_ids, strict=True):
            logprob = None
            if sequence.request.wants_logprobs:
                row = next(raw)
                if token_id is not None:
                    logprob = token_logprob(row, token_id, sequence.request.top_logprobs)
            choices.append(Choice(sequence, token_id, logprob))
        return choices

    def _advance(self, choice: Choice) -> list[Event]:
        """Hands a sampled token to its sequence."""
        sequence, token_id = choice.sequence, choice.token_id
        request_id, index = sequence.request.id, sequence.sample_index
        if sequence.slot is None:
            return []  # another sample of its request failed in this step
        if token_id is None:
            return [self._fail(request_id, NonFiniteLogits("the model's logits are not finite"))]
        events: list[Event] = []
        if index == 0 and not sequence.num_sampled:
            events.append(Prefilled(request_id, sequence.num_reused))
        text, finished = sequence.append(token_id)
        logprobs = [choice.logprob] if choice.logprob is not None else []
        events.append(Delta(request_id, index, [token_id], text, logprobs))
        if finished is not None:
            self._scheduler.release(sequence)
            events.append(finished)
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
        sequence.next_tokens(chunk.num_tokens),
        num_logits=int(chunk.completes),
    )
