"""The record of a run: whole lines, numbered without a gap, nothing twice, wherever it was cut."""

import errno
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.config import ModelConfig
from nanogpt.training.events import (
    CheckpointWritten,
    Evaluation,
    Event,
    EventReader,
    EventWriter,
    RunStarted,
    Sample,
    StepMetrics,
    from_json_line,
    order_key,
    to_json_line,
)

SHAPE = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=False)
STARTED = RunStarted(
    SHAPE, 27_328, "char", 900, 100, 64, "cpu", "AMD EPYC", "float32", None, "", 12
)


def step(number):
    return StepMetrics(number, 4.0, 1e-3, 0.5, True, 0.01, 6400.0, None, 64 * number, 1 << 20)


def evaluation(number):
    return Evaluation(number, 2.5, 2.75, True, 0.25)


def sample(number):
    return Sample(number, "\n", "äöü \u2028 \U0001f600 \ud800 \x00 \n")


def checkpoint(number):
    return CheckpointWritten(number, None, False, 4096, 1.7e9)


# what a run of 12 steps offers, from its start
RUN = [STARTED, evaluation(0), sample(0), checkpoint(0)]
for number in range(1, 13):
    RUN.append(step(number))
    if number % 4 == 0:
        RUN += [evaluation(number), sample(number), checkpoint(number)]


def offered_from(checkpoint_step):
    """What the run offers when it goes on from a checkpoint: its event again, then the rest."""
    if checkpoint_step is None:
        return RUN
    return [STARTED, *RUN[RUN.index(checkpoint(checkpoint_step)) :]]


def write(path, bodies):
    with EventWriter(path) as writer:
        for body in bodies:
            writer.append(body)


def bodies(path):
    return [event.body for event in EventReader(path).read()]


@pytest.mark.parametrize("body", [STARTED, step(3), evaluation(3), sample(3), checkpoint(3)])
def test_an_event_survives_its_line(body):
    event = Event(7, 1.25, body)
    line = to_json_line(event)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert from_json_line(line) == event


def test_what_is_not_finite_is_no_json():
    bad = Evaluation(1, float("nan"), 2.0, False, 0.1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json_line(Event(1, 0.0, bad))


@pytest.mark.parametrize("line", ["", "[]", "{}", "5", '{"sequence":1,"time":0,"kind":"x"}', "{"])
def test_what_is_no_event_is_refused(line):
    with pytest.raises(ValueError):
        from_json_line(line)


def test_the_order_within_a_step():
    ordered = [step(5), evaluation(5), sample(5), checkpoint(5), step(6)]
    assert sorted(reversed(ordered), key=order_key) == ordered
    assert order_key(STARTED) < order_key(evaluation(0))


def test_numbers_start_at_one_and_have_no_gap(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, RUN)
    events = EventReader(path).read()
    assert [event.sequence for event in events] == list(range(1, len(RUN) + 1))
    assert [event.body for event in events] == RUN
    assert all(a.time <= b.time for a, b in itertools.pairwise(events))


def test_append_says_what_was_new(tmp_path):
    with EventWriter(tmp_path / "metrics.jsonl") as writer:
        assert writer.append(step(2)).sequence == 1
        assert writer.append(step(2)) is None
        assert writer.append(step(1)) is None
        assert writer.append(checkpoint(2)).sequence == 2


@given(data=st.data())
def test_a_record_cut_anywhere_is_completed_from_any_checkpoint(tmp_path_factory, data):
    """Killed at any byte, any number of times, resumed from any checkpoint before: the same."""
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, RUN)
    whole = bodies(path)
    for _ in range(data.draw(st.integers(1, 3), label="kills")):
        left = data.draw(st.floats(0, 1), label="fraction left")
        os.truncate(path, int(left * path.stat().st_size))
        recorded = bodies(path)
        # the checkpoint is on disk before its event, so it may be one that has no event yet
        last = order_key(recorded[-1]) if recorded else (-1, 0, 0, 0)
        wanted = data.draw(st.sampled_from([None, 0, 4, 8, 12]), label="resumes from")
        there = wanted is None or order_key(sample(wanted)) <= last
        write(path, offered_from(wanted if there else None))
        assert bodies(path) == whole
    events = EventReader(path).read()
    assert [event.sequence for event in events] == list(range(1, len(RUN) + 1))


@given(data=st.data())
def test_a_reader_sees_every_event_once(tmp_path_factory, data):
    """Whatever bytes it finds at each look, also when the writer restarts in between."""
    folder = tmp_path_factory.mktemp("run")
    write(folder / "source", RUN)
    content = (folder / "source").read_bytes()
    max_bytes = data.draw(st.sampled_from([-1, 1, 10, 300, 1000]), label="max_bytes")
    reader, seen = EventReader(folder / "metrics.jsonl"), []
    assert reader.read() == []  # there is no file yet
    looks = data.draw(st.lists(st.floats(0, 1), max_size=6), label="looks")
    for size in [*(int(look * len(content)) for look in sorted(looks)), len(content)]:
        (folder / "metrics.jsonl").write_bytes(content[:size])
        while piece := reader.read(max_bytes):
            seen += piece
        if data.draw(st.booleans(), label="restart"):
            EventWriter(folder / "metrics.jsonl").close()  # cuts the unfinished line
            (folder / "metrics.jsonl").write_bytes(content[:size])
    assert [event.sequence for event in seen] == list(range(1, len(RUN) + 1))
    assert reader.read() == []


def test_a_reader_takes_a_piece_or_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, RUN)
    reader = EventReader(path)
    assert [event.body for event in reader.read(10)] == RUN[:1]  # the line is longer
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    assert [event.body for event in reader.read(sum(sizes[1:4]))] == RUN[1:4]
    assert [event.body for event in reader.read(sum(sizes[4:6]) - 1)] == RUN[4:5]
    assert [event.body for event in reader.read()] == RUN[5:]


@pytest.mark.parametrize("order", [[0, 2], [0, 0], [1, 0], [0, 1, 1]])
def test_a_record_with_a_gap_or_a_repeat_is_damaged(tmp_path, order):
    path = tmp_path / "metrics.jsonl"
    write(path, RUN)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[i] for i in order))
    with pytest.raises(ValueError, match="where"):
        EventReader(path).read()


def test_a_full_disk_delays_events_and_loses_none(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    real_write, room = os.write, 300

    def write_until_full(file, data):
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(file, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write_until_full)
    with EventWriter(path) as writer:
        for body in RUN[:6]:
            assert writer.append(body) is not None
        with pytest.raises(OSError, match="No space left"):
            writer.sync()
        assert len(EventReader(path).read()) < 6
        room = 1 << 20
        writer.append(RUN[6])
        writer.sync()
    assert bodies(path) == RUN[:7]


def test_a_damaged_record_is_not_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"not an event\n")
    with pytest.raises(ValueError):
        EventWriter(path)
