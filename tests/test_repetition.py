"""Which calls are sent again, how often, and for how long."""

import pytest

from client import methods
from client.errors import ErrorDetails, Unavailable
from client.repetition import LONGEST_PAUSE_SECONDS, MAX_ATTEMPTS, Attempts, pause_seconds


class Clock:
    """A clock that stands still until it is set."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_pauses_double_up_to_a_limit():
    for failures in range(1, 12):
        longest = min(0.2 * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause_seconds(failures) <= longest


def test_a_call_that_may_be_repeated_has_so_many_attempts():
    attempts = Attempts(methods.TRAIN, 30)
    for _ in range(MAX_ATTEMPTS - 1):
        attempts.pause_seconds(Unavailable("gone"))
    with pytest.raises(Unavailable):
        attempts.pause_seconds(Unavailable("gone"))


def test_a_call_that_changes_something_has_one_attempt():
    with pytest.raises(Unavailable):
        Attempts(methods.CANCEL_JOB, 30).pause_seconds(Unavailable("gone"))


def test_a_pause_is_as_long_as_the_server_asks():
    error = Unavailable("stopping", ErrorDetails(retry_seconds=9))
    assert Attempts(methods.TRAIN, 30).pause_seconds(error) == 9


def test_no_attempt_begins_after_the_deadline():
    error = Unavailable("stopping", ErrorDetails(retry_seconds=9))
    with pytest.raises(Unavailable):
        Attempts(methods.TRAIN, 9).pause_seconds(error)


def test_attempts_share_one_deadline():
    clock = Clock()
    attempts = Attempts(methods.TRAIN, 30, clock)
    clock.seconds = 29.95
    assert attempts.remaining_seconds() == pytest.approx(0.05)
    with pytest.raises(Unavailable):  # the shortest pause is 0.1 s
        attempts.pause_seconds(Unavailable("gone"))
