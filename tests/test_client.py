"""Client and AsyncClient against a server with canned answers: each test runs with both."""

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from fake_server import WORDS, Break, FakeServer, recorded_events, rich_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details_pb

from client import AsyncClient, Client, InferenceBenchmark, TrainingBenchmark, methods
from client.channel import channel_options
from client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from client.methods import Method
from client.repetition import FIRST_PAUSE_SECONDS
from client.requests import CHUNK_BYTES, GenerateOptions, generate_request
from client.resume import PATIENCE_SECONDS, LogCursor, MetricsCursor
from protos.nanogpt.v1 import datasets_pb2, inference_pb2, models_pb2, training_pb2

UNAVAILABLE = rich_status(grpc.StatusCode.UNAVAILABLE, "stopping")
RESET = rich_status(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")


class Blocking:
    """Uses Client."""

    def value(self, server: str, ask: Callable[[Any], Any]) -> Any:
        with Client(server) as client:
            return ask(client)

    def all(self, server: str, ask: Callable[[Any], Any]) -> list[Any]:
        with Client(server) as client:
            return list(ask(client))


class Awaiting:
    """Uses AsyncClient."""

    def value(self, server: str, ask: Callable[[Any], Any]) -> Any:
        async def run() -> Any:
            async with AsyncClient(server) as client:
                return await ask(client)

        return asyncio.run(run())

    def all(self, server: str, ask: Callable[[Any], Any]) -> list[Any]:
        async def run() -> list[Any]:
            async with AsyncClient(server) as client:
                return [item async for item in ask(client)]

        return asyncio.run(run())


@pytest.fixture(params=[Blocking, Awaiting])
def use(request):
    return request.param()


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


# The table of methods


SCORED = inference_pb2.ScoreResponse(
    logprobs=[inference_pb2.TokenLogprob(token_id=1, logprob=-1.5, rank=2)],
    loss=1.5,
    perplexity=4.4817,
    bits_per_byte=2.164,
    weight_version=2000,
)


def test_the_table_has_every_rpc_of_the_protos():
    table = {m.path: m for m in vars(methods).values() if isinstance(m, Method)}
    rpcs = {
        f"/{service.full_name}/{rpc.name}": rpc
        for file in (inference_pb2, training_pb2, models_pb2, datasets_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    }
    assert table.keys() == rpcs.keys()
    for path, rpc in rpcs.items():
        assert table[path].request.DESCRIPTOR is rpc.input_type
        assert table[path].response.DESCRIPTOR is rpc.output_type


def test_both_clients_offer_the_same():
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_every_call_has_a_deadline():
    assert all(
        method.deadline_seconds >= 10
        for method in vars(methods).values()
        if isinstance(method, Method)
    )


def test_options_keep_connections_alive_and_bound_messages():
    options = dict(channel_options())
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.max_receive_message_length"] == 4 << 20


def test_a_server_that_does_not_take_a_connection_is_unreachable_within_any_deadline():
    seconds = dict(channel_options())["grpc.min_reconnect_backoff_ms"] / 1000
    assert all(
        method.deadline_seconds > seconds
        for method in vars(methods).values()
        if isinstance(method, Method)
    )


# Generating


def test_deltas_arrive_in_order_with_the_rest_beside_them(server):
    with Client(server.address) as client:
        generation = client.generate("To be", temperature=0.5)
        assert generation.started is None
        assert [delta.text for delta in generation] == list(WORDS)
    assert generation.started.model == "bard"
    assert generation.started.sampling.temperature == 0.5
    assert generation.finished[0].reason == inference_pb2.FINISH_REASON_LENGTH
    assert generation.usage.completion_tokens == 3
    assert generation.timings.total_seconds == 0.5


def test_both_clients_stream_deltas(server, use):
    deltas = use.all(server.address, lambda client: client.generate("To be", num_samples=2))
    assert [delta.sample_index for delta in deltas] == [1, 0] * len(WORDS)


def test_complete_returns_text(server, use):
    assert use.value(server.address, lambda c: c.complete("To be", top_k=3)) == "".join(WORDS)
    (request,) = server.asked(inference_pb2.GenerateRequest)
    assert (request.prompt, request.sampling.top_k, request.num_samples) == ("To be", 3, 1)


def test_leaving_the_loop_cancels_the_call(server):
    with Client(server.address) as client:
        for _ in client.generate("hold"):
            break
        assert server.generate_ended.wait(5)


async def test_leaving_the_async_loop_cancels_the_call(server):
    async with AsyncClient(server.address) as client:
        generation = client.generate("hold")
        async for _ in generation:
            break
        generation.cancel()
        assert await asyncio.to_thread(server.generate_ended.wait, 5)


def test_another_thread_may_cancel(server):
    with Client(server.address) as client:
        generation = client.generate("hold")
        deltas = iter(generation)
        next(deltas)
        threading.Thread(target=generation.cancel).start()
        with pytest.raises(Cancelled):
            list(deltas)


def test_every_option_of_the_protos_can_be_given():
    parts = (
        inference_pb2.SamplingParams,
        inference_pb2.StoppingParams,
        inference_pb2.ResponseOptions,
    )
    fields = {name for part in parts for name in part.DESCRIPTOR.fields_by_name}
    own = set(inference_pb2.GenerateRequest.DESCRIPTOR.fields_by_name)
    own -= {"prompt", "prompt_token_ids", "sampling", "stopping", "response", "num_samples"}
    assert set(GenerateOptions.__annotations__) == fields | own


def test_options_reach_their_part_of_the_request():
    request = generate_request(
        [1, 2],
        num_samples=3,
        options={
            "model": "bard",
            "temperature": 0.0,
            "top_k": None,
            "logit_bias": {5: -100.0},
            "max_new_tokens": 9,
            "stop_strings": ["\n\n"],
            "context_overflow": "exact",
            "logprobs": True,
            "prompt_logprobs": 0,
            "priority": -3,
            "use_prefix_cache": False,
        },
    )
    assert request.prompt_token_ids.ids == [1, 2]
    assert request.sampling.HasField("temperature") and request.sampling.temperature == 0
    assert not request.sampling.HasField("top_k")
    assert dict(request.sampling.logit_bias) == {5: -100.0}
    assert request.stopping.max_new_tokens == 9
    assert request.stopping.stop_strings == ["\n\n"]
    assert request.stopping.context_overflow == inference_pb2.CONTEXT_OVERFLOW_EXACT
    assert request.response.logprobs
    assert request.response.HasField("prompt_logprobs")
    assert (request.priority, request.use_prefix_cache) == (-3, False)
    assert not request.HasField("max_draft_tokens")
    assert (request.model, request.num_samples) == ("bard", 3)


def test_none_is_the_same_as_leaving_an_option_out():
    options = dict.fromkeys(GenerateOptions.__annotations__)
    assert generate_request("", 1, options | {"model": ""}) == generate_request("", 1, {})


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="topk"):
        generate_request("", 1, {"topk": 3})


# Everything that is one call


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda c: c.tokenize("ab"), [97, 98]),
        (lambda c: c.detokenize([97, 98], model="bard"), "ab"),
        (lambda c: c.score([1, 2], top_logprobs=3), SCORED),
        (lambda c: c.delete_model("bard"), None),
        (lambda c: c.delete_dataset("plays"), None),
    ],
)
def test_plain_calls(server, use, ask, expected):
    assert use.value(server.address, ask) == expected


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.job("bard"),
        lambda c: c.cancel("bard"),
        lambda c: c.pause("bard"),
        lambda c: c.resume("bard"),
        lambda c: c.model("bard"),
        lambda c: c.load("bard"),
        lambda c: c.unload("bard"),
        lambda c: c.dataset("bard"),
    ],
)
def test_calls_about_one_thing_name_it(server, use, ask):
    answer = use.value(server.address, ask)
    assert "bard" in (answer.id if isinstance(answer, training_pb2.Job) else answer.name)


