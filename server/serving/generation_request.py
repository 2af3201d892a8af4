"""What a caller wants to be generated, completed and checked: for every edge of the server.

It knows neither protobuf nor HTTP; fields are called what the wire's GenerateRequest calls them.
"""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from nanogpt.config import ModelConfig
from nanogpt.inference.request import Request, validate_request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import InvalidConfig, Violation, unknown_key
from nanogpt.tokenizer import Tokenizer, UnknownCharacters
from server.errors import InvalidArgument

SEED_BITS = 32
"""Of a seed that the server draws: enough to differ, few enough digits to type again."""

P = TypeVar("P", SamplingParams, StoppingParams)


def new_request(
    prompt: str | list[int],
    sampling: Mapping[str, Any],
    stopping: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    found: Iterable[Violation] = (),
    **options: Any,
) -> Request:
    """The request, with a new id. Encodes the prompt: see EngineThread.prepare.

    `sampling` and `stopping` have what the caller set, `options` the other fields of Request, and
    `found` is what is wrong already. Raises InvalidArgument naming every field that is wrong.
    """
    prompt_ids, in_prompt = _prompt_ids(prompt, tokenizer)
    sampling_params, in_sampling = sampling_from(sampling)
    stopping_params, in_stopping = stopping_from(stopping)
    request = Request(
        id=secrets.token_hex(8),  # the call's own id may be its caller's, and not unique
        prompt_ids=prompt_ids,
        sampling=sampling_params,
        stopping=stopping_params,
        **options,
    )
    violations = [*in_prompt, *in_sampling, *in_stopping, *found]
    try:
        validate_request(request, config, tokenizer)
    except InvalidConfig as error:
        violations += error.violations
    if violations:
        raise InvalidArgument(violations)
    return request


def sampling_from(values: Mapping[str, Any]) -> tuple[SamplingParams, list[Violation]]:
    """How to sample, and what is wrong with that; a seed is drawn if none is given."""
    return _checked(SamplingParams, "sampling", {"seed": secrets.randbits(SEED_BITS), **values})


def stopping_from(values: Mapping[str, Any]) -> tuple[StoppingParams, list[Violation]]:
    """When to stop, and what is wrong with that."""
    return _checked(StoppingParams, "stopping", values)


def _prompt_ids(prompt: str | list[int], tokenizer: Tokenizer) -> tuple[list[int], list[Violation]]:
    """Token ids of the prompt; any valid ones if it is wrong, so that the rest can be checked."""
    if isinstance(prompt, list):
        return prompt, []
    if not prompt and tokenizer.end_of_text_id is not None:
        return [tokenizer.end_of_text_id], []
    try:
        return tokenizer.encode(prompt or "\n"), []
    except UnknownCharacters as error:
        problem = f"has {error}" if prompt else "must be set: there is no newline to begin"
        return [0], [Violation("prompt", problem)]


def _checked(kind: type[P], path: str, values: Mapping[str, Any]) -> tuple[P, list[Violation]]:
    """The parameters, and what is wrong with them. Wrong ones are left at their defaults, so that
    what depends on the others can be checked too."""
    known = kind.__dataclass_fields__
    unknown = [unknown_key(key, known) for key in values if key not in known]
    found: list[Violation] = []
    kept = {key: value for key, value in values.items() if key in known}
    while True:
        try:
            params = kind(**kept)
            break
        except InvalidConfig as error:
            found = found or error.violations  # those of later rounds come from the defaults
            wrong = {violation.field.partition("[")[0] for violation in error.violations}
            kept = {name: value for name, value in kept.items() if name not in wrong}
    return params, [
        Violation(f"{path}.{violation.field}", violation.description)
        for violation in unknown + found
    ]
