import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import checkpoint, evaluation, record, started, step

from nanogpt.training.events import Event, EventReader
from nanogpt.training.run_directory import RunDirectory
from server.errors import DataLoss, Unavailable
from server.jobs import tail as tail_module
from server.jobs.job import JobState, Standing
from server.jobs.tail import Gap, Subscription, Tail

RUNNING, SUCCEEDED = Standing(JobState.RUNNING), Standing(JobState.SUCCEEDED)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


async def everything(subscription: Subscription) -> list[int | JobState]:
    """Sequence numbers and states, in order, up to the end of the job."""
    said: list[int | JobState] = []
    while (news := await subscription.next(30)) is not None:
        said += [news.state] if isinstance(news, Standing) else [event.sequence for event in news]
    return said


async def test_the_state_comes_first_then_the_record_then_the_end(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    record(run, started(), step(1))
    await tail.refresh()
    subscription = tail.subscribe(1)
    record(run, step(2))
    await tail.refresh()
    tail.publish(SUCCEEDED)
    assert await everything(subscription) == [JobState.RUNNING, 1, 2, 3, JobState.SUCCEEDED]


async def test_a_change_is_told_after_the_events_before_it(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, Standing(JobState.QUEUED))
    subscription = tail.subscribe(1)
    tail.publish(RUNNING)
    record(run, started(), step(1))
    await tail.refresh()
    tail.publish(Standing(JobState.RECOVERING))
    record(run, step(2))
    await tail.refresh()
    tail.publish(SUCCEEDED)
    expected = ["QUEUED", "RUNNING", 1, 2, "RECOVERING", 3, "SUCCEEDED"]
    assert await everything(subscription) == expected


async def test_an_ended_job_says_its_state_and_its_record_from_any_number(
    run: RunDirectory,
) -> None:
    record(run, started(), *(step(number) for number in range(1, 10)))
    tail = Tail(run.metrics_path, SUCCEEDED)
    await tail.refresh()
    for start in (1, 2, 10, 11, 500):
        said = await everything(tail.subscribe(start))
        assert said == [JobState.SUCCEEDED, *range(start, 11)]


@pytest.mark.parametrize("seed", range(5))
async def test_readers_of_any_speed_get_every_event_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Little memory, small pieces, changes of state in between, readers that sleep."""
    monkeypatch.setattr(tail_module, "RECENT_EVENTS", 7)
    monkeypatch.setattr(tail_module, "PIECE_BYTES", 500)
    chance, num_events = random.Random(seed), 120
    tail = Tail(run.metrics_path, RUNNING)

    async def read(start: int, laziness: float) -> list[int | JobState]:
        said: list[int | JobState] = []
        subscription = tail.subscribe(start)
        while (news := await subscription.next(30)) is not None:
            if isinstance(news, list):
                said += [event.sequence for event in news]
                for _ in range(int(laziness * chance.randrange(20))):
                    await asyncio.sleep(0)
        return said

    readers = {
        start: asyncio.ensure_future(read(start, laziness))
        for start, laziness in [(1, 0), (2, 1), (3, 5), (60, 2), (num_events, 0)]
    }
    bodies = [started(), *(step(number) for number in range(1, num_events))]
    while bodies:
        count = chance.randrange(1, 25)
        record(run, *bodies[:count])
        bodies = bodies[count:]
        await tail.refresh()
        if chance.random() < 0.3:
            tail.publish(RUNNING)
        await asyncio.sleep(0)
    tail.publish(SUCCEEDED)
    for start, reader in readers.items():
        assert await reader == list(range(start, num_events + 1))


async def test_an_unfinished_line_is_not_yet_an_event(run: RunDirectory) -> None:
    record(run, started(), step(1))
    lines = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(lines[:-20])
    tail = Tail(run.metrics_path, RUNNING)
    await tail.refresh()
    assert tail.progress.sequence == 1
    run.metrics_path.write_bytes(lines)
    await tail.refresh()
    assert tail.progress.sequence == 2


async def test_silence_is_told(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    subscription = tail.subscribe(1)
    assert await subscription.next(30) == RUNNING
    assert await subscription.next(0.01) == []
    record(run, started())
    await tail.refresh()
    news = await subscription.next(30)
    assert isinstance(news, list)
    assert [event.sequence for event in news] == [1]


async def test_a_stopping_server_sends_readers_away_with_all_there_is(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    subscription = tail.subscribe(1)
    assert await subscription.next(30) == RUNNING
    waiting = asyncio.ensure_future(subscription.next(30))
    await asyncio.sleep(0)
    record(run, started())
    await tail.refresh()
    tail.publish(Standing(JobState.QUEUED))
    tail.close()
    assert [event.sequence for event in await waiting] == [1]  # type: ignore[union-attr]
    assert await subscription.next(30) == Standing(JobState.QUEUED)
    with pytest.raises(Unavailable):
        await subscription.next(30)


async def test_one_reader_that_goes_does_not_silence_the_others(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    readers = [asyncio.ensure_future(everything(tail.subscribe(1))) for _ in range(3)]
    await asyncio.sleep(0)
    readers[1].cancel()
    record(run, started(), step(1))
    await tail.refresh()
    tail.publish(SUCCEEDED)
    expected = [JobState.RUNNING, 1, 2, JobState.SUCCEEDED]
    assert [await readers[0], await readers[2]] == [expected, expected]


async def test_one_that_rested_goes_on_where_it_was(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a job that nobody watches reads what is new, not the record from its start."""
    tail = Tail(run.metrics_path, RUNNING)
    record(run, started(), step(1))
    await tail.catch_up()
    tail.rest()
    record(run, step(2))
    read, pieces = tail_module._read_piece, []

    async def count(reader: EventReader) -> list[Event]:
        pieces.append(await read(reader))
        return pieces[-1]

    monkeypatch.setattr(tail_module, "_read_piece", count)
    await tail.catch_up()
    assert [[event.sequence for event in piece] for piece in pieces] == [[3], []]
    assert tail.progress.step == 2
    tail.publish(SUCCEEDED)
    assert await everything(tail.subscribe(1)) == [JobState.SUCCEEDED, 1, 2, 3]


async def test_a_visitor_who_leaves_takes_nothing_from_the_others(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(run, started(), step(1), step(2))
    read, gate, readers, most_readers = EventReader.read, threading.Event(), 0, 0

    def wait_and_read(*arguments: Any) -> list[Event]:
        nonlocal readers, most_readers
        readers += 1
        most_readers = max(most_readers, readers)
        assert gate.wait(20)
        found = read(*arguments)
        readers -= 1
        return found

    monkeypatch.setattr(EventReader, "read", wait_and_read)
    tail = Tail(run.metrics_path, SUCCEEDED)
    leaving, staying = (asyncio.create_task(tail.catch_up()) for _ in range(2))
    while not readers:
        await asyncio.sleep(0.001)
    leaving.cancel()
    threading.Timer(0.05, gate.set).start()
    await staying
    assert leaving.cancelled() and most_readers == 1
    assert tail.progress.sequence == 3
    assert await everything(tail.subscribe(1)) == [JobState.SUCCEEDED, 1, 2, 3]


async def test_progress_sums_up_the_record(run: RunDirectory) -> None:
    record(run, started(), evaluation(0, 4.0), step(1), evaluation(10, 3.5), checkpoint(10),
           step(11), evaluation(20, 3.7))  # fmt: skip
    seen: list[Event] = []
    tail = Tail(run.metrics_path, RUNNING)
    await tail.refresh(seen.append)
    progress = tail.progress
    assert [event.sequence for event in seen] == list(range(1, 8))
    assert progress.run == started()
    assert progress.step == 20
    assert progress.latest_step == step(11)
    assert progress.latest_evaluation == evaluation(20, 3.7)
    assert progress.best_val_loss == 3.5
    assert progress.checkpoint_step == 10


async def test_a_damaged_record_is_named(run: RunDirectory) -> None:
    record(run, started())
    with run.metrics_path.open("a") as file:
        file.write("no event\n")
    with pytest.raises(DataLoss):
        await Tail(run.metrics_path, RUNNING).refresh()


async def test_a_record_that_vanishes_ends_its_readers(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "RECENT_EVENTS", 1)
    record(run, started(), step(1))
    tail = Tail(run.metrics_path, RUNNING)
    await tail.refresh()
    run.metrics_path.unlink()
    subscription = tail.subscribe(1)
    assert await subscription.next(30) == RUNNING
    with pytest.raises(DataLoss):
        await subscription.next(30)


def said_by(news: object) -> list[int | tuple[int, int]]:
    """Sequence numbers of events, and pairs of them for gaps."""
    assert isinstance(news, list)
    return [(i.first_sequence, i.last_sequence) if isinstance(i, Gap) else i.sequence for i in news]


async def test_a_reader_that_falls_behind_gets_the_newest_and_a_declared_gap(
    run: RunDirectory,
) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    record(run, started(), *(step(number) for number in range(1, 5)))
    await tail.refresh()
    subscription = tail.subscribe(1, max_behind=3)
    assert await subscription.next(30) == RUNNING
    assert said_by(await subscription.next(30)) == [1, 2, 3, 4, 5]  # recorded before it came
    record(run, *(step(number) for number in (5, 6, 7)))
    await tail.refresh()
    assert said_by(await subscription.next(30)) == [6, 7, 8]  # in time
    record(run, step(8), step(9), evaluation(9), checkpoint(9), *(step(n) for n in range(10, 16)))
    await tail.refresh()  # 9 to 18: it is 10 behind
    assert said_by(await subscription.next(30)) == [(9, 10), 11, 12, (13, 15), 16, 17, 18]


async def test_a_reader_that_names_no_limit_misses_nothing(run: RunDirectory) -> None:
    tail = Tail(run.metrics_path, RUNNING)
    subscription = tail.subscribe(1)
    assert await subscription.next(30) == RUNNING
    record(run, started(), *(step(number) for number in range(1, 100)))
    await tail.refresh()
    assert said_by(await subscription.next(30)) == list(range(1, 101))


@pytest.mark.parametrize("seed", range(5))
async def test_what_a_slow_reader_gets_and_what_it_is_told_of_is_everything(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(tail_module, "RECENT_EVENTS", 7)
    monkeypatch.setattr(tail_module, "PIECE_BYTES", 500)
    chance, tail = random.Random(seed), Tail(run.metrics_path, RUNNING)
    subscription, heard, left_out = tail.subscribe(1, max_behind=4), [], 0
    is_late = asyncio.Event()

    async def read() -> None:
        nonlocal left_out
        await is_late.wait()
        while (news := await subscription.next(30)) is not None:
            if isinstance(news, list):
                for item in said_by(news):
                    numbers = range(item[0], item[1] + 1) if isinstance(item, tuple) else [item]
                    left_out += len(numbers) if isinstance(item, tuple) else 0
                    heard.extend(numbers)
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)

    reader = asyncio.ensure_future(read())
    record(run, started())
    number = 0
    while number < 200:
        for _ in range(chance.randrange(1, 15)):
            number += 1
            record(run, step(number), *([evaluation(number)] if number % 10 == 0 else []))
        await tail.refresh()
        await asyncio.sleep(0)
        if number > 50:
            is_late.set()
    tail.publish(SUCCEEDED)
    await reader
    assert heard == list(range(1, tail.progress.sequence + 1))
    assert left_out > 0
