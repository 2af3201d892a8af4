"""Lines for charts: few points, no peak lost, made in one pass."""

import random

import pytest

from nanogpt.training.events import Divergence, Event, Sample
from server.web.history import MAX_POINTS, MAX_SAMPLES, History, Line
from tests.fake_trainer import checkpoint, evaluation, started, step


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1999, 2000])
def test_a_short_line_is_kept_as_it_is(count):
    line = Line()
    for x in range(count):
        line.add(x, x % 7)
    assert line.points() == [(x, x % 7) for x in range(count)]


@pytest.mark.parametrize("count", [2001, 10_000, 123_457])
def test_a_long_line_keeps_its_peaks_its_order_and_its_end(count):
    draw = random.Random(1337)
    values = [draw.random() for _ in range(count)]
    values[count // 3], values[count // 2] = 9.0, -9.0
    line = Line()
    for x, y in enumerate(values):
        line.add(x, y)
    points = line.points()
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS + 3
    assert line.num_points == count
    assert all(values[x] == y for x, y in points)
    assert [x for x, _ in points] == sorted({x for x, _ in points})
    assert (count // 3, 9.0) in points and (count // 2, -9.0) in points
    assert points[-1] == (count - 1, values[-1])


def numbered(*bodies):
    return [Event(sequence, 1000.0 + sequence, body) for sequence, body in enumerate(bodies, 1)]


def test_events_become_lines_and_lists():
    history = History()
    history.add(numbered(started(), step(1), evaluation(1, 3.5), checkpoint(1), step(2)))
    found = history.to_json()
    assert found["sequence"] == 5
    assert found["lines"]["loss"] == {"x": [1, 2], "y": [3.99, 3.98], "num_points": 2}
    assert found["lines"]["val_loss"] == {"x": [1], "y": [3.5], "num_points": 1}
    assert [event["kind"] for event in found["events"]] == ["started", "evaluation", "checkpoint"]
    assert found["samples"] == []


def went_back(number, to):
    return Divergence(number, "ROLLED_BACK", 9.0, 1.0, to, 0.5)


def test_points_that_a_run_took_back_are_gone():
    history = History()
    steps = [step(number) for number in range(1, 6001)]
    history.add(numbered(*steps[:5000], evaluation(5000), went_back(5000, 4000)))
    for line in history.to_json()["lines"].values():
        assert not line["x"] or line["x"][-1] <= 4000
    history.add(numbered(*steps[4000:4500]))
    found = history.to_json()["lines"]["loss"]
    assert found["x"] == sorted(set(found["x"])) and found["x"][-1] == 4500
    assert dict(zip(found["x"], found["y"], strict=True))[4500] == pytest.approx(4.0 - 45)
    history.add(numbered(went_back(4500, 0), step(1)))
    assert history.to_json()["lines"]["loss"]["x"] == [1]


def test_the_newest_samples_are_kept():
    history = History()
    history.add(numbered(*(Sample(n, "A", f"text {n}") for n in range(60))))
    samples = history.to_json()["samples"]
    assert len(samples) == MAX_SAMPLES and samples[-1]["text"] == "text 59"
