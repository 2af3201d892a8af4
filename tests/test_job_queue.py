import random

from nanogpt.config import TrainConfig
from server.jobs.job import Job, JobState
from server.jobs.queue import AGEING_SECONDS, FOLLOWERS, INTERRUPTED, in_turn, positions


def job(job_id: str, priority: int = 0) -> Job:
    return Job(job_id, f"model-{job_id}", "tiny", TrainConfig(), {}, 0.0, priority)


def submitted(seconds: float, priority: int = 0) -> Job:
    return job(f"{round(seconds * 1000):012x}00000000", priority)


def test_jobs_take_turns_in_the_order_of_submission() -> None:
    jobs = [job(job_id) for job_id in "abcdef"]
    waiting = random.Random(1).sample(jobs, len(jobs))
    assert [found.id for found in in_turn(waiting)] == list("abcdef")


def test_a_lower_number_goes_first_and_equals_in_the_order_of_submission() -> None:
    jobs = [submitted(i, priority) for i, priority in enumerate([0, 5, -5, 0, 5, -5, 100, -100])]
    waiting = random.Random(2).sample(jobs, len(jobs))
    assert in_turn(waiting) == [jobs[i] for i in (7, 2, 5, 0, 3, 1, 4, 6)]


def test_waiting_makes_up_for_a_priority() -> None:
    old = submitted(1000.0, priority=2)
    just_before, just_after = (submitted(1000 + 2 * AGEING_SECONDS + d) for d in (-1, 1))
    assert in_turn([just_after, old, just_before]) == [just_before, old, just_after]
    assert positions([just_after, old]) == {old.id: 0, just_after.id: 1}


def test_nobody_waits_for_ever() -> None:
    """The lowest priority stands before every job that is submitted two days later."""
    last = submitted(0, priority=100)
    later = [submitted(200 * AGEING_SECONDS + i, priority=-100) for i in range(1, 50)]
    assert in_turn([*later, last])[0] is last


def test_nothing_waits() -> None:
    assert in_turn([]) == []
    assert positions([]) == {}


def test_a_position_is_the_number_of_jobs_before() -> None:
    assert positions([job("c"), job("a"), job("b")]) == {"a": 0, "b": 1, "c": 2}


def test_every_state_has_followers_but_the_final_ones() -> None:
    assert FOLLOWERS.keys() == set(JobState)
    assert {state for state in JobState if not FOLLOWERS[state]} == {
        state for state in JobState if state.is_final
    }


def test_every_state_can_be_reached_and_can_end() -> None:
    def reachable(state: JobState) -> set[JobState]:
        found, new = set(), {state}
        while new:
            found |= new
            new = {follower for old in new for follower in FOLLOWERS[old]} - found
        return found

    assert reachable(JobState.QUEUED) == set(JobState)
    for state in JobState:
        assert any(follower.is_final for follower in reachable(state))


def test_an_unfinished_job_can_always_be_stopped_by_its_caller() -> None:
    for state in JobState:
        if not state.is_final:
            stopped = {JobState.CANCELLED, JobState.CANCELLING} & FOLLOWERS[state]
            assert stopped, state


def test_a_paused_job_keeps_its_place() -> None:
    assert FOLLOWERS[JobState.PAUSED] == {JobState.QUEUED, JobState.CANCELLED}
    for state in (JobState.QUEUED, JobState.RECOVERING):
        assert JobState.PAUSED in FOLLOWERS[state]
    for state in (JobState.STARTING, JobState.RUNNING):
        assert JobState.PAUSING in FOLLOWERS[state]


def test_what_a_dead_server_leaves_can_go_back_to_the_queue() -> None:
    assert all(JobState.QUEUED in FOLLOWERS[state] for state in INTERRUPTED)
