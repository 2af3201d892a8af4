"""Every violation of a request is found, and named as the wire names it."""

from dataclasses import replace

import pytest

from nanogpt.config import ModelConfig
from nanogpt.inference.request import Request, validate_request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import InvalidConfig
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

TOKENIZER = CharTokenizer("abcdefgh")
CONFIG = ModelConfig(block_size=4, vocab_size=64, n_layer=1, n_head=1, n_embd=8)
VALID = Request("r", [0, 7], SamplingParams(), StoppingParams())


def violations(request: Request) -> dict[str, str]:
    with pytest.raises(InvalidConfig) as caught:
        validate_request(request, CONFIG, TOKENIZER)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_valid_request_passes() -> None:
    validate_request(VALID, CONFIG, TOKENIZER)
    validate_request(replace(VALID, num_samples=64, top_logprobs=20), CONFIG, TOKENIZER)


def test_all_violations_are_collected() -> None:
    """Ids are checked against the tokenizer: the model's padding is not to be had either."""
    request = Request(
        "r",
        [0, 8, -1],
        SamplingParams(logit_bias={7: 1.0, 70000: 1.0}),
        StoppingParams(stop_token_ids=(8, 3)),
        num_samples=0,
        top_logprobs=21,
        priority=-101,
    )
    assert violations(request) == {
        "prompt_token_ids[1]": "must be a token in [0, 8), got 8",
        "prompt_token_ids[2]": "must be a token in [0, 8), got -1",
        "sampling.logit_bias[70000]": "must be a token in [0, 8), got 70000",
        "stopping.stop_token_ids[0]": "must be a token in [0, 8), got 8",
        "num_samples": "must be in [1, 64], got 0",
        "response.top_logprobs": "must be in [0, 20], got 21",
        "priority": "must be in [-100, 100], got -101",
    }


def test_a_prompt_has_at_least_one_token() -> None:
    found = violations(replace(VALID, prompt_ids=[]))
    assert found == {"prompt_token_ids": "must have at least one token"}


def test_many_bad_ids_are_summed_up() -> None:
    found = violations(replace(VALID, prompt_ids=[99] * 1000))
    assert len(found) == 17
    assert found["prompt_token_ids"] == "984 more ids are not tokens in [0, 8)"


@pytest.mark.parametrize("overflow", ["roll", "stop", "exact"])
def test_only_stop_limits_the_prompt(overflow: str) -> None:
    stopping = StoppingParams(context_overflow=overflow)
    validate_request(replace(VALID, prompt_ids=[0] * 4, stopping=stopping), CONFIG, TOKENIZER)
    long = replace(VALID, prompt_ids=[0] * 5, stopping=stopping)
    if overflow == "stop":
        assert violations(long) == {
            "prompt": "has 5 tokens; with context_overflow stop this model takes at most 4"
        }
    else:
        validate_request(long, CONFIG, TOKENIZER)


def test_something_must_be_left_to_sample() -> None:
    stopping = StoppingParams(stop_token_ids=tuple(range(8)), min_new_tokens=1)
    assert list(violations(replace(VALID, stopping=stopping))) == ["stopping.min_new_tokens"]
    validate_request(
        replace(VALID, stopping=replace(stopping, min_new_tokens=0)), CONFIG, TOKENIZER
    )


def test_end_of_text_is_an_ordinary_prompt_token() -> None:
    config = ModelConfig(block_size=4, vocab_size=50304, n_layer=1, n_head=1, n_embd=8)
    validate_request(replace(VALID, prompt_ids=[50256]), config, GPT2Tokenizer())
    with pytest.raises(InvalidConfig, match="50257"):
        validate_request(replace(VALID, prompt_ids=[50257]), config, GPT2Tokenizer())
