import asyncio
import random
from pathlib import Path

import pytest
from fake_trainer import checkpoint, evaluation, record, started, step

from nanogpt.training.events import Event
from nanogpt.training.run_directory import RunDirectory
from server.errors import DataLoss, Unavailable
from server.jobs import tail as tail_module
from server.jobs.job import JobState, Standing
from server.jobs.tail import Subscription, Tail

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
