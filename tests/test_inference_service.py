"""InferenceService as its clients see it: a real server, a tiny real model."""

import asyncio
import math
import sys
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from serving import (
    LONG,
    TOKENIZER,
    damage,
    detail,
    refused,
    sample,
    served,
    until,
    violations,
    write_checkpoint,
    write_job_checkpoint,
)

from nanogpt.checkpoint import publish_model
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer
from protos.nanogpt.v1 import inference_pb2 as pb
from server.services import generation
from server.services import inference as module
from server.serving import engine_thread

Code = grpc.StatusCode


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path


def generate_request(tokens: int = 8, *, seed: int | None = 1, **fields) -> pb.GenerateRequest:
    fields = {"prompt": "once", **fields}
    request = pb.GenerateRequest(
        model=fields.pop("model", "tiny"), stopping=pb.StoppingParams(max_new_tokens=tokens)
    )
    if seed is not None:
        request.sampling.seed = seed
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


class Answer:
    """A whole stream, taken apart."""

    def __init__(self, responses) -> None:
        kinds = [response.WhichOneof("event") for response in responses]
        assert kinds[0] == "started" and kinds[-1] == "finished" and kinds.count("started") == 1
        self.started = responses[0].started
        self.deltas = [r.delta for r in responses if r.WhichOneof("event") == "delta"]
        self.finished = {
            r.finished.sample_index: r.finished
            for r in responses
            if r.WhichOneof("event") == "finished"
        }
        self.last = responses[-1].finished

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.sample_index == index)

    def tokens(self, index: int = 0) -> list[int]:
        return [t for d in self.deltas if d.sample_index == index for t in d.token_ids]


async def generate(server, request) -> Answer:
    return Answer([response async for response in server.inference.Generate(request)])


def is_idle(server, model: str = "tiny") -> bool:
    return server.load(model) == (0, 0, 0)


async def test_a_stream_from_start_to_end(folder):
    async with served(folder) as server:
        answer = await generate(server, generate_request(12))
        started, last = answer.started, answer.last
        assert started.request_id and started.model == "tiny" and started.weight_version == 10
        assert (started.prompt_tokens, started.precision) == (4, "float32")
        assert TOKENIZER.decode(answer.tokens()) == answer.text()
        assert last.reason == pb.FINISH_REASON_LENGTH and last.WhichOneof("stop") is None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 12)
        timings = last.timings
        assert 0 < timings.queue_seconds < timings.time_to_first_token_seconds
        assert timings.time_to_first_token_seconds < timings.total_seconds
        assert 0 < timings.prefill_seconds < timings.time_to_first_token_seconds
        await until(lambda: is_idle(server))


async def test_defaults_are_filled_in_and_reported(folder):
    async with served(folder) as server:
        started = (await generate(server, pb.GenerateRequest())).started
        sampling, stopping = started.sampling, started.stopping
        assert (sampling.temperature, sampling.repetition_penalty) == (1, 1)
        assert sampling.HasField("seed") and sampling.HasField("presence_penalty")
        assert not sampling.HasField("top_k") and not sampling.HasField("top_p")
        assert (stopping.max_new_tokens, stopping.min_new_tokens) == (128, 0)
        assert stopping.HasField("min_new_tokens")
        assert stopping.context_overflow == pb.CONTEXT_OVERFLOW_ROLL
        assert started.prompt_tokens == 1  # a newline


async def test_a_zero_is_not_a_default(folder):
    async with served(folder) as server:
        request = generate_request(20, sampling=pb.SamplingParams(temperature=0, seed=0))
        greedy = [await generate(server, request) for _ in range(2)]
        assert greedy[0].started.sampling.temperature == 0
        assert greedy[0].started.sampling.seed == 0
        request.sampling.seed = 99
        assert greedy[0].tokens() == greedy[1].tokens()
        assert greedy[0].tokens() == (await generate(server, request)).tokens()


async def test_a_drawn_seed_is_reported_and_gives_the_same_text_again(folder):
    async with served(folder) as server:
        first = await generate(server, generate_request(40, seed=None))
        second = await generate(server, generate_request(40, seed=None))
        assert first.started.sampling.seed != second.started.sampling.seed
        neighbours = [generate(server, generate_request(60, seed=None)) for _ in range(3)]
        again, *_ = await asyncio.gather(
            generate(server, generate_request(40, seed=first.started.sampling.seed)), *neighbours
        )
        assert again.tokens() == first.tokens() != second.tokens()