def test_lists(server, use):
    names = [m.name for m in use.value(server.address, lambda c: c.models())]
    assert names == ["bard", "poet"]
    found = use.value(server.address, lambda c: c.datasets())
    assert [d.name for d in found.datasets] == ["plays"]
    steps = [c.step for c in use.value(server.address, lambda c: c.checkpoints("j1"))]
    assert steps == [30, 20]


def test_jobs_are_read_page_by_page(server, use):
    jobs = use.all(server.address, lambda c: c.jobs())
    assert [job.id for job in jobs] == ["j3", "j2", "j1"]
    assert len(server.asked(training_pb2.ListJobsRequest)) == 2


def test_logs(server, use):
    pieces = use.all(server.address, lambda c: c.logs("j1", follow=True))
    assert [piece.text for piece in pieces] == ["one\n", "two\n"]


def test_serving_figures(server, use):
    figures = use.all(server.address, lambda c: c.watch_serving())
    assert [len(event.serving.models) for event in figures] == [1, 0]


def test_logs_resume_where_they_broke(server, use):
    gone = rich_status(grpc.StatusCode.UNAVAILABLE, "stopping")
    server.breaks.append(Break(after=1, status=gone))
    pieces = use.all(server.address, lambda c: c.logs("j1", follow=True))
    assert [piece.text for piece in pieces] == ["one\n", "two\n"]
    asked = server.asked(training_pb2.StreamLogsRequest)
    assert len(asked) == 2


