import random

from nanogpt.config import TrainConfig
from server.jobs.job import Job, JobState
from server.jobs.queue import FOLLOWERS, INTERRUPTED, next_job, positions


def job(job_id: str) -> Job:
    return Job(job_id, f"model-{job_id}", "tiny", TrainConfig(), {}, 0.0)


def test_jobs_take_turns_in_the_order_of_submission() -> None:
    jobs = [job(job_id) for job_id in "abcdef"]
    waiting, order = random.Random(1).sample(jobs, len(jobs)), []
    while (found := next_job(waiting)) is not None:
        waiting.remove(found)
        order.append(found.id)
    assert order == list("abcdef")


def test_nothing_waits() -> None:
    assert next_job([]) is None
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


def test_what_a_dead_server_leaves_can_go_back_to_the_queue() -> None:
    assert all(JobState.QUEUED in FOLLOWERS[state] for state in INTERRUPTED)
