"""The engine: generations go in, events come out, one step at a time.

It knows nothing of threads, clocks or the wire: whoever owns it calls `step` while `has_work`, all
from one thread, and `cancel` takes effect before the next step.

    engine = Engine(model, tokenizer)
    engine.add(Request("r1", tokenizer.encode("O Romeo"), SamplingParams(), StoppingParams()))
    while engine.has_work():
        for event in engine.step().events:
            print(event)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.inference.events import Delta, Event, Failed, Finished, Started, StepResult
from nanogpt.inference.kv_cache import CachedAttention, KVCache, Span
from nanogpt.inference.logprobs import Alternative, TokenLogprob, token_logprob
from nanogpt.inference.request import Request
from nanogpt.inference.sampler import Floats, sample
from nanogpt.inference.scheduler import Batch, Chunk, Scheduler
from nanogpt.inference.sequence import Sequence
from nanogpt.model import GPT
from nanogpt.tokenizer import Tokenizer

__all__ = [
    "Alternative",
    "Delta",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "NonFiniteLogits",
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
    """Continuous batching of one model over a fixed number of KV slots.

    Requests must be valid (`validate_request`) and their ids unique among unfinished ones. Puts
    the model into evaluation mode. Raises ValueError if the tokenizer has more tokens than the
    model.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        num_slots: int = 32,
        prefill_chunk_tokens: int = 256,
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens; "
                f"this model has {model.config.vocab_size}"
            )
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(num_slots, prefill_chunk_tokens)
        # on CPUs bfloat16 attention was measured 3 to 5 times slower than float32
        dtype = torch.float32 if model.device.type == "cpu" else model.lm_head.weight.dtype
        self._cache = KVCache(model.config, num_slots, dtype, model.device)

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
        scheduler, config = self._scheduler, self._model.config
        return scheduler.num_cached_tokens / (scheduler.num_slots * config.block_size)

    def add(self, request: Request) -> None:
        """Queues every sample of a request."""
        block_size = self._model.config.block_size
        for index in range(request.num_samples):
            self._scheduler.add(Sequence(request, index, block_size, self._tokenizer))

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

    @torch.inference_mode()
    def _run(self, batch: Batch) -> list[Choice]:
        """The forward pass and the draws: one choice for each of batch.sampled."""
        if not batch.chunks:
            return []
        for copy in batch.copies:
            self._cache.copy(copy.from_slot, copy.to_slot, copy.num_tokens)
        hidden = self._hidden(batch)  # (N, C)
        if not batch.sampled:
            return []
        logits = self._logits(hidden, batch)
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

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states (N, C) of all tokens of the batch, decodes first, in one pass."""
        decodes = [_span(chunk) for chunk in batch.decodes]
        prefills = [_span(chunk) for chunk in batch.prefills]
        tokens: list[int] = []
        positions: list[int] = []
        for chunk in batch.chunks:
            start = chunk.sequence.num_cached
            tokens += chunk.sequence.next_tokens(chunk.num_tokens)
            positions += range(start, start + chunk.num_tokens)
        device = self._model.device
        hidden = self._model.hidden(
            torch.tensor([tokens], device=device),
            torch.tensor([positions], device=device),
            CachedAttention(self._cache, decodes, prefills),
        )
        return hidden[0]

    def _logits(self, hidden: Tensor, batch: Batch) -> Floats:
        """Float32 logits (sampled, V) of the last tokens of complete chunks, without padding."""
        last, end = [], 0
        for chunk in batch.chunks:
            end += chunk.num_tokens
            if chunk.completes:
                last.append(end - 1)
        logits = self._model.lm_head(hidden[last])[:, : self._tokenizer.vocab_size]
        return logits.float().cpu().numpy()

    def _advance(self, choice: Choice) -> list[Event]:
        """Hands a sampled token to its sequence."""
        sequence, token_id = choice.sequence, choice.token_id
        request_id, index = sequence.request.id, sequence.sample_index
        if sequence.slot is None:
            return []  # another sample of its request failed in this step
        if token_id is None:
            return [self._fail(request_id, NonFiniteLogits("the model's logits are not finite"))]
        text, finished = sequence.append(token_id)
        logprobs = [choice.logprob] if choice.logprob is not None else []
        events: list[Event] = [Delta(request_id, index, [token_id], text, logprobs)]
        if finished is not None:
            self._scheduler.release(sequence)
            events.append(finished)
        return events

    def _fail(self, request_id: str, error: Exception) -> Failed:
        for slot in self._scheduler.cancel(request_id):
            self._cache.clear(slot)
        return Failed(request_id, error)


def _span(chunk: Chunk) -> Span:
    assert chunk.sequence.slot is not None  # only running sequences are scheduled
    return Span(chunk.sequence.slot, chunk.sequence.num_cached, chunk.num_tokens)