async def test_several_samples(folder):
    async with served(folder) as server:
        one = await generate(server, generate_request(20))
        six = await generate(server, generate_request(20, num_samples=6))  # more than slots
        assert six.tokens(0) == one.tokens()
        assert len({tuple(six.tokens(index)) for index in range(6)}) == 6
        assert sorted(six.finished) == list(range(6))
        with_usage = [f for f in six.finished.values() if f.HasField("usage")]
        assert with_usage == [six.last] and six.last.HasField("timings")
        assert six.last.usage.completion_tokens == 120


async def test_stop_strings_and_stop_tokens(folder):
    async with served(folder) as server:
        whole = (await generate(server, generate_request(60))).text()
        stop = whole[20:23]
        request = generate_request(60, stopping=pb.StoppingParams(stop_strings=["~", stop]))
        answer = await generate(server, request)
        assert answer.text() == whole[: whole.index(stop)]
        assert answer.last.reason == pb.FINISH_REASON_STOP
        assert answer.last.stop_string == stop
        assert answer.last.usage.completion_tokens == whole.index(stop) + 3

        token = TOKENIZER.encode(whole[30])[0]
        request = generate_request(60, stopping=pb.StoppingParams(stop_token_ids=[token]))
        answer = await generate(server, request)
        assert answer.last.stop_token_id == token
        assert answer.text() == whole[: whole.index(whole[30])]


async def test_log_probabilities_on_request(folder):
    async with served(folder) as server:
        request = generate_request(5, response=pb.ResponseOptions(top_logprobs=3))
        answer = await generate(server, request)
        logprobs = [logprob for delta in answer.deltas for logprob in delta.logprobs]
        assert [logprob.token_id for logprob in logprobs] == answer.tokens()
        assert all(logprob.logprob < 0 and logprob.rank >= 1 for logprob in logprobs)
        assert all(len(logprob.top) == 3 for logprob in logprobs)
        plain = await generate(server, generate_request(5))
        assert not any(delta.logprobs for delta in plain.deltas)


async def test_prompts_as_token_ids_and_longer_than_the_window(folder):
    async with served(folder) as server:
        text = "abc " * 40
        by_text = await generate(server, generate_request(10, prompt=text))
        request = generate_request(10)
        request.prompt_token_ids.ids.extend(TOKENIZER.encode(text))
        by_ids = await generate(server, request)
        assert by_ids.tokens() == by_text.tokens()
        assert by_ids.started.prompt_tokens == 160


async def test_every_wrong_field_is_named_at_once(folder):
    nan, inf = math.nan, math.inf
    async with served(folder) as server:
        request = pb.GenerateRequest(
            prompt="ONCE upon ~",
            sampling=pb.SamplingParams(
                temperature=nan,
                top_k=0,
                top_p=1.1,
                min_p=-inf,
                repetition_penalty=0,
                presence_penalty=inf,
                logit_bias={1: 101, 2: nan, 70000: 1},
            ),
            stopping=pb.StoppingParams(
                max_new_tokens=0,
                stop_strings=["fine", ""],
                stop_token_ids=[-1],
                min_new_tokens=-1,
                context_overflow=7,
            ),
            response=pb.ResponseOptions(top_logprobs=21),
            num_samples=65,
            priority=101,
        )
        found = violations(await refused(server.inference.Generate(request)))
        assert set(found) == {
            "prompt",
            "sampling.temperature",
            "sampling.top_k",
            "sampling.top_p",
            "sampling.min_p",
            "sampling.repetition_penalty",
            "sampling.presence_penalty",
            "sampling.logit_bias[1]",
            "sampling.logit_bias[2]",
            "stopping.max_new_tokens",
            "stopping.stop_strings[1]",
            "stopping.stop_token_ids[0]",
            "stopping.min_new_tokens",
            "stopping.context_overflow",
            "response.top_logprobs",
            "num_samples",
            "priority",
        }
        assert found["sampling.top_p"] == "must be in (0, 1], got 1.1"
        for character in "ONCE~":
            assert repr(character) in found["prompt"]
        assert sample(server.metrics, "requests_rejected_total", model="tiny", reason="validation")


