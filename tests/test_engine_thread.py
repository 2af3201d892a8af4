"""The engine thread, with a tiny real engine: exact counts, nothing left over, metrics."""

import asyncio
import random
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fake_runner import FakeRunner
from serving import LONG, TOKENIZER, gauges, request, sample, tiny_model, tiny_runner, until

from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Delta, Finished, Started
from server.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from server.metrics import Metrics
from server.serving import engine_thread
from server.serving.engine_thread import EngineFailure, EngineThread


class SteppedEngine(Engine):
    """Takes a step only when told to."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.allowed = threading.Semaphore(0)
        self.steps_begun = 0

    def step(self):
        self.steps_begun += 1
        self.allowed.acquire()
        return super().step()


@asynccontextmanager
async def running(
    engine=None, *, num_slots=4, max_waiting=200, max_waiting_tokens=1000, metrics=None
):
    engine = engine or Engine(tiny_runner(num_slots=num_slots), TOKENIZER)
    thread = EngineThread(
        engine,
        model="tiny",
        metrics=metrics or Metrics(),
        num_slots=num_slots,
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
        loop=asyncio.get_running_loop(),
    )
    thread.start()
    try:
        yield thread
    finally:
        if isinstance(engine, SteppedEngine):
            engine.allowed.release(1_000_000)
        await thread.stop(0)


async def read(stream) -> list:
    events = []
    while ready := await stream.next():
        events += ready
    return events


async def next_delta(stream) -> Delta:
    """The next tokens, whatever comes before them."""
    while True:
        for event in await stream.next():
            if isinstance(event, Delta):
                return event


def tokens(events, sample_index=0) -> list[int]:
    return [
        token
        for event in events
        if isinstance(event, Delta) and event.sample_index == sample_index
        for token in event.token_ids
    ]


def alone(wanted) -> list[int]:
    """The tokens that an engine gives when it has nothing else to do."""
    engine, events = Engine(tiny_runner(), TOKENIZER), []
    engine.add(wanted)
    while engine.has_work():
        events += engine.step().events
    return tokens(events)


async def test_a_request_gives_what_the_engine_gives():
    async with running() as thread:
        stream = thread.submit(request("a", 8, seed=5))
        events = await read(stream)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert tokens(events) == alone(request("a", 8, seed=5))
    assert (stream.prompt_tokens, stream.completion_tokens) == (4, 8)
    timings = stream.timings
    assert 0 <= timings.queue_seconds <= timings.time_to_first_token_seconds
    assert timings.time_to_first_token_seconds == pytest.approx(
        timings.queue_seconds + timings.prefill_seconds
    )
    assert timings.total_seconds == pytest.approx(
        timings.time_to_first_token_seconds + timings.decode_seconds
    )


async def test_of_100_streams_10_are_cancelled_and_90_are_exact():
    metrics = Metrics()
    async with running(metrics=metrics) as thread:
        lengths = [12 if i % 10 else LONG for i in range(100)]
        streams = [thread.submit(request(str(i), n, seed=i)) for i, n in enumerate(lengths)]
        for stream in streams[::10]:
            await stream.next()  # it runs
            stream.cancel()
        results = await asyncio.gather(*(read(s) for i, s in enumerate(streams) if i % 10))
        assert {len(tokens(events)) for events in results} == {12}
        assert tokens(results[6]) == alone(request("7", 12, seed=7))
        await until(lambda: gauges(metrics, "tiny") == (0, 0, 0))

        again = thread.submit(request("0", 3))  # a cancelled id can be used again
        assert len(tokens(await read(again))) == 3
        await until(lambda: gauges(metrics, "tiny") == (0, 0, 0))
    assert sample(metrics, "request_finished_total", model="tiny", finish_reason="length") == 91
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="cancelled") == 10


async def test_1000_cancelled_streams_leave_nothing():
    """Cancelled as they wait, prefill, decode, or end; slots, queue and gauges are free."""
    metrics, dice = Metrics(), random.Random(4)
    engine = Engine(FakeRunner(TOKENIZER.vocab_size, num_slots=8), TOKENIZER)
    async with running(engine, num_slots=8, max_waiting=100, metrics=metrics) as thread:
        streams = []
        for number in range(1000):
            wanted = request(
                str(number),
                dice.choice([1, 5, LONG]),
                prompt="x" * dice.randint(1, 300),
                num_samples=dice.choice([1, 1, 3]),
            )
            wanted = replace(wanted, priority=dice.randint(-2, 2), max_draft_tokens=number % 3)
            streams.append(thread.submit(wanted))
            if dice.random() < 0.2:
                await asyncio.wait([asyncio.create_task(streams[-1].next())], timeout=0.001)
            while len(streams) > dice.randint(0, 40):
                streams.pop(dice.randrange(len(streams))).cancel()
        for stream in streams:
            stream.cancel()
        await until(lambda: gauges(metrics, "tiny") == (0, 0, 0))
        assert thread._waiting_tokens == 0 and not thread._streams
        assert not engine.has_work()
        engine._scheduler.check()
        assert len(tokens(await read(thread.submit(request("next", 5))))) == 5


async def test_an_id_can_be_used_again_at_once():
    async with running(num_slots=2) as thread:
        for number in range(30):
            cut = thread.submit(request("same", LONG, seed=number))
            while not tokens(await cut.next()):
                pass
            cut.cancel()  # while the next step runs
            events = await read(thread.submit(request("same", 5, seed=7)))
            assert tokens(events) == alone(request("same", 5, seed=7))


async def test_cancelling_a_waiting_request_leaves_the_running_one_alone():
    metrics = Metrics()
    async with running(num_slots=1, metrics=metrics) as thread:
        first = thread.submit(request("first", 40, seed=1))
        waiting = thread.submit(request("waiting", 40, seed=2))
        assert isinstance((await first.next())[0], Started)
        waiting.cancel()
        waiting.cancel()  # twice is once
        assert await read(waiting) == []
        await read(first)
        assert first.completion_tokens == 40
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="cancelled") == 1


async def test_slots_are_free_before_the_next_step():
    metrics = Metrics()
    engine = SteppedEngine(tiny_runner(num_slots=2), TOKENIZER)
    async with running(engine, num_slots=2, metrics=metrics) as thread:
        streams = [thread.submit(request(str(i), LONG)) for i in range(4)]
        engine.allowed.release()
        await streams[0].next()
        await until(lambda: gauges(metrics, "tiny")[:2] == (2, 2))
        streams[0].cancel()
        streams[3].cancel()
        # the thread may be in a step already; the one after it must be without them
        engine.allowed.release(2)
        await until(lambda: gauges(metrics, "tiny")[:2] == (2, 0))


async def test_a_full_queue_refuses_at_once():
    metrics = Metrics()
    async with running(num_slots=1, max_waiting=2, metrics=metrics) as thread:
        streams = [thread.submit(request(str(i), LONG)) for i in range(3)]
        with pytest.raises(ResourceExhausted) as refused:
            thread.submit(request("too many"))
        assert refused.value.retry_seconds is not None
        streams[1].cancel()
        thread.submit(request("now there is room"))
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="queue_full") == 1


async def test_a_queue_full_of_tokens_refuses_at_once():
    """Prompts count as the tokens that the model sees of them, until they have a slot."""
    metrics = Metrics()
    async with running(num_slots=1, max_waiting_tokens=114, metrics=metrics) as thread:
        first = thread.submit(request("first", LONG, prompt="x" * 100))  # counts as 64
        assert isinstance((await first.next())[0], Started)
        waiting = thread.submit(request("waiting", prompt="x" * 50))
        with thread.place(1000):
            with pytest.raises(ResourceExhausted, match="prompts of 114 tokens") as refused:
                with thread.place(1):
                    pass
            assert refused.value.retry_seconds is not None
        thread.submit(request("prepared", prompt="x" * 64))
        with pytest.raises(ResourceExhausted):
            thread.check_admission()
        waiting.cancel()
        thread.check_admission()
        first.cancel()
    assert thread._waiting_tokens == 0
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="queue_full") == 2


async def test_a_queue_full_of_text_to_score_refuses_at_once():
    """All of such a text counts, however little of it the model sees at a time."""
    async with running(num_slots=1, max_waiting_tokens=900) as thread:
        first = thread.submit(request("first", LONG))
        assert isinstance((await first.next())[0], Started)
        text = request("text", prompt="x" * 500)
        text = replace(text, prompt_logprobs=0, scores_only=True)
        with thread.place(500, scores_only=True):
            thread.submit(text)
            with pytest.raises(ResourceExhausted, match="prompts of 1000 tokens"):
                thread.check_admission()
        thread.submit(replace(text, id="another"))
        with pytest.raises(ResourceExhausted, match="prompts of 1000 tokens"):
            thread.check_admission()
    assert thread._waiting_tokens == 0


async def test_a_deadline_that_the_queue_cannot_meet_is_refused_early():
    metrics = Metrics()
    async with running(num_slots=1, max_waiting=9, metrics=metrics) as thread:
        last = [thread.submit(request(str(i), 20)) for i in range(8)][-1]
        long = thread.submit(request("long", LONG))
        await read(last)  # seven ended while others waited: the rate is known
        await long.next()  # it has the slot
        thread.submit(request("waiting", LONG))
        patient, urgent = request("patient"), replace(request("urgent"), priority=-1)
        thread.submit(patient, remaining_seconds=3600)
        with pytest.raises(DeadlineExceeded, match="2 requests go first"):
            thread.submit(request("late"), remaining_seconds=1e-6)
        thread.submit(urgent, remaining_seconds=1e-6)  # who waits has a higher number
        with pytest.raises(DeadlineExceeded, match="1 requests go first"):
            thread.submit(replace(urgent, id="late"), remaining_seconds=1e-6)
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="deadline") == 2


async def test_places_are_kept_for_requests_that_are_being_prepared():
    async with running(num_slots=1, max_waiting=1) as thread:
        with thread.place():
            thread.submit(request("a", LONG))
            with pytest.raises(ResourceExhausted), thread.place():
                pass
            with pytest.raises(ResourceExhausted):
                thread.submit(request("b"))
        thread.submit(request("the place was for this one", LONG))
        with pytest.raises(ResourceExhausted):
            thread.check_admission()


async def test_a_failing_forward_pass_fails_its_requests_and_no_other():
    metrics, model = Metrics(), tiny_model()
    hidden, passes = model.hidden, 0

    def fail_the_eleventh(*arguments):
        nonlocal passes
        passes += 1
        if passes == 11:
            raise RuntimeError("no such luck")
        return hidden(*arguments)

    model.hidden = fail_the_eleventh
    engine = Engine(tiny_runner(model, num_slots=2), TOKENIZER)
    async with running(engine, num_slots=2, metrics=metrics) as thread:
        streams = [thread.submit(request(str(i), 30)) for i in range(3)]
        results = await asyncio.gather(*map(read, streams), return_exceptions=True)
        assert [type(result) for result in results[:2]] == [EngineFailure, EngineFailure]
        assert str(results[0].__cause__) == "no such luck"
        assert len(tokens(results[2])) == 30  # it waited, and was not in the batch
        assert len(tokens(await read(thread.submit(request("next", 5))))) == 5
        await until(lambda: gauges(metrics, "tiny") == (0, 0, 0))
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="failed") == 2


async def test_tokens_before_a_failure_are_delivered_first():
    model = tiny_model()
    hidden, passes = model.hidden, 0

    def fail_the_third(*arguments):
        nonlocal passes
        passes += 1
        if passes == 3:
            raise MemoryError
        return hidden(*arguments)

    model.hidden = fail_the_third
    async with running(Engine(tiny_runner(model, num_slots=1), TOKENIZER), num_slots=1) as thread:
        stream = thread.submit(request("a", 30))
        await until(lambda: stream.has_ended)
        events = await stream.next()
        assert len(tokens(events)) == 2
        with pytest.raises(ResourceExhausted, match="memory"):
            await stream.next()


async def test_a_dead_engine_ends_its_requests_and_says_so():
    metrics = Metrics()

    class BrokenEngine(Engine):
        def step(self):
            raise KeyError("a bug outside the forward pass")

    engine = BrokenEngine(tiny_runner(num_slots=4), TOKENIZER)
    async with running(engine, metrics=metrics) as thread:
        streams = [thread.submit(request(str(i))) for i in range(3)]
        results = await asyncio.gather(*map(read, streams), return_exceptions=True)
        assert {type(result) for result in results} == {EngineFailure}
        assert thread.has_ended
        with pytest.raises(Unavailable):
            thread.submit(request("more"))
    assert gauges(metrics, "tiny") == (0, 0, 0)


async def test_a_slow_reader_gets_merged_tokens():
    async with running() as thread:
        stream = thread.submit(request("a", 1500, num_samples=2, seed=3))
        await until(lambda: stream.has_ended)
        events = await stream.next()
        assert await stream.next() == []
    deltas = [event for event in events if isinstance(event, Delta)]
    sizes = [len(delta.token_ids) for delta in deltas if delta.sample_index == 0]
    assert sizes == [128] * 11 + [92]
    assert len(events) == 2 + 2 * 12 + 2
    for index in (0, 1):
        text = "".join(delta.text for delta in deltas if delta.sample_index == index)
        assert text == TOKENIZER.decode(tokens(events, index))


async def test_stopping_lets_running_requests_finish():
    async with running() as thread:
        stream = thread.submit(request("a", 200))
        stopping = asyncio.create_task(thread.stop(60))
        await until(lambda: thread.is_stopping)
        with pytest.raises(Unavailable):
            thread.submit(request("b"))
        assert len(tokens(await read(stream))) == 200
        await stopping
        assert thread.has_ended


async def test_the_end_of_the_grace_ends_what_still_runs():
    metrics = Metrics()
    async with running(metrics=metrics) as thread:
        stream = thread.submit(request("a", LONG))
        patient = asyncio.create_task(thread.stop(None))
        await until(lambda: thread.is_stopping)
        await thread.stop(0)  # cuts the patient one short
        await patient
        with pytest.raises(Unavailable):
            await read(stream)
    assert gauges(metrics, "tiny") == (0, 0, 0)
    assert sample(metrics, "requests_rejected_total", model="tiny", reason="draining") == 1


async def test_a_thread_that_hangs_does_not_hold_up_the_end(monkeypatch, caplog):
    engine = SteppedEngine(tiny_runner(), TOKENIZER)
    async with running(engine) as thread, asyncio.timeout(20):
        monkeypatch.setattr(engine_thread, "LAST_STEP_SECONDS", 0.01)
        stream = thread.submit(request("a"))
        await until(lambda: engine.steps_begun == 1)
        patient = asyncio.create_task(thread.stop(None))  # as models in memory are freed
        await thread.stop(0)
        await patient
        with pytest.raises(Unavailable):
            await read(stream)
        assert "the engine of tiny hangs" in caplog.text
        engine.allowed.release()
        thread._thread.join()  # it still ends if it can


async def test_metrics_of_a_request():
    metrics = Metrics()
    async with running(metrics=metrics) as thread:
        await read(thread.submit(request("a", 10, num_samples=2)))

    def count(name):
        return sample(metrics, f"{name}_count", model="tiny")

    assert count("inter_token_latency_seconds") == 2 * 9  # one per token after the first
    assert count("request_time_per_output_token_seconds") == 2
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    ):
        assert count(name) == 1, name
    assert count("batch_size") == count("iteration_tokens") > 9

    def seconds(name):
        return sample(metrics, f"{name}_seconds_sum", model="tiny")

    prefill = seconds("request_prefill_time")  # from entering the batch, not from the token itself
    assert prefill > 0
    first_token = seconds("time_to_first_token")
    assert first_token == pytest.approx(seconds("request_queue_time") + prefill)
    assert seconds("e2e_request_latency") == pytest.approx(
        first_token + seconds("request_decode_time")
    )
    assert sample(metrics, "prompt_tokens_total", model="tiny") == 4
    assert sample(metrics, "generation_tokens_total", model="tiny") == 20
    assert sample(metrics, "request_finished_total", model="tiny", finish_reason="length") == 2


async def test_tokens_after_the_first_wait_for_the_next_message(monkeypatch):
    monkeypatch.setattr(engine_thread, "MESSAGES_PER_SECOND", 1 / 3600)
    engine = SteppedEngine(tiny_runner(), TOKENIZER)
    async with running(engine) as thread:
        stream = thread.submit(request("a", 5))
        engine.allowed.release()
        first = await next_delta(stream)
        rest = asyncio.create_task(read(stream))
        engine.allowed.release(3)
        await until(lambda: stream.completion_tokens == 4)
        assert len(first.token_ids) == 1 and not rest.done()
        engine.allowed.release()
        delta, finished = await rest
        assert len(delta.token_ids) == 4 and isinstance(finished, Finished)


async def test_tokens_are_delivered_though_no_step_follows(monkeypatch):
    monkeypatch.setattr(engine_thread, "MESSAGES_PER_SECOND", 10)
    engine = SteppedEngine(tiny_runner(), TOKENIZER)
    async with running(engine) as thread:
        stream = thread.submit(request("a", 5))
        engine.allowed.release()
        await next_delta(stream)
        engine.allowed.release()  # within a tenth of a second
        assert len((await next_delta(stream)).token_ids) == 1


async def test_tokens_that_the_prefix_cache_held_are_counted():
    metrics = Metrics()
    async with running(metrics=metrics) as thread:
        streams = [thread.submit(request(str(i), 3, prompt="once upon a time")) for i in range(2)]
        for stream in streams:
            await read(stream)
        again = thread.submit(request("again", 3, prompt="once upon a tide"))
        await read(again)
        afresh = replace(request("afresh", 3, prompt="once upon"), use_prefix_cache=False)
        await read(thread.submit(afresh))
    assert again.cached_tokens == 14

    def count(name):
        return sample(metrics, name, model="tiny")

    cached = again.cached_tokens + streams[1].cached_tokens
    assert count("prompt_tokens_total") == 3 * 16 + 9
    assert count("prefix_cache_queries_total") == 3 * 16
    assert count("prefix_cache_hits_total") == count("prompt_tokens_cached_total") == cached


async def test_the_lowest_priority_number_goes_first():
    engine = SteppedEngine(tiny_runner(num_slots=1), TOKENIZER)
    async with running(engine, num_slots=1) as thread:
        first = thread.submit(request("first", 2))
        engine.allowed.release()
        await first.next()  # it has the slot
        finished = []

        async def follow(number):
            await read(thread.submit(replace(request(str(number), 1), priority=number)))
            finished.append(number)

        followers = [asyncio.create_task(follow(number)) for number in (3, 0, -2, 100, -100)]
        await asyncio.sleep(0)  # all have submitted
        engine.allowed.release(6)
        await asyncio.gather(*followers)
    assert finished == [-100, -2, 0, 3, 100]


async def test_an_idle_thread_beats(monkeypatch):
    monkeypatch.setattr(engine_thread, "IDLE_SECONDS", 0.001)
    async with running() as thread:
        ages = [thread.heartbeat_age_seconds]

        def beat_again() -> bool:
            ages.append(thread.heartbeat_age_seconds)
            return ages[-1] < ages[-2]

        for _ in range(3):
            await until(beat_again)
