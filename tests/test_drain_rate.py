"""How long a queue takes."""

import pytest

from server.serving.drain_rate import DrainRate


def test_the_drain_rate_counts_busy_time_only():
    rate = DrainRate()
    rate.step(5.0, waiting=0, completed=1)
    assert rate.seconds_per_request is None
    for _ in range(50):
        rate.step(0.5, waiting=3, completed=0)
        rate.step(0.5, waiting=3, completed=2)
    assert rate.seconds_per_request == pytest.approx(0.5)
    for _ in range(50):
        rate.step(2.0, waiting=1, completed=1)
    assert rate.seconds_per_request == pytest.approx(2.0, rel=0.01)
