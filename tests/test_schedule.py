"""The learning rate at the points of the reference, and what holds everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.config import TrainConfig
from nanogpt.training.schedule import learning_rate


def config(peak, floor, warmup, decay, **more):
    return TrainConfig(
        learning_rate=peak, min_lr=floor, warmup_iters=warmup, lr_decay_iters=decay, **more
    )


SHORT = config(1e-3, 1e-4, 100, 1000)
CHAR = config(1e-3, 1e-4, 100, 5000)
GPT2 = config(6e-4, 6e-5, 2000, 600_000)


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        (SHORT, 0, 1e-3 / 101),
        (SHORT, 0, 9.900990e-6),
        (SHORT, 50, 1e-3 * 51 / 101),
        (SHORT, 99, 1e-3 * 100 / 101),
        (SHORT, 100, 1e-3),
        (SHORT, 550, 5.5e-4),
        (SHORT, 1000, 1e-4),
        (SHORT, 1001, 1e-4),
        (SHORT, 2000, 1e-4),
        (SHORT, 10000, 1e-4),
        (GPT2, 0, 6e-4 / 2001),
        (GPT2, 1999, 6e-4 * 2000 / 2001),
        (GPT2, 2000, 6e-4),
        (GPT2, 301_000, 3.3e-4),
        (GPT2, 600_000, 6e-5),
        (CHAR, 0, 9.900990e-6),
        (CHAR, 100, 1e-3),
        (CHAR, 2550, 5.5e-4),
        (CHAR, 5000, 1e-4),
    ],
)
def test_reference_points(schedule, step, rate):
    assert learning_rate(schedule, step) == pytest.approx(rate, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        # at steps        0            100   550     800   900     1000  5000
        ("cosine", [1e-3 / 101, 1e-3, 5.5e-4, None, None, 1e-4, 1e-4]),
        ("linear", [1e-3 / 101, 1e-3, 5.5e-4, 3e-4, 2e-4, 1e-4, 1e-4]),
        ("constant", [1e-3 / 101, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]),
        ("wsd", [1e-3 / 101, 1e-3, 1e-3, 1e-3, 5.5e-4, 1e-4, 1e-4]),
    ],
)
def test_shapes(name, rates):
    schedule = config(1e-3, 1e-4, 100, 1000, lr_schedule=name, wsd_decay_fraction=0.2)
    for step, rate in zip((0, 100, 550, 800, 900, 1000, 5000), rates, strict=True):
        if rate is not None:
            assert learning_rate(schedule, step) == pytest.approx(rate, rel=1e-9)


def test_a_fall_longer_than_the_schedule_begins_after_warm_up():
    schedule = config(1e-3, 0.0, 100, 1000, lr_schedule="wsd", wsd_decay_fraction=1.0)
    assert learning_rate(schedule, 100) == pytest.approx(1e-3)
    assert learning_rate(schedule, 550) == pytest.approx(0.5e-3)


def test_a_constant_rate_has_no_warm_up():
    constant = config(3e-5, 1e-5, 100, 1000, decay_lr=False)
    assert {learning_rate(constant, step) for step in (0, 50, 100, 999, 5000)} == {3e-5}


@given(
    warmup=st.integers(0, 50),
    length=st.integers(1, 200),
    step=st.integers(0, 300),
    floor=st.floats(0, 1e-3),
)
def test_it_rises_then_falls_and_stays_in_its_range(warmup, length, step, floor):
    schedule = config(1e-3, floor, warmup, warmup + length)
    now, later = learning_rate(schedule, step), learning_rate(schedule, step + 1)
    assert 0 < now <= 1e-3 + 1e-12 or (floor == 0 and step >= warmup + length)
    if step + 1 <= warmup:
        assert now < later
    else:
        assert now >= later - 1e-12
        assert now >= floor - 1e-12
