import pytest

from nanogpt.training.run_directory import ExitCode
from server.jobs.job import JobReason, JobState, Standing
from server.jobs.verdict import backoff_seconds, ending, is_crash, judge, success


def verdict(exit_code: int | None, **changes: object) -> Standing:
    values: dict[str, object] = {
        "error_line": None,
        "was_asked": False,
        "crashes": int(is_crash(exit_code)),
        "max_crashes": 3,
    }
    return judge(exit_code, **{**values, **changes})


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (ExitCode.DONE, JobReason.UNSPECIFIED),
        (ExitCode.EARLY_STOPPED, JobReason.EARLY_STOPPED),
        (ExitCode.LIMIT_REACHED, JobReason.LIMIT_REACHED),
    ],
)
def test_a_run_with_nothing_left_to_do_is_a_success(exit_code: int, reason: JobReason) -> None:
    assert success(exit_code) == Standing(JobState.SUCCEEDED, reason)
    assert not is_crash(exit_code)


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.DIVERGED, -9, 1, 2, None])
def test_every_other_end_is_none(exit_code: int | None) -> None:
    assert success(exit_code) is None


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (ExitCode.BAD_CONFIG, JobReason.BAD_CONFIG),
        (ExitCode.BAD_DATASET, JobReason.BAD_DATASET),
        (ExitCode.DIVERGED, JobReason.DIVERGED),
        (ExitCode.OUT_OF_MEMORY, JobReason.OUT_OF_MEMORY),
    ],
)
def test_a_run_that_cannot_work_is_never_tried_again(exit_code: int, reason: JobReason) -> None:
    said = verdict(exit_code, error_line="the loss was NaN at step 3")
    assert said == Standing(JobState.FAILED, reason, "the loss was NaN at step 3")
    unsaid = verdict(exit_code, was_asked=True)
    assert (unsaid.state, unsaid.reason) == (JobState.FAILED, reason)
    assert unsaid.error


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, -9, -15, 1, None])
def test_a_stopping_server_keeps_the_place_of_its_job(exit_code: int | None) -> None:
    kept = Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
    assert verdict(exit_code, was_asked=True, crashes=99) == kept


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.BUSY])
def test_an_orderly_exit_is_not_charged(exit_code: int) -> None:
    assert not is_crash(exit_code)
    assert verdict(exit_code, crashes=99) == Standing(JobState.RECOVERING)


def test_a_crash_is_retried_as_often_as_allowed() -> None:
    states = [verdict(-11, crashes=crashes, max_crashes=2).state for crashes in (1, 2, 3)]
    assert states == [JobState.RECOVERING, JobState.RECOVERING, JobState.FAILED]
    assert verdict(1, crashes=1, max_crashes=0).reason is JobReason.CRASH_LOOP


def test_the_text_of_a_crash_loop_helps() -> None:
    text = verdict(-9, crashes=4, error_line="cannot write").error
    assert "4 times" in text
    assert "SIGKILL" in text
    assert "without memory" in text
    assert text.endswith("cannot write")
    assert "exit code 7" in verdict(7, crashes=4).error
    assert "signal 60" in verdict(-60, crashes=4).error


def test_a_crash_loop_shows_how_the_log_ends() -> None:
    text = verdict(1, crashes=4, last_lines="Traceback\nKeyError: 'x'").error
    assert text.endswith("with exit code 1; its log ends with:\nTraceback\nKeyError: 'x'")


@pytest.mark.parametrize("exit_code", [*ExitCode, -9, -60, 1, None])
def test_every_end_of_an_attempt_is_put_into_words(exit_code: int | None) -> None:
    assert ending(exit_code, None)
    if exit_code not in (0, 3, 4, 73, 75):
        assert "no room" in ending(exit_code, "no room")


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [backoff_seconds(crashes, 1.0, 60.0) for crashes in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert backoff_seconds(1000, 1.0, 60.0) == 60.0
    assert backoff_seconds(0, 1.0, 60.0) == 1.0
    assert backoff_seconds(1, 1.0, 0.0) == 0.0