def test_checkpoints_are_kept_let_go_and_deleted(server, use):
    pinned = [
        use.value(server.address, lambda c: c.pin("j1", 20)).is_pinned,
        use.value(server.address, lambda c: c.unpin("j1", 20)).is_pinned,
    ]
    assert pinned == [True, False]
    assert use.value(server.address, lambda c: c.delete_checkpoint("j1", 20)) is None
    (asked,) = server.asked(training_pb2.DeleteCheckpointRequest)
    assert (asked.job_id, asked.step) == ("j1", 20)


def test_benchmarks(server, use):
    target = InferenceBenchmark(concurrency=[1, 4])
    results = use.all(server.address, lambda c: c.benchmark_inference(target))
    assert [result.inference.concurrency for result in results] == [1, 4]
    (result,) = use.all(server.address, lambda c: c.benchmark_training(TrainingBenchmark()))
    assert result.training.mfu == 0.5


# Training


def test_train_sends_what_was_given_and_nothing_else(server, use):
    job = use.value(
        server.address,
        lambda c: c.train("plays", model="bard", preset="train_gpt2", max_iters=9, bias=True),
    )
    assert job.state == training_pb2.Job.STATE_QUEUED
    (request,) = server.asked(training_pb2.TrainRequest)
    assert (request.dataset, request.model, request.preset) == ("plays", "bard", "train_gpt2")
    assert {f.name: value for f, value in request.config.ListFields()} == {
        "max_iters": 9,
        "bias": True,
    }


def test_train_is_repeated_without_making_a_second_job(server, use):
    server.failures["Train"].extend([UNAVAILABLE, UNAVAILABLE])
    job = use.value(server.address, lambda c: c.train("plays"))
    requests = server.asked(training_pb2.TrainRequest)
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1 and requests[0].request_id
    assert job.id == "new1"


def test_a_hyperparameter_that_does_not_exist_is_refused(server):
    with Client(server.address) as client, pytest.raises(ValueError, match="max_iter"):
        client.train("plays", max_iter=5)


def test_reading_is_repeated_and_writing_is_not(server, use):
    server.failures["GetJob"].append(UNAVAILABLE)
    assert use.value(server.address, lambda c: c.job("j1")).id == "j1"
    server.failures["CancelJob"].append(UNAVAILABLE)
    with pytest.raises(Unavailable):
        use.value(server.address, lambda c: c.cancel("j1"))
    server.failures["Generate"].append(UNAVAILABLE)
    with pytest.raises(Unavailable):
        use.value(server.address, lambda c: c.complete("To be"))
    assert len(server.asked(inference_pb2.GenerateRequest)) == 1


# Watching


def seen(events: list[training_pb2.StreamMetricsResponse]) -> list[Any]:
    """Numbers of recorded events, names of the others."""
    return [e.sequence if e.HasField("sequence") else e.WhichOneof("event") for e in events]


WHOLE = ["state_change", *range(1, len(recorded_events()) + 1), "heartbeat", "state_change"]


def test_watch_shows_every_event_and_ends_with_the_job(server, use):
    assert seen(use.all(server.address, lambda c: c.watch("j1"))) == WHOLE


