"""Whose turn it is, and which state may follow which. Pure policy: no I/O, no clock.

Jobs take turns in the order of their submission. A job that comes back to the queue after a
restart of the server keeps its id and with it its place. `turn` is the one function to change
for priorities.
"""

from collections.abc import Iterable

from server.jobs.job import Job, JobState

FOLLOWERS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.STARTING, JobState.CANCELLED, JobState.FAILED}  # its record is damaged
    ),
    JobState.STARTING: frozenset(
        {
            JobState.RUNNING,
            JobState.QUEUED,  # the server stops
            JobState.RECOVERING,  # the process could not be started
            JobState.CANCELLING,
            JobState.SUCCEEDED,  # training was over, its model had yet to be published
            JobState.FAILED,
        }
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.RECOVERING,
            JobState.CANCELLING,
            JobState.SUCCEEDED,
            JobState.FAILED,
        }
    ),
    JobState.RECOVERING: frozenset({JobState.STARTING, JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset(
        {JobState.CANCELLED, JobState.SUCCEEDED}  # the request came when all was done
    ),
    JobState.CANCELLED: frozenset(),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
}

INTERRUPTED = frozenset({JobState.STARTING, JobState.RUNNING, JobState.RECOVERING})
"""States that say a server is at work on the job: after its death they have to be put right."""


def turn(job: Job) -> str:
    """What the queue is sorted by: ids sort by submission."""
    return job.id


def next_job(queued: Iterable[Job]) -> Job | None:
    """The job whose turn it is; None if none waits."""
    return min(queued, key=turn, default=None)


def positions(queued: Iterable[Job]) -> dict[str, int]:
    """For each waiting job's id, how many will start before it."""
    return {job.id: place for place, job in enumerate(sorted(queued, key=turn))}
