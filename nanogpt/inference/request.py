"""A request for generation, and the checks that need a model and its tokenizer.

Ranges that hold for every model are checked by SamplingParams and StoppingParams themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nanogpt.config import ModelConfig
from nanogpt.inference.sampler import Ids
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import InvalidConfig, Violation
from nanogpt.tokenizer import Tokenizer

RANGES = {
    "num_samples": (1, 64),
    "top_logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "priority": (-100, 100),
    "max_draft_tokens": (0, 16),
}
"""Numbers of a request whose range no model changes."""

MAX_LISTED_IDS = 16  # a prompt may hold a million bad ids; an error message may not


@dataclass(frozen=True)
class Request:
    """A prompt to continue `num_samples` times. Ids are unique among unfinished requests."""

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    stopping: StoppingParams
    num_samples: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    """Alternatives to return with the log-probability of each prompt token but the first, None if
    those are not wanted. All of the prompt is then computed, whatever the prefix cache holds."""
    priority: int = 0
    """Which goes first while several wait: the lowest."""
    use_prefix_cache: bool = True
    """Whether what earlier prompts computed may be used for this one."""
    max_draft_tokens: int = 0
    """Largest number of tokens to guess ahead by prompt lookup."""
    scores_only: bool = False
    """Samples nothing: `prompt_logprobs` of a text of any length is all that is wanted. What is
    longer than block_size is scored in windows that begin afresh."""

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs or self.top_logprobs > 0

    @property
    def may_reuse(self) -> bool:
        """Whether computed beginnings of the prompt may be taken from elsewhere."""
        return self.use_prefix_cache and self.prompt_logprobs is None

    @cached_property
    def distinct_prompt_ids(self) -> Ids:
        """The prompt's tokens, each once: found once for all samples."""
        return np.fromiter(set(self.prompt_ids), np.intp)


def validate_request(request: Request, model_config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises InvalidConfig with every violation; paths are those of the wire's GenerateRequest."""
    found: list[Violation] = []
    vocab_size, stopping = tokenizer.vocab_size, request.stopping

    def check_ids(ids: Iterable[int], path: str, item: str) -> None:
        """`item` is the path of one id, with {index} and {id} to fill in."""
        bad = [(index, id) for index, id in enumerate(ids) if not 0 <= id < vocab_size]
        found.extend(
            Violation(
                item.format(index=index, id=id), f"must be a token in [0, {vocab_size}), got {id}"
            )
            for index, id in bad[:MAX_LISTED_IDS]
        )
        if len(bad) > MAX_LISTED_IDS:
            rest = len(bad) - MAX_LISTED_IDS
            found.append(Violation(path, f"{rest} more ids are not tokens in [0, {vocab_size})"))

    check_ids(request.prompt_ids, "prompt_token_ids", "prompt_token_ids[{index}]")
    check_ids(
        stopping.stop_token_ids, "stopping.stop_token_ids", "stopping.stop_token_ids[{index}]"
    )
    check_ids(request.sampling.logit_bias, "sampling.logit_bias", "sampling.logit_bias[{id}]")
    if not request.prompt_ids:
        found.append(Violation("prompt_token_ids", "must have at least one token"))
    limit = model_config.block_size
    if stopping.context_overflow == "stop" and len(request.prompt_ids) > limit:
        found.append(
            Violation(
                "prompt",
                f"has {len(request.prompt_ids)} tokens; with context_overflow stop this model "
                f"takes at most {limit}",
            )
        )
    elif request.prompt_logprobs is not None and len(request.prompt_ids) > limit:
        found.append(
            Violation(
                "prompt",
                f"has {len(request.prompt_ids)} tokens; with response.prompt_logprobs this model "
                f"takes at most {limit}",
            )
        )
    if stopping.min_new_tokens > 0 and _ends_everywhere(stopping, tokenizer):
        found.append(
            Violation(
                "stopping.min_new_tokens",
                "must be 0 if every token is a stop token: none is left to sample",
            )
        )
    found += number_violations(
        {
            "num_samples": request.num_samples,
            "response.top_logprobs": request.top_logprobs,
            "response.prompt_logprobs": request.prompt_logprobs or 0,
            "priority": request.priority,
            "max_draft_tokens": request.max_draft_tokens,
        }
    )
    if found:
        raise InvalidConfig(found)


def number_violations(numbers: Mapping[str, int]) -> list[Violation]:
    """Which of these numbers, by path, are outside of RANGES."""
    found = []
    for path, number in numbers.items():
        low, high = RANGES[path.removeprefix("response.")]
        if not low <= number <= high:
            found.append(Violation(path, f"must be in [{low}, {high}], got {number}"))
    return found


def ending_ids(stopping: StoppingParams, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a generation, ascending: stop tokens and, unless ignored, end of text."""
    ids = set(stopping.stop_token_ids)
    if tokenizer.end_of_text_id is not None and not stopping.ignore_end_of_text:
        ids.add(tokenizer.end_of_text_id)
    return tuple(sorted(ids))


def _ends_everywhere(stopping: StoppingParams, tokenizer: Tokenizer) -> bool:
    return len(ending_ids(stopping, tokenizer)) >= tokenizer.vocab_size