def test_watch_starts_where_it_is_told(server, use):
    events = use.all(server.address, lambda c: c.watch("j1", start_sequence=6))
    assert seen(events) == ["state_change", 6, 7, "heartbeat", "state_change"]


@pytest.mark.parametrize("status", [UNAVAILABLE, RESET], ids=["unavailable", "reset"])
def test_watch_resumes_without_gap_or_repetition(server, use, status):
    server.breaks.extend([Break(3, status), Break(0, status), Break(2, status)])
    assert seen(use.all(server.address, lambda c: c.watch("j1"))) == WHOLE
    starts = [r.start_sequence for r in server.asked(training_pb2.StreamMetricsRequest)]
    assert starts == [1, 4, 4, 6]


def test_watch_survives_a_restart_of_the_server():
    first = FakeServer()
    first.breaks.append(Break(3))  # then silent until it is stopped
    events = []
    with Client(first.address) as client:
        stream = client.watch("j1")
        events = [next(stream) for _ in range(4)]
        first.stop()
        with FakeServer(first.port):
            events += stream
    assert seen(events) == WHOLE


async def test_async_watch_survives_a_restart_of_the_server():
    first = FakeServer()
    first.breaks.append(Break(3))
    events = []
    async with AsyncClient(first.address) as client:
        stream = client.watch("j1")
        events = [await anext(stream) for _ in range(4)]
        await asyncio.to_thread(first.stop)
        with FakeServer(first.port):
            events += [event async for event in stream]
    assert seen(events) == WHOLE


def test_watch_asks_again_after_a_silence(server, use, monkeypatch):
    monkeypatch.setattr("client.silence.SILENCE_SECONDS", 0.2)
    server.breaks.append(Break(3))  # then nothing, on a connection that is there
    assert seen(use.all(server.address, lambda c: c.watch("j1"))) == WHOLE
    starts = [r.start_sequence for r in server.asked(training_pb2.StreamMetricsRequest)]
    assert starts == [1, 4]


def test_a_first_silence_is_an_error_that_says_so(server, use, monkeypatch):
    monkeypatch.setattr("client.silence.SILENCE_SECONDS", 0.2)
    server.is_silent = True
    with pytest.raises(Unavailable, match="gave no sign of life"):
        use.all(server.address, lambda c: c.watch("j1"))


def test_a_slow_reader_is_no_silence(server, monkeypatch):
    monkeypatch.setattr("client.silence.SILENCE_SECONDS", 0.5)
    with Client(server.address) as client:
        stream = client.watch("j1")
        events = [next(stream)]
        time.sleep(0.8)  # what is tested
        events += stream
    assert len(server.asked(training_pb2.StreamMetricsRequest)) == 1
    assert seen(events) == WHOLE


def test_one_that_is_closed_does_not_ask_again(server, caplog):
    server.breaks.append(Break(2, None))  # the stream stays open
    client = Client(server.address)
    stream = client.watch("j1")
    next(stream)
    threading.Timer(0.1, client.close).start()
    with pytest.raises(Cancelled):
        list(stream)
    assert not caplog.records


def test_one_that_is_closed_while_it_waits_does_not_ask_again(monkeypatch):
    with FakeServer() as server:
        client = Client(server.address)
        pause = SimpleNamespace(sleep=lambda seconds: client.close())
        monkeypatch.setattr("client.client.time", pause)
        server.breaks.append(Break(1, rich_status(grpc.StatusCode.UNAVAILABLE, "gone")))
        with pytest.raises(Unavailable):
            list(client.watch("j1"))


async def test_an_async_one_that_is_closed_while_it_waits_does_not_ask_again(monkeypatch):
    with FakeServer() as server:
        client = AsyncClient(server.address)

        async def close(seconds: float) -> None:
            await client.close()

        server.breaks.append(Break(1, rich_status(grpc.StatusCode.UNAVAILABLE, "gone")))
        with pytest.raises(Unavailable):
            async for _ in client.watch("j1"):
                pause = SimpleNamespace(sleep=close)
                monkeypatch.setattr("client.async_client.asyncio", pause)


