"""Messages of Generate: whatever they hold, a request comes out or every fault is named."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CONFIG, TOKENIZER, tiny_runner

from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Failed, Finished
from protos.nanogpt.v1 import inference_pb2 as pb
from server.errors import InvalidArgument
from server.services.generation import request_from_pb
from server.services.scalars import decimal

FLOATS = st.floats(width=32)
IDS = st.integers(-(1 << 31), (1 << 31) - 1)
SOME_IDS = st.one_of(st.integers(-1, TOKENIZER.vocab_size), IDS)


def messages(kind, **fields):
    """Messages of which any field may be unset."""
    optional = {name: st.none() | values for name, values in fields.items()}
    return st.builds(kind, **optional)


GENERATE_REQUESTS = messages(
    pb.GenerateRequest,
    prompt=st.text(st.sampled_from([*TOKENIZER.characters, "A", "\0", "😀"]), max_size=99),
    sampling=messages(
        pb.SamplingParams,
        temperature=st.floats(0, 2, width=32) | FLOATS,
        top_k=IDS,
        top_p=st.floats(0, 1, width=32) | FLOATS,
        min_p=st.floats(0, 1, width=32) | FLOATS,
        repetition_penalty=st.floats(0.015625, 10, width=32),
        presence_penalty=st.floats(-2, 2, width=32) | FLOATS,
        frequency_penalty=st.floats(-2, 2, width=32) | FLOATS,
        logit_bias=st.dictionaries(SOME_IDS, st.floats(-100, 100, width=32), max_size=3),
        seed=st.integers(0, (1 << 64) - 1),
    ),
    stopping=messages(
        pb.StoppingParams,
        max_new_tokens=st.integers(0, 4) | IDS,
        stop_strings=st.lists(st.text(max_size=3), max_size=5),
        stop_token_ids=st.lists(SOME_IDS, max_size=3),
        min_new_tokens=st.integers(0, 3) | IDS,
        ignore_end_of_text=st.booleans(),
        include_stop_string=st.booleans(),
        context_overflow=st.sampled_from([0, 1, 2, 3, 4, -1]),
    ),
    response=messages(
        pb.ResponseOptions,
        logprobs=st.booleans(),
        top_logprobs=st.integers(-1, 21),
        prompt_logprobs=st.integers(-1, 21),
        echo=st.booleans(),
    ),
    max_draft_tokens=st.integers(-1, 17),
    num_samples=st.integers(0, 3),
    priority=st.integers(-101, 101),
    use_prefix_cache=st.booleans(),
)


@settings(max_examples=300)
@given(GENERATE_REQUESTS)
def test_a_message_becomes_a_request_that_runs_or_names_its_faults(message):
    try:
        request, echo = request_from_pb(message, CONFIG, TOKENIZER)
    except InvalidArgument as refused:
        fields = [violation.field for violation in refused.violations]
        assert fields and len(set(fields)) == len(fields)
        return
    assert echo == (TOKENIZER.decode(request.prompt_ids) if message.response.echo else None)
    if request.stopping.max_new_tokens > 4:
        return  # valid, and long
    engine, ended = Engine(tiny_runner(num_slots=2), TOKENIZER), 0
    engine.add(request)
    while engine.has_work():
        for event in engine.step().events:
            assert not isinstance(event, Failed), event.error
            ended += isinstance(event, Finished)
    assert ended == request.num_samples


def test_faults_beside_other_faults_of_the_same_part():
    message = pb.GenerateRequest(
        prompt="a",
        sampling=pb.SamplingParams(top_p=2, logit_bias={99: 1}),
        stopping=pb.StoppingParams(max_new_tokens=0, min_new_tokens=200, stop_token_ids=[99]),
    )
    with pytest.raises(InvalidArgument) as refused:
        request_from_pb(message, CONFIG, TOKENIZER)
    assert {violation.field for violation in refused.value.violations} == {
        "sampling.top_p",
        "sampling.logit_bias[99]",
        "stopping.max_new_tokens",
        "stopping.stop_token_ids[0]",
    }


@given(FLOATS)
def test_a_decimal_is_the_same_float32(value):
    number = float(np.float32(value))
    assert (
        decimal(number) == number
        or np.float32(decimal(number)) == np.float32(number)
        or (math.isnan(value) and math.isnan(decimal(number)))
    )


def test_decimals_are_what_callers_wrote():
    assert [decimal(float(np.float32(x))) for x in (0.9, 0.1, 1.1, 2)] == [0.9, 0.1, 1.1, 2.0]
