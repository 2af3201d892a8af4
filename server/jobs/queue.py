"""Whose turn it is, and which state may follow which. Pure policy: no I/O, no clock.

The job of the lowest priority number goes first, among equals the oldest. Waiting counts: a job
moves up by one priority for every AGEING_SECONDS, so none waits for ever. Since all that wait grow
older at the same speed, their order never changes and needs no clock: a job stands where one of
priority 0 would that was submitted so much later. One that comes back to the queue, after a pause
or a restart of the server, keeps its id and with it its place.
"""

from collections.abc import Iterable

from server.jobs.job import Job, JobState, submit_time

AGEING_SECONDS = 600.0
"""Waiting that is worth one priority."""

FOLLOWERS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {
            JobState.STARTING,
            JobState.PAUSED,
            JobState.CANCELLED,
            JobState.FAILED,  # its record is damaged
        }
    ),
    JobState.STARTING: frozenset(
        {
            JobState.RUNNING,
            JobState.QUEUED,  # the server stops
            JobState.PAUSING,
            JobState.RECOVERING,  # the process could not be started
            JobState.CANCELLING,
            JobState.SUCCEEDED,  # training was over, its model had yet to be published
            JobState.FAILED,
        }
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.PAUSING,
            JobState.RECOVERING,
            JobState.CANCELLING,
            JobState.SUCCEEDED,
            JobState.FAILED,
        }
    ),
    JobState.PAUSING: frozenset(
        {
            JobState.PAUSED,
            JobState.CANCELLING,
            JobState.SUCCEEDED,  # the request came when all was done
            JobState.FAILED,
        }
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.RECOVERING: frozenset(
        {JobState.STARTING, JobState.QUEUED, JobState.PAUSED, JobState.CANCELLED}
    ),
    JobState.CANCELLING: frozenset(
        {JobState.CANCELLED, JobState.SUCCEEDED}  # the request came when all was done
    ),
    JobState.CANCELLED: frozenset(),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
}

INTERRUPTED = frozenset({JobState.STARTING, JobState.RUNNING, JobState.RECOVERING})
"""States that say a server is at work on the job: after its death they go back to the queue."""

STOPPING = frozenset({JobState.PAUSING, JobState.CANCELLING})
"""States that say a trainer is about to leave: after a server's death it is waited for."""

PLACES = frozenset({JobState.QUEUED, JobState.PAUSING, JobState.PAUSED})
"""States in which a job takes one of the queue's places. A paused one does, for it comes back
without asking: else a client could queue, pause and queue again without end."""


def order(job: Job) -> tuple[float, str]:
    """What the queue is sorted by."""
    return submit_time(job.id) + job.priority * AGEING_SECONDS, job.id


def in_turn(queued: Iterable[Job]) -> list[Job]:
    """The jobs that wait, the next one first."""
    return sorted(queued, key=order)


def positions(queued: Iterable[Job]) -> dict[str, int]:
    """For each waiting job's id, how many will start before it."""
    return {job.id: place for place, job in enumerate(in_turn(queued))}
