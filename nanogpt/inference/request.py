"""A request for generation, and the checks that need a model and its tokenizer.

Ranges that hold for every model are checked by SamplingParams and StoppingParams themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nanogpt.config import InvalidConfig, ModelConfig, SamplingParams, StoppingParams, Violation
from nanogpt.inference.sampler import Ids
from nanogpt.tokenizer import Tokenizer

MAX_SAMPLES = 64
MAX_PRIORITY = 100
MAX_TOP_LOGPROBS = 20
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
    priority: int = 0
    """Which goes first while several wait: the lowest."""
    use_prefix_cache: bool = True
    """Whether what earlier prompts computed may be used for this one."""

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs or self.top_logprobs > 0

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
    if stopping.min_new_tokens > 0 and _ends_everywhere(stopping, tokenizer):
        found.append(
            Violation(
                "stopping.min_new_tokens",
                "must be 0 if every token is a stop token: none is left to sample",
            )
        )
    found += count_violations(request.num_samples, request.top_logprobs, request.priority)
    if found:
        raise InvalidConfig(found)


def count_violations(num_samples: int, top_logprobs: int, priority: int) -> list[Violation]:
    """What is wrong with these numbers whatever the model."""
    found = []
    if not 1 <= num_samples <= MAX_SAMPLES:
        found.append(Violation("num_samples", f"must be in [1, {MAX_SAMPLES}], got {num_samples}"))
    if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        problem = f"must be in [0, {MAX_TOP_LOGPROBS}], got {top_logprobs}"
        found.append(Violation("response.top_logprobs", problem))
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        problem = f"must be in [{-MAX_PRIORITY}, {MAX_PRIORITY}], got {priority}"
        found.append(Violation("priority", problem))
    return found


def ending_ids(stopping: StoppingParams, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a generation, ascending: stop tokens and, unless ignored, end of text."""
    ids = set(stopping.stop_token_ids)
    if tokenizer.end_of_text_id is not None and not stopping.ignore_end_of_text:
        ids.add(tokenizer.end_of_text_id)
    return tuple(sorted(ids))


def _ends_everywhere(stopping: StoppingParams, tokenizer: Tokenizer) -> bool:
    return len(ending_ids(stopping, tokenizer)) >= tokenizer.vocab_size
