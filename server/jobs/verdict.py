"""What the end of a trainer's process means for its job. Pure policy: no I/O, no clock.

| the process                          | the job                                                |
|--------------------------------------|--------------------------------------------------------|
| did all its steps, or all it may     | SUCCEEDED, once its model is published                 |
| refused the spec, dataset, loss, size| FAILED, with the sentence that the trainer printed     |
| ended otherwise while the server stops| QUEUED at its old place; the next server goes on      |
| saved a checkpoint and left (75)     | RECOVERING; somebody asked it to, so it is not charged |
| met another trainer in its run (73)  | RECOVERING; a dead server had started it: not charged  |
| crashed                              | RECOVERING, after more than `max_crashes` FAILED, with |
|                                      | the last lines of its log                              |

Crashes are counted in a row: a new checkpoint in between starts the count again, because a job
that gets on is not in a loop.
"""

import signal

from nanogpt.training.run_directory import ExitCode
from server.jobs.job import JobReason, JobState, Standing

_SUCCESSES = {
    ExitCode.DONE: JobReason.UNSPECIFIED,
    ExitCode.EARLY_STOPPED: JobReason.EARLY_STOPPED,
    ExitCode.LIMIT_REACHED: JobReason.LIMIT_REACHED,
}

NOBODY_SAW = "nobody saw it end: the server had died"
"""How the attempts of a dead server ended."""

_FAILURES = {
    ExitCode.BAD_CONFIG: (JobReason.BAD_CONFIG, "the configuration cannot be used"),
    ExitCode.BAD_DATASET: (JobReason.BAD_DATASET, "the dataset cannot be used"),
    ExitCode.DIVERGED: (
        JobReason.DIVERGED,
        "the loss or a gradient was not finite; try a lower learning_rate",
    ),
    ExitCode.OUT_OF_MEMORY: (
        JobReason.OUT_OF_MEMORY,
        "memory ran out; try a smaller batch_size, block_size or model",
    ),
}


def success(exit_code: int | None) -> Standing | None:
    """Where a job will stand whose trainer has nothing left to do; None if that is not so."""
    if exit_code not in _SUCCESSES:
        return None
    return Standing(JobState.SUCCEEDED, _SUCCESSES[ExitCode(exit_code)])


def is_crash(exit_code: int | None) -> bool:
    """Whether a trainer ended in a way it should not; None is one that could not be started."""
    return exit_code is None or exit_code not in list(ExitCode)


def judge(
    exit_code: int | None,
    *,
    error_line: str | None,
    last_lines: str = "",
    was_asked: bool,
    crashes: int,
    max_crashes: int,
) -> Standing:
    """Where the job stands after this end of a trainer that was not done.

    `error_line` is what the trainer said to the user, `last_lines` how its log ends, `crashes`
    counts those in a row, this one included.
    """
    if exit_code in _FAILURES:
        reason, sentence = _FAILURES[ExitCode(exit_code)]
        return Standing(JobState.FAILED, reason, error_line or sentence)
    if was_asked:
        return Standing(JobState.QUEUED, JobReason.SERVER_RESTART)
    if not is_crash(exit_code):
        return Standing(JobState.RECOVERING)
    if crashes <= max_crashes:
        return Standing(JobState.RECOVERING, JobReason.CRASHED)
    times = "once" if crashes == 1 else f"{crashes} times in a row"
    said = f": {error_line}" if error_line else ""
    log = f"; its log ends with:\n{last_lines}" if last_lines else ""
    return Standing(
        JobState.FAILED,
        JobReason.CRASH_LOOP,
        f"the trainer crashed {times}, last {_describe(exit_code)}{said}{log}",
    )


def ending(exit_code: int | None, error_line: str | None) -> str:
    """How an attempt ended, in a few words; None is one that could not be started."""
    match exit_code:
        case ExitCode.DONE:
            return "did all its steps"
        case ExitCode.EARLY_STOPPED:
            return "stopped early: the validation loss had stopped improving or was low enough"
        case ExitCode.LIMIT_REACHED:
            return "reached a limit of tokens, epochs or time"
        case ExitCode.INTERRUPTED:
            return "saved its work and left, as it was asked to"
        case ExitCode.BUSY:
            return "met the trainer of a dead server in its run directory"
        case None:
            return error_line or "its process could not be started"
    if exit_code in _FAILURES:
        return error_line or _FAILURES[ExitCode(exit_code)][1]
    said = f": {error_line}" if error_line else ""
    return f"crashed {_describe(exit_code)}{said}"


def backoff_seconds(crashes: int, first_seconds: float, max_seconds: float) -> float:
    """Pause before the next start: doubles with each crash in a row."""
    return float(min(max_seconds, first_seconds * 2.0 ** max(0, crashes - 1)))


def _describe(exit_code: int | None) -> str:
    if exit_code is None:
        return "because its process could not be started"
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    if exit_code == -signal.SIGKILL:
        return "by SIGKILL, which is how an operating system without memory stops a process"
    try:
        return f"by {signal.Signals(-exit_code).name}"
    except ValueError:  # real-time signals have no name
        return f"by signal {-exit_code}"
