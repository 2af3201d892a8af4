"""Load over gRPC: every stream's tokens and their times, over as many connections as it takes."""

import pytest
from fake_server import WORDS, FakeServer

from benchmarks import streams
from benchmarks.streams import LoadGenerator
from protos.nanogpt.v1.inference_pb2 import GenerateRequest


@pytest.fixture
def fake():
    with FakeServer() as server:
        yield server


@pytest.fixture
def load(fake, monkeypatch):
    monkeypatch.setattr(streams, "STREAMS_A_CONNECTION", 2)
    generator = LoadGenerator(fake.address, "bard", max_streams=5)
    yield generator
    generator.close()


def test_all_streams_are_read_to_their_end(fake, load):
    assert len(load._channels) == 3
    before = len(fake.asked(GenerateRequest))
    seconds, answers = load.at_once([[1, 2], [3], [4], [5], [6]], 9)
    assert seconds > 0
    assert [answer.token_ids for answer in answers] == [[1] * len(WORDS)] * 5
    assert all(len(answer.gaps) == len(WORDS) - 1 for answer in answers)
    assert all(gap >= 0 for answer in answers for gap in answer.gaps)
    requests = fake.asked(GenerateRequest)[before:]
    assert sorted(list(r.prompt_token_ids.ids) for r in requests) == [[1, 2], [3], [4], [5], [6]]
    for request in requests:
        assert (request.model, request.stopping.max_new_tokens) == ("bard", 9)
        assert request.sampling.temperature == 0 and request.sampling.HasField("temperature")
        assert request.stopping.ignore_end_of_text


def test_turns_take_every_prompt_once(fake, load):
    before = len(fake.asked(GenerateRequest))
    _, answers = load.in_turns([[number] for number in range(7)], 1, width=3)
    assert len(answers) == 7
    requests = fake.asked(GenerateRequest)[before:]
    assert sorted(r.prompt_token_ids.ids[0] for r in requests) == list(range(7))