async def test_wrong_token_ids_are_named(folder):
    async with served(folder) as server:
        request = generate_request(sampling=pb.SamplingParams(logit_bias={70000: 1}))
        request.prompt_token_ids.ids.extend([1, TOKENIZER.vocab_size, -1])
        found = violations(await refused(server.inference.Generate(request)))
        assert set(found) == {
            "prompt_token_ids[1]",
            "prompt_token_ids[2]",
            "sampling.logit_bias[70000]",
        }
        request = generate_request()
        request.prompt_token_ids.SetInParent()
        assert "prompt_token_ids" in violations(await refused(server.inference.Generate(request)))


async def test_models_that_do_not_exist_and_names_that_are_paths(folder):
    async with served(folder) as server:
        for model in ("other", "tiny@3", "job:nope"):
            error = await refused(server.inference.Generate(generate_request(model=model)))
            assert error.code() is Code.NOT_FOUND
            assert detail(error, error_details_pb2.ResourceInfo) is not None
        for model in ("../tiny", "/etc/passwd", "tiny/../tiny", "job:../../models/tiny"):
            error = await refused(server.inference.Generate(generate_request(model=model)))
            assert set(violations(error)) == {"model"}


async def test_fields_that_no_model_would_take_are_named_before_a_model_is_missing(tmp_path):
    async with served(tmp_path) as server:
        wrong = {"sampling": pb.SamplingParams(temperature=3), "num_samples": 0}
        fields = {"sampling.temperature", "num_samples", "response.top_logprobs"}
        wrong["response"] = pb.ResponseOptions(top_logprobs=-1)
        for model in ("", "other", "job:nope"):
            request = generate_request(model=model, **wrong)
            assert set(violations(await refused(server.inference.Generate(request)))) == fields
        request = generate_request(model="../tiny", **wrong)
        assert set(violations(await refused(server.inference.Generate(request)))) == {
            "model",
            *fields,
        }