def test_watch_raises_what_is_no_lost_connection(server, use):
    server.breaks.append(Break(3, rich_status(grpc.StatusCode.DATA_LOSS, "damaged")))
    with pytest.raises(Exception, match="damaged"):
        use.all(server.address, lambda c: c.watch("j1"))
    server.failures["StreamMetrics"].append(rich_status(grpc.StatusCode.NOT_FOUND, "no job"))
    with pytest.raises(NotFound):
        use.all(server.address, lambda c: c.watch("j9"))


def test_watch_does_not_wait_for_a_server_that_never_was(use):
    with FakeServer() as gone:
        pass
    with pytest.raises(Unavailable):
        use.all(gone.address, lambda c: c.watch("j1"))


class Clock:
    """A clock that stands still until it is set."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def state(value: training_pb2.Job.State) -> training_pb2.StreamMetricsResponse:
    change = training_pb2.StateChange(state=value)
    return training_pb2.StreamMetricsResponse(state_change=change)


def test_a_cursor_passes_each_event_once():
    cursor = MetricsCursor("j1", 2)
    events = recorded_events()
    running = state(training_pb2.Job.STATE_RUNNING)
    assert [cursor.accept(e) for e in (running, *events[:4])] == [True, False, True, True, True]
    assert cursor.request() == training_pb2.StreamMetricsRequest(job_id="j1", start_sequence=5)
    assert [cursor.accept(e) for e in (running, events[3], events[4])] == [False, False, True]
    assert cursor.accept(state(training_pb2.Job.STATE_SUCCEEDED))


def test_a_cursor_moves_behind_what_was_left_out():
    cursor = MetricsCursor("j1", 1, max_behind=5)
    skipped = training_pb2.Skipped(first_sequence=1, last_sequence=7)
    assert cursor.accept(training_pb2.StreamMetricsResponse(skipped=skipped))
    assert cursor.request() == training_pb2.StreamMetricsRequest(
        job_id="j1", start_sequence=8, max_behind=5
    )


def test_a_cursor_in_a_log_moves_with_it_and_hides_signs_of_life():
    cursor = LogCursor("j1", follow=True, offset=-100)
    assert cursor.request().offset == -100
    pieces = [("one\n", 4), ("", 4), ("two\n", 8)]
    heard = [
        cursor.accept(training_pb2.StreamLogsResponse(text=text, next_offset=offset))
        for text, offset in pieces
    ]
    assert heard == [True, False, True]
    assert cursor.request().offset == 8


def test_a_cursor_waits_longer_each_time_and_starts_anew_with_news():
    cursor = MetricsCursor("j1", 1, clock=Clock())
    cursor.accept(recorded_events()[0])
    pauses = [cursor.pause_seconds(Unavailable("gone")) for _ in range(10)]
    for failures, pause in enumerate(pauses):
        longest = min(0.2 * 2**failures, 5)
        assert longest / 2 <= pause <= longest
    cursor.accept(recorded_events()[1])
    assert cursor.pause_seconds(DeadlineExceeded("a day is over")) <= 0.2


def test_a_cursor_waits_as_long_as_the_server_asks():
    retry = details_pb.RetryInfo(retry_delay=Duration(seconds=9))
    with FakeServer() as server, Client(server.address) as client:
        server.failures["LoadModel"].append(
            rich_status(grpc.StatusCode.UNAVAILABLE, "stopping", retry)
        )
        with pytest.raises(Unavailable) as caught:
            client.load("bard")
    cursor = MetricsCursor("j1", 1)
    cursor.accept(recorded_events()[0])
    assert cursor.pause_seconds(caught.value) == 9


def test_a_cursor_gives_up_at_last():
    clock = Clock()
    cursor = MetricsCursor("j1", 1, clock=clock)
    cursor.accept(recorded_events()[0])
    clock.seconds = PATIENCE_SECONDS + 1  # the reader was busy with the event
    cursor.pause_seconds(Unavailable("gone"))
    clock.seconds += PATIENCE_SECONDS
    cursor.pause_seconds(Unavailable("gone"))
    clock.seconds += 1
    with pytest.raises(Unavailable):
        cursor.pause_seconds(Unavailable("gone"))


def test_a_cursor_is_patient_with_a_server_that_answers_though_nothing_happens():
    """A job may wait in the queue for long while the server restarts again and again."""
    clock = Clock()
    cursor = MetricsCursor("j1", 1, clock=clock)
    queued = state(training_pb2.Job.STATE_QUEUED)
    assert cursor.accept(queued)
    for _ in range(3):
        clock.seconds += PATIENCE_SECONDS
        assert not cursor.accept(queued)
        clock.seconds += 1
        cursor.pause_seconds(Unavailable("gone"))
    clock.seconds += PATIENCE_SECONDS + 1
    with pytest.raises(Unavailable):
        cursor.pause_seconds(Unavailable("gone"))


def test_a_cursor_asks_again_after_a_server_that_stopped_on_its_request():
    cursor = MetricsCursor("j1", 1)
    cursor.accept(recorded_events()[0])
    assert cursor.pause_seconds(Cancelled("CANCELLED")) <= FIRST_PAUSE_SECONDS


@pytest.mark.parametrize("error", [InternalError("internal error"), NotFound("x")])
def test_a_cursor_asks_again_only_if_that_can_help(error):
    cursor = MetricsCursor("j1", 1)
    cursor.accept(recorded_events()[0])
    with pytest.raises(type(error)):
        cursor.pause_seconds(error)


# Datasets


def test_uploads_travel_in_pieces_that_fit(server, use, tmp_path):
    text = bytes(range(256)) * (CHUNK_BYTES // 100)
    path = tmp_path / "text"
    path.write_bytes(text)
    for source in (path, text, [text[:7], text[7:]]):
        server.requests.clear()
        dataset = use.value(
            server.address,
            lambda c, source=source: c.create_dataset(
                "plays", source, tokenizer="gpt2", val_ratio=0.2, encoding="cp1252"
            ),
        )
        assert dataset.characters == len(text)
        first, *rest = server.asked(datasets_pb2.CreateDatasetRequest)
        assert first.spec == datasets_pb2.DatasetSpec(
            name="plays",
            tokenizer=datasets_pb2.TOKENIZER_GPT2,
            val_ratio=0.2,
            encoding="cp1252",
        )
        assert b"".join(message.text for message in rest) == text
        assert max(len(message.text) for message in rest) <= CHUNK_BYTES


def test_a_shipped_dataset_needs_no_text(server, use):
    dataset = use.value(server.address, lambda c: c.create_dataset(shipped="python_reference"))
    assert dataset.name == "python_reference"
    (request,) = server.asked(datasets_pb2.CreateDatasetRequest)
    assert not request.spec.HasField("val_ratio")


def test_a_name_that_is_taken(server, use):
    server.failures["CreateDataset"].append(
        rich_status(grpc.StatusCode.ALREADY_EXISTS, "there is one")
    )
    with pytest.raises(AlreadyExists):
        use.value(server.address, lambda c: c.create_dataset("plays", b"text" * CHUNK_BYTES))


def test_an_error_of_the_text_is_raised_as_it_is(server, use):
    def pieces():
        yield b"some"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        use.value(server.address, lambda c: c.create_dataset("plays", pieces()))


async def test_cancelling_an_upload_ends_it(server):
    reading, cancelled = threading.Event(), threading.Event()

    def pieces():
        yield b"some"
        reading.set()
        cancelled.wait(10)
        yield b"more"

    async with AsyncClient(server.address) as client:
        upload = asyncio.create_task(client.create_dataset("plays", pieces()))
        await asyncio.to_thread(reading.wait, 10)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        cancelled.set()
    assert b"more" not in [r.text for r in server.asked(datasets_pb2.CreateDatasetRequest)]


# Health


def test_calls_avoid_a_server_that_is_not_serving(server, use):
    server.set_serving(False)
    with pytest.raises(Unavailable):
        use.value(server.address, lambda c: c.cancel("j1"))
    assert not server.asked(training_pb2.CancelJobRequest)
    server.set_serving(True)
    give_up_at = time.monotonic() + 10  # the news travels on a stream of its own
    while True:
        try:
            assert use.value(server.address, lambda c: c.cancel("j1")).id == "j1"
            break
        except Unavailable:
            assert time.monotonic() < give_up_at


def test_invalid_argument_has_violations_even_without_details():
    assert InvalidArgument("no").violations == ()
