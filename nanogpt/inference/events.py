"""What a step of the engine reports: the vocabulary between the engine and its readers. No torch.

For each request: Started once, first; Prefilled once, second; any number of Delta; Finished once
for each sample. Failed may come at any moment, for the whole request, and is the last. A cancelled
request reports nothing more. Queued is no report of a step, but what a reader asked for before
Started.
"""

from dataclasses import dataclass, field
from typing import Literal

from nanogpt.inference.logprobs import TokenLogprob

FinishReason = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True, slots=True)
class Queued:
    """The request still waits for a slot."""

    request_id: str
    requests_ahead: int
    """Requests that get one before it, unless more important ones come."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the waiting queue: its first sample has a slot."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt has been computed."""

    request_id: str
    cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each prompt token but the first, if the request asked for them."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens of one sample. Each sampled token is in exactly one Delta."""

    request_id: str
    sample_index: int
    token_ids: list[int]
    text: str
    """What became certain with these tokens: whole characters, no possible stop string."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each token if the request asked for them, else empty."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One sample is complete, or the text that was to be scored."""

    request_id: str
    sample_index: int
    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None
    drafted_tokens: int = 0
    """Tokens that were guessed ahead."""
    accepted_tokens: int = 0
    """Guesses that were right."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request is lost, with every sample that had not finished."""

    request_id: str
    error: BaseException


Event = Queued | Started | Prefilled | Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did."""

    events: list[Event] = field(default_factory=list)
    prefill_tokens: int = 0
    """Tokens computed in prefill chunks."""
    decode_tokens: int = 0
    """Tokens computed one to a sequence, and guesses after them."""
    batch_size: int = 0
    """Sequences in the forward pass."""
    drafts: int = 0
    """Sequences for which tokens were guessed."""
    drafted_tokens: int = 0
    """Tokens that were guessed."""
    accepted_tokens: int = 0
    """Guesses that were right."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return self.prefill_tokens + self.decode_tokens