async def test_an_empty_prompt_needs_something_to_begin_with(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny", tokenizer=CharTokenizer("abcdefgh"))
    async with served(tmp_path) as server:
        error = await refused(server.inference.Generate(generate_request(prompt="")))
        assert set(violations(error)) == {"prompt"}


async def test_a_damaged_model_is_data_loss(folder):
    damage(folder / "models" / "tiny")
    async with served(folder) as server:
        error = await refused(server.inference.Generate(generate_request()))
        assert error.code() is Code.DATA_LOSS
        assert str(folder) not in error.details()


async def test_of_100_streams_10_are_cut_and_90_are_exact(folder):
    async with served(folder, num_slots=8) as server:

        async def cut(call) -> None:
            async for _ in call:  # it runs
                break
            call.cancel()

        calls = [server.inference.Generate(generate_request(20, seed=i)) for i in range(100)]

        async def read(call) -> list[int]:
            return Answer([response async for response in call]).tokens()

        results = await asyncio.gather(
            *(read(call) if i % 10 else cut(call) for i, call in enumerate(calls))
        )
        assert {len(tokens) for tokens in results if tokens is not None} == {20}
        assert sum(tokens is not None for tokens in results) == 90
        await until(lambda: is_idle(server))
        alone = await generate(server, generate_request(20, seed=7))
        assert alone.tokens() == results[7]


async def test_a_stream_cut_in_the_middle_frees_its_slots(folder):
    async with served(folder) as server:
        call = server.inference.Generate(generate_request(LONG, num_samples=4))
        async for response in call:
            if response.WhichOneof("event") == "delta":
                break
        await until(lambda: server.load()[0] == 4)
        call.cancel()
        await until(lambda: is_idle(server))


async def test_cutting_a_waiting_call_leaves_the_running_one_alone(folder):
    async with served(folder, num_slots=1) as server:
        running = aiter(server.inference.Generate(generate_request(300)))
        responses = [await anext(running)]
        waiting = server.inference.Generate(generate_request(LONG))
        await until(lambda: server.load()[1] == 1)
        waiting.cancel()
        responses += [response async for response in running]
        assert len(Answer(responses).tokens()) == 300
        await until(lambda: is_idle(server))


async def test_logprobs_of_a_prompt_fit_into_one_message(folder, monkeypatch):
    monkeypatch.setattr(generation, "MAX_ENTRIES", 12)  # prompts below have 4 tokens
    async with served(folder) as server:
        few = generate_request(1, response=pb.ResponseOptions(prompt_logprobs=2))
        assert len((await generate(server, few)).started.prompt_logprobs) == 3
        many = generate_request(1, response=pb.ResponseOptions(prompt_logprobs=3))
        error = await refused(server.inference.Generate(many))
    problem = "makes 16 numbers for this prompt; at most 12 are returned"
    assert violations(error) == {"response.prompt_logprobs": problem}


async def test_many_biases_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(generation, "decimal", None)
    request = generate_request()
    for token in range(1025):
        request.sampling.logit_bias[token] = 0
    request.sampling.ClearField("seed")
    async with served(folder) as server:
        error = await refused(server.inference.Generate(request))
    assert violations(error) == {"sampling.logit_bias": "must have at most 1024 entries, got 1025"}


async def test_a_full_queue_says_when_to_come_back(folder):
    async with served(folder, num_slots=1, max_waiting=1) as server:
        running = server.inference.Generate(generate_request(LONG))
        await anext(aiter(running))
        waiting = server.inference.Generate(generate_request(LONG))
        await until(lambda: server.load()[:2] == (1, 1))
        error = await refused(server.inference.Generate(generate_request()))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0
        assert detail(error, error_details_pb2.QuotaFailure) is not None
        waiting.cancel()
        running.cancel()
        await until(lambda: is_idle(server))


async def test_who_waits_is_told_how_many_go_first(folder):
    async with served(folder, num_slots=1, queued_seconds=0.02) as server:
        running = server.inference.Generate(generate_request(LONG))
        await anext(aiter(running))
        first = server.inference.Generate(generate_request(LONG))
        await until(lambda: server.load()[1] == 1)
        second = server.inference.Generate(generate_request(2))
        assert (await anext(aiter(second))).queued.requests_ahead == 1
        assert (await anext(aiter(first))).queued.requests_ahead == 0
        first.cancel()
        responses = [await anext(aiter(second))]
        while responses[-1].queued.requests_ahead:  # the message was on its way
            responses.append(await anext(aiter(second)))
        assert responses[-1].WhichOneof("event") == "queued"
        running.cancel()
        rest = [response async for response in second]
        answer = Answer([r for r in rest if r.WhichOneof("event") != "queued"])
        assert len(answer.tokens()) == 2
        await until(lambda: is_idle(server))


def handled(server, code: str) -> float:
    """How many calls of Generate have ended with this code."""
    method = {"grpc_service": "nanogpt.v1.InferenceService", "grpc_method": "Generate"}
    labels = {"grpc_type": "server_stream", **method, "grpc_code": code}
    return server.metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def test_a_full_queue_refuses_before_it_prepares_a_request(folder, monkeypatch):
    prepare, gate, prepared = module.request_from_pb, threading.Event(), []

    def slow(*arguments):
        prepared.append(arguments)
        assert gate.wait(20)
        return prepare(*arguments)

    async with served(folder, num_slots=1, max_waiting=1) as server:
        await generate(server, generate_request(1))
        monkeypatch.setattr(module, "request_from_pb", slow)
        monkeypatch.setattr(engine_thread, "SHORT_PROMPT_TOKENS", 0)  # in a thread
        calls = [asyncio.create_task(generate(server, generate_request())) for _ in range(2)]
        await until(lambda: len(prepared) == 2)
        error = await refused(server.inference.Generate(generate_request()))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        calls[0].cancel()  # gives its place back
        await until(lambda: handled(server, "Cancelled") == 1)
        another = asyncio.create_task(generate(server, generate_request()))
        await until(lambda: len(prepared) == 3)
        gate.set()
        for call in (calls[1], another):
            assert len((await call).tokens()) == 8


async def test_a_deadline_that_passes_while_running_or_waiting(folder):
    async with served(folder, num_slots=1) as server:
        await generate(server, generate_request(1))  # loads the model
        running = aiter(server.inference.Generate(generate_request(LONG), timeout=0.5))
        await anext(running)
        waiting = server.inference.Generate(generate_request(LONG), timeout=0.3)
        scoring = server.inference.Score(pb.ScoreRequest(text="once"), timeout=0.3)
        for call in (waiting, scoring, running):
            assert (await refused(call)).code() is Code.DEADLINE_EXCEEDED
        await until(lambda: is_idle(server))
        rejected = {"model": "tiny", "reason": "deadline"}
        await until(lambda: sample(server.metrics, "requests_rejected_total", **rejected) == 3)


async def test_a_call_without_a_deadline_that_takes_too_long(folder):
    async with served(folder, num_slots=1, max_deadline_seconds=0.5) as server:
        await generate(server, generate_request(1))  # loads the model
        error = await refused(server.inference.Generate(generate_request(LONG)))
        assert error.code() is Code.DEADLINE_EXCEEDED
        await until(lambda: is_idle(server))
        rejected = {"model": "tiny", "reason": "deadline"}
        assert sample(server.metrics, "requests_rejected_total", **rejected) == 1


async def test_very_short_deadlines_break_nothing(folder):
    async with served(folder) as server:
        await generate(server, generate_request(1))
        calls = [
            server.inference.Generate(generate_request(LONG), timeout=number / 10_000)
            for number in range(1, 40)
        ]
        errors = await asyncio.gather(*map(refused, calls))
        assert {error.code() for error in errors} == {Code.DEADLINE_EXCEEDED}
        await until(lambda: is_idle(server))


async def test_a_reader_that_does_not_read_loses_its_slot(folder):
    # a client that buffers as little as gRPC allows: else this takes 20 MB of tokens
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    async with served(folder, slow_reader_seconds=0.2, channel_options=small_window) as server:
        request = generate_request(
            LONG, num_samples=4, response=pb.ResponseOptions(top_logprobs=20)
        )
        call = aiter(server.inference.Generate(request))
        await anext(call)
        rejected = {"model": "tiny", "reason": "slow_reader"}
        await until(lambda: sample(server.metrics, "requests_rejected_total", **rejected) == 1, 60)
        await until(lambda: is_idle(server))
        error = await refused(call)
        assert error.code() is Code.RESOURCE_EXHAUSTED
        # the others are served
        assert len((await generate(server, generate_request(5))).tokens()) == 5


async def test_a_client_that_is_killed_leaves_nothing_behind(folder):
    script = """
import asyncio, sys, grpc
from protos.nanogpt.v1 import inference_pb2 as pb, inference_pb2_grpc as pb_grpc

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        request = pb.GenerateRequest()
        request.stopping.max_new_tokens = 65536
        await asyncio.gather(*(stub.Generate(request).read() for _ in range(16)))

asyncio.run(main())
"""
    async with served(folder) as server:
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", script, server.address)
        try:
            await until(lambda: server.load()[:2] == (4, 12))
        finally:
            client.kill()
            await client.wait()
        await until(lambda: is_idle(server))
        assert len((await generate(server, generate_request(5))).tokens()) == 5


async def test_a_failing_forward_pass_is_internal_and_the_next_call_is_served(folder, monkeypatch):
    async with served(folder) as server:
        await generate(server, generate_request(1))
        with monkeypatch.context() as patch:

            def fail(*_):
                raise RuntimeError("secret /etc/passwd")

            patch.setattr("nanogpt.model.GPT.hidden", fail)
            calls = [server.inference.Generate(generate_request()) for _ in range(3)]
            for error in await asyncio.gather(*map(refused, calls)):
                assert error.code() is Code.INTERNAL
                assert error.details() == "internal error"
                info = detail(error, error_details_pb2.ErrorInfo)
                assert info.metadata["error_id"]
        assert len((await generate(server, generate_request(5))).tokens()) == 5
        await until(lambda: is_idle(server))


async def test_a_job_is_sampled_while_it_trains(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with served(tmp_path) as server:
        old = aiter(server.inference.Generate(generate_request(1000, model="job:j1")))
        responses = [await anext(old)]
        folder = write_job_checkpoint(tmp_path, "j1", 200)
        new = await generate(server, generate_request(model="job:j1"))
        assert (new.started.model, new.started.weight_version) == ("trained", 200)
        responses += [response async for response in old]
        answer = Answer(responses)
        assert answer.started.weight_version == 100 and len(answer.tokens()) == 1000
        # nothing published yet: no name means the newest checkpoint
        assert (await generate(server, generate_request(model=""))).tokens() == new.tokens()
        publish_model(folder, tmp_path / "models" / "trained")
        for model in ("", "trained", "trained@200"):
            assert (await generate(server, generate_request(model=model))).tokens() == new.tokens()
        for model in ("trained@100", "job:j1@100"):
            older = await generate(server, generate_request(model=model))
            assert (older.started.model, older.started.weight_version) == ("trained", 100)
        requests = [
            pb.ScoreRequest(text="some text", model=model)
            for model in ("trained@100", "job:j1@100", "job:j1")
        ]
        scored = [(await server.inference.Score(request)).weight_version for request in requests]
        assert scored == [100, 100, 200]
        missing = generate_request(model="job:j1@150")
        assert "there are 100, 200" in (await refused(server.inference.Generate(missing))).details()
        await until(lambda: is_idle(server, "trained"))


async def test_concurrent_first_calls(folder):
    async with served(folder) as server:
        answers = await asyncio.gather(*(generate(server, generate_request()) for _ in range(10)))
        assert len({tuple(answer.tokens()) for answer in answers}) == 1


async def test_tokenize_and_back(folder):
    async with served(folder) as server:
        response = await server.inference.Tokenize(pb.TokenizeRequest(text="once upon\n"))
        assert list(response.token_ids) == TOKENIZER.encode("once upon\n")
        back = await server.inference.Detokenize(pb.DetokenizeRequest(token_ids=response.token_ids))
        assert back.text == "once upon\n"
        found = violations(await refused(server.inference.Tokenize(pb.TokenizeRequest(text="~A"))))
        assert "'~', 'A'" in found["text"]
        request = pb.DetokenizeRequest(token_ids=[1, 999])
        assert set(violations(await refused(server.inference.Detokenize(request)))) == {
            "token_ids[1]"
        }
        request = pb.TokenizeRequest(text="a" * (1 << 20) + "a")
        assert set(violations(await refused(server.inference.Tokenize(request)))) == {"text"}
        error = await refused(server.inference.Tokenize(pb.TokenizeRequest(model="nope")))
        assert error.code() is Code.NOT_FOUND
        await until(lambda: not server.store.heartbeat_age_seconds)  # no weights were loaded


async def test_gpt2_tokens_and_broken_utf8(tmp_path):
    write_checkpoint(tmp_path / "models" / "gpt2", tokenizer=GPT2Tokenizer())
    async with served(tmp_path) as server:
        text = "Hello, wörld! <|endoftext|>"
        ids = (await server.inference.Tokenize(pb.TokenizeRequest(text=text))).token_ids
        assert 50256 not in ids
        response = await server.inference.Detokenize(pb.DetokenizeRequest(token_ids=ids))
        assert response.text == text
        clef = (await server.inference.Tokenize(pb.TokenizeRequest(text="𝄞"))).token_ids
        request = pb.DetokenizeRequest(token_ids=clef[:1])
        assert "\ufffd" in (await server.inference.Detokenize(request)).text
        dashes = (await server.inference.Tokenize(pb.TokenizeRequest(text="-" * 64))).token_ids
        request = pb.DetokenizeRequest(token_ids=[*dashes] * 70_000)
        found = violations(await refused(server.inference.Detokenize(request)))
        assert "4480000" in found["token_ids"]  # more than a message may hold


async def test_a_text_is_scored(folder):
    """As its prompt's log-probabilities say, and a long one in windows."""
    async with served(folder) as server:
        text = "once upon a time there was"
        scored = await server.inference.Score(pb.ScoreRequest(text=text, top_logprobs=2))
        request = generate_request(1, prompt=text, response=pb.ResponseOptions(prompt_logprobs=2))
        prompt_logprobs = (await generate(server, request)).started.prompt_logprobs
        assert [logprob.logprob for logprob in scored.logprobs] == pytest.approx(
            [logprob.logprob for logprob in prompt_logprobs], abs=1e-5
        )
        assert [logprob.token_id for logprob in scored.logprobs] == TOKENIZER.encode(text)[1:]
        assert all(len(logprob.top) == 2 for logprob in scored.logprobs)
        nats = -sum(logprob.logprob for logprob in scored.logprobs)
        assert scored.loss == pytest.approx(nats / 25)
        assert scored.perplexity == pytest.approx(math.exp(nats / 25))
        assert scored.bits_per_byte == pytest.approx(nats / 25 / math.log(2))  # ASCII
        assert scored.weight_version == 10

        long = pb.ScoreRequest(token_ids=pb.TokenIds(ids=TOKENIZER.encode("abcd" * 100)))
        scored = await server.inference.Score(long)
        assert len(scored.logprobs) == 399
        first, second = scored.logprobs[:64], scored.logprobs[64:128]  # they begin alike
        assert [o.logprob for o in first] == pytest.approx([o.logprob for o in second])
        await until(lambda: is_idle(server))


async def test_what_cannot_be_scored_is_refused_field_by_field(folder):
    async with served(folder, num_slots=1, max_waiting=0) as server:
        for message, path, words in [
            (pb.ScoreRequest(), "text", "must have 2 to 65536 tokens, got 0"),
            (pb.ScoreRequest(text="a"), "text", "got 1"),
            (pb.ScoreRequest(text="a~"), "text", "'~'"),
            (pb.ScoreRequest(text="ab", top_logprobs=21), "top_logprobs", "got 21"),
            (pb.ScoreRequest(text="a" * 20_000, top_logprobs=20), "text", "2 to 11904 tokens with"),
            (pb.ScoreRequest(token_ids=pb.TokenIds(ids=[1, 99])), "token_ids[1]", "[0, 28)"),
        ]:
            found = violations(await refused(server.inference.Score(message)))
            assert set(found) == {path} and words in found[path], found
        holder = server.inference.Generate(generate_request(LONG))
        await holder.read()
        error = await refused(server.inference.Score(pb.ScoreRequest(text="once")))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert detail(error, error_details_pb2.RetryInfo) is not None
        holder.cancel()


async def test_the_prompt_comes_back_on_request(folder):
    async with served(folder) as server:
        plain = (await generate(server, generate_request(1))).started
        assert not plain.prompt and not plain.prompt_token_ids and not plain.prompt_logprobs
        echo = pb.ResponseOptions(echo=True)
        started = (await generate(server, generate_request(1, response=echo))).started
        assert started.prompt == "once" and not started.prompt_logprobs
        assert list(started.prompt_token_ids) == TOKENIZER.encode("once")
        unset = (await generate(server, pb.GenerateRequest(response=echo))).started
        assert unset.prompt == "\n"
        long = generate_request(1, prompt="a" * 65, response=pb.ResponseOptions(prompt_logprobs=0))
        found = violations(await refused(server.inference.Generate(long)))
        assert "takes at most 64" in found["prompt"]
        too_long = generate_request(1, prompt="ab" * 1_001_000, response=echo)
        assert set(violations(await refused(server.inference.Generate(too_long)))) == {
            "response.echo"
        }


async def test_cached_and_guessed_tokens_are_counted(folder):
    async with served(folder) as server:
        text = "a cat a cat a cat a cat a"
        plain = await generate(server, generate_request(40, prompt=text))
        again = await generate(server, generate_request(40, prompt=text, max_draft_tokens=4))
        afresh = await generate(server, generate_request(40, prompt=text, use_prefix_cache=False))
        assert plain.tokens() == again.tokens() == afresh.tokens()
        cached = [a.last.usage.cached_tokens for a in (plain, again, afresh)]
        assert cached == [0, len(text) - 1, 0]
        usage = again.last.usage
        assert 0 <= usage.accepted_tokens <= usage.drafted_tokens > 0
        assert not plain.last.usage.drafted_tokens
        for name, count in (
            ("spec_decode_draft_tokens_total", usage.drafted_tokens),
            ("spec_decode_accepted_tokens_total", usage.accepted_tokens),
        ):
            assert sample(server.metrics, name, model="tiny") == count
        assert sample(server.metrics, "spec_decode_drafts_total", model="tiny") > 0
