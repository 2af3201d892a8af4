"""The policy of the queue, with trainers that are scripted."""

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import (
    FakeLauncher,
    FakeTrainer,
    Script,
    checkpoint,
    crash,
    fails_with,
    for_ever,
    open_jobs,
    reached,
    record,
    started,
    starts_at,
    step,
    succeed,
    until_terminated,
)

from nanogpt.training.run_directory import ExitCode, RunDirectory
from server.errors import FailedPrecondition
from server.jobs import supervisor
from server.jobs.job import Job, JobReason, JobState, Standing
from server.jobs.publication import NameTaken
from server.jobs.service import JobService
from server.jobs.submission import Submission
from server.jobs.verdict import NOBODY_SAW
from server.metrics import Metrics

Open = Callable[..., Awaitable[JobService]]


@pytest.fixture
async def open_(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens services on one data folder; stops those that are left at the end."""
    opened: list[JobService] = []

    async def open_service(*scripts: Script, **options: object) -> JobService:
        jobs = await open_jobs(tmp_path, FakeLauncher(*scripts), **options)
        opened.append(jobs)
        return jobs

    yield open_service
    for jobs in opened:
        await jobs.drain(0)
        await jobs.close()


async def submit(jobs: JobService, **changes: object) -> str:
    return (await jobs.submit(Submission(dataset="tiny", **changes))).job.id


async def job(jobs: JobService, job_id: str) -> Job:
    return (await jobs.report(job_id)).job


async def history(jobs: JobService, job_id: str) -> str:
    return " ".join(standing.state for standing in await jobs._store.history(job_id))


def launcher(jobs: JobService) -> FakeLauncher:
    found = jobs._supervisor._launcher
    assert isinstance(found, FakeLauncher)
    return found


def leave_hung_trainer(jobs: JobService, job_id: str) -> None:
    """A process of a dead server holds the run until the launcher kills it."""
    lock = jobs._ledger.directory(job_id).lock()
    lock.__enter__()
    launcher(jobs).abandoned = lock


async def died(jobs: JobService) -> None:
    """Leaves the database as a server killed at this moment does."""
    supervisor = jobs._supervisor
    assert supervisor._task is not None
    tasks = [supervisor._task, *supervisor._tasks]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await jobs.close()
    jobs._supervisor._task = None
    jobs.close = jobs.drain = lambda *_: asyncio.sleep(0)  # type: ignore[method-assign, assignment]


async def test_a_job_runs_and_its_model_is_published(open_: Open, tmp_path: Path) -> None:
    jobs = await open_(succeed)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert await history(jobs, job_id) == "QUEUED STARTING RUNNING SUCCEEDED"
    assert (tmp_path / "models" / "tiny").is_dir()
    ended = await job(jobs, job_id)
    assert [attempt.exit_code for attempt in ended.attempts] == [0]
    assert ended.end_time is not None


async def test_jobs_run_one_after_the_other(open_: Open) -> None:
    running = most = 0

    async def script(trainer: FakeTrainer) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 0

    jobs = await open_(script)
    ids = [await submit(jobs) for _ in range(5)]
    assert [(await jobs.report(job_id)).queue_position for job_id in ids] == [0, 1, 2, 3, 4]
    jobs.start()
    assert await reached(jobs, ids[-1], JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert most == 1
    assert [trainer.run.path.name for trainer in launcher(jobs).trainers] == ids


@pytest.mark.parametrize("limit", [2, 3])
async def test_as_many_jobs_run_at_a_time_as_the_setting_says(open_: Open, limit: int) -> None:
    running = most = 0
    together = asyncio.Event()

    async def script(trainer: FakeTrainer) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == limit:
            together.set()
        await together.wait()
        await asyncio.sleep(0)
        running -= 1
        return 0

    jobs = await open_(script, max_running_jobs=limit)
    ids = [await submit(jobs) for _ in range(7)]
    jobs.start()
    for job_id in ids:
        assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert most == limit
    assert [trainer.run.path.name for trainer in launcher(jobs).trainers] == ids


async def test_speeds_of_jobs_that_run_together_add_up(open_: Open) -> None:
    metrics = Metrics()
    jobs = await open_(until_terminated, max_running_jobs=2, metrics=metrics)
    value = metrics.registry.get_sample_value
    ids = [await submit(jobs) for _ in range(2)]
    jobs.start()
    while value("nanogpt_train_tokens_per_second") != 2 * step(1).tokens_per_second:
        await asyncio.sleep(0.01)
    await jobs.cancel(ids[0])
    await reached(jobs, ids[0], JobState.CANCELLED)
    assert value("nanogpt_train_tokens_per_second") == step(1).tokens_per_second
    assert value("nanogpt_train_tokens_total") == 2 * step(1).tokens


async def test_the_lowest_priority_number_goes_first(open_: Open) -> None:
    jobs = await open_(succeed)
    late, first, second = [await submit(jobs, priority=number) for number in (100, -3, -3)]
    places = [(await jobs.report(job_id)).queue_position for job_id in (late, first, second)]
    assert places == [2, 0, 1]
    jobs.start()
    assert await reached(jobs, late, JobState.SUCCEEDED) is JobState.SUCCEEDED
    order = [trainer.run.path.name for trainer in launcher(jobs).trainers]
    assert order == [first, second, late]


async def test_a_queued_job_wakes_an_idle_server(open_: Open) -> None:
    jobs = await open_(succeed)
    jobs.start()
    await asyncio.sleep(0)
    for _ in range(2):
        job_id = await submit(jobs)
        assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_a_crashed_trainer_is_started_again(open_: Open) -> None:
    jobs = await open_(crash, crash, succeed)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    again = "STARTING RUNNING RECOVERING"
    assert await history(jobs, job_id) == f"QUEUED {again} {again} STARTING RUNNING SUCCEEDED"
    exit_codes = [attempt.exit_code for attempt in (await job(jobs, job_id)).attempts]
    assert exit_codes == [-11, -11, 0]


async def test_a_crash_loop_ends(open_: Open) -> None:
    line = "Traceback: RuntimeError: a bug"
    jobs = await open_(fails_with(1, line), succeed, max_crashes=0)
    failing, next_one = await submit(jobs), await submit(jobs)
    jobs.start()
    assert await reached(jobs, failing, JobState.FAILED) is JobState.FAILED
    standing = (await job(jobs, failing)).standing
    assert standing.reason is JobReason.CRASH_LOOP
    assert "exit code 1" in standing.error
    assert standing.error.endswith(f"its log ends with:\nsome output\n{line}")
    assert await reached(jobs, next_one, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_crashes_count_as_many_as_allowed(open_: Open) -> None:
    jobs = await open_(crash, max_crashes=2)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.FAILED) is JobState.FAILED
    assert len((await job(jobs, job_id)).attempts) == 3


async def test_a_job_that_gets_on_is_in_no_loop(open_: Open) -> None:
    def crash_after(number: int) -> Script:
        async def script(trainer: FakeTrainer) -> int:
            record(trainer.run, started(), step(number), checkpoint(number))
            return -9

        return script

    jobs = await open_(*(crash_after(number) for number in range(1, 6)), succeed, max_crashes=1)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert len((await job(jobs, job_id)).attempts) == 6


async def test_crashes_count_across_restarts_of_the_server(open_: Open) -> None:
    jobs = await open_(crash, first_backoff_seconds=60, max_crashes=1)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.RECOVERING) is JobState.RECOVERING
    await died(jobs)
    later = await open_(crash, max_crashes=1)
    later.start()
    assert await reached(later, job_id, JobState.FAILED) is JobState.FAILED
    assert (await job(later, job_id)).standing.reason is JobReason.CRASH_LOOP
    assert len((await job(later, job_id)).attempts) == 2


async def test_a_checkpoint_clears_the_crashes_before_it_across_restarts_too(open_: Open) -> None:
    async def get_on(trainer: FakeTrainer) -> int:
        record(trainer.run, started(), step(1), checkpoint(1))
        return await for_ever(trainer)

    jobs = await open_(crash, get_on, max_crashes=1)
    job_id = await submit(jobs)
    jobs.start()
    while (await jobs.report(job_id)).progress.checkpoint_step is None:
        await asyncio.sleep(0.01)
    await died(jobs)
    later = await open_(crash, succeed, max_crashes=1)
    later.start()
    assert await reached(later, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_stopping_the_server_is_no_crash_however_the_trainer_ends(open_: Open) -> None:
    jobs = await open_(for_ever)
    job_id = await submit(jobs)
    for _ in range(3):
        jobs.start()
        await reached(jobs, job_id, JobState.RUNNING)
        await jobs.drain(0)
        await jobs.close()
        jobs.close = jobs.drain = lambda *_: asyncio.sleep(0)  # type: ignore[method-assign, assignment]
        jobs = await open_(for_ever)
    later = await open_(crash, succeed, max_crashes=1)
    later.start()
    assert await reached(later, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    exit_codes = [attempt.exit_code for attempt in (await job(later, job_id)).attempts]
    assert exit_codes == [-9, -9, -9, -11, 0]


@pytest.mark.parametrize("name", ["trainer.lock", "log.txt"])
async def test_a_run_directory_that_cannot_be_used_fails_its_job_only(
    open_: Open, name: str
) -> None:
    async def work(trainer: FakeTrainer) -> int:
        return 1 if (trainer.run.path / name).is_dir() else 0  # as the real one

    jobs = await open_(work, max_crashes=1)
    broken, sound = await submit(jobs), await submit(jobs)
    (jobs._ledger.directory(broken).path / name).mkdir()
    jobs.start()
    assert await reached(jobs, sound, JobState.SUCCEEDED) is JobState.SUCCEEDED
    standing = (await job(jobs, broken)).standing
    assert (standing.state, standing.reason) == (JobState.FAILED, JobReason.CRASH_LOOP)


async def test_a_trainer_that_cannot_be_started_is_a_crash(open_: Open, tmp_path: Path) -> None:
    jobs = await open_(succeed, max_crashes=1)

    async def fail(run: RunDirectory) -> FakeTrainer:
        raise FileNotFoundError(run.path)

    launcher(jobs).start = fail  # type: ignore[method-assign]
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.FAILED) is JobState.FAILED
    standing = (await job(jobs, job_id)).standing
    assert standing.reason is JobReason.CRASH_LOOP
    assert str(tmp_path) not in standing.error


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (ExitCode.BAD_CONFIG, JobReason.BAD_CONFIG),
        (ExitCode.BAD_DATASET, JobReason.BAD_DATASET),
        (ExitCode.DIVERGED, JobReason.DIVERGED),
        (ExitCode.OUT_OF_MEMORY, JobReason.OUT_OF_MEMORY),
    ],
)
async def test_a_failure_has_its_reason_and_the_trainers_words(
    open_: Open, exit_code: int, reason: JobReason
) -> None:
    jobs = await open_(fails_with(exit_code, "error: try something else"))
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.FAILED) is JobState.FAILED
    standing = (await job(jobs, job_id)).standing
    assert (standing.reason, standing.error) == (reason, "try something else")


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (ExitCode.EARLY_STOPPED, JobReason.EARLY_STOPPED),
        (ExitCode.LIMIT_REACHED, JobReason.LIMIT_REACHED),
    ],
)
async def test_a_run_that_ends_early_has_a_model_and_a_reason(
    open_: Open, tmp_path: Path, exit_code: int, reason: JobReason
) -> None:
    jobs = await open_(fails_with(exit_code, "nothing left to do"))
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert (await job(jobs, job_id)).standing.reason is reason
    assert (tmp_path / "models" / "tiny").is_dir()


async def test_words_of_an_earlier_attempt_are_not_repeated(open_: Open) -> None:
    jobs = await open_(fails_with(1, "error: old words"), crash, max_crashes=1)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.FAILED) is JobState.FAILED
    assert "old words" not in (await job(jobs, job_id)).standing.error


async def test_a_queued_job_is_cancelled_at_once(open_: Open) -> None:
    jobs = await open_(until_terminated)
    first, second = await submit(jobs), await submit(jobs)
    jobs.start()
    assert await reached(jobs, first, JobState.RUNNING) is JobState.RUNNING
    cancelled = (await jobs.cancel(second)).job
    assert cancelled.standing.state is JobState.CANCELLED
    assert cancelled.standing.reason is JobReason.REQUESTED
    assert await history(jobs, second) == "QUEUED CANCELLED"
    assert (await job(jobs, first)).state is JobState.RUNNING


async def test_a_running_job_is_cancelled_with_a_checkpoint(open_: Open, tmp_path: Path) -> None:
    jobs = await open_(until_terminated)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.RUNNING) is JobState.RUNNING
    assert (await jobs.cancel(job_id)).job.state is JobState.CANCELLING
    assert (await jobs.cancel(job_id)).job.state in (JobState.CANCELLING, JobState.CANCELLED)
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED
    report = await jobs.report(job_id)
    assert report.progress.checkpoint_step == 1
    assert not (tmp_path / "models" / "tiny").exists()
    assert (await jobs.cancel(job_id)).job == report.job  # an ended job stays as it is


async def test_a_recovering_job_is_cancelled_at_once(open_: Open) -> None:
    jobs = await open_(crash, succeed, first_backoff_seconds=60)
    first, second = await submit(jobs), await submit(jobs)
    jobs.start()
    assert await reached(jobs, first, JobState.RECOVERING) is JobState.RECOVERING
    assert (await jobs.cancel(first)).job.state is JobState.CANCELLED
    assert await reached(jobs, second, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_whatever_a_cancelled_trainer_does_its_job_is_cancelled(open_: Open) -> None:
    async def die(trainer: FakeTrainer) -> int:
        await trainer.terminated.wait()
        return -15  # SIGTERM came before it listened

    jobs = await open_(die)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.cancel(job_id)
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED


async def test_a_paused_job_frees_the_device_and_keeps_its_place(open_: Open) -> None:
    jobs = await open_(starts_at(0, until_terminated), until_terminated, starts_at(1, succeed))
    first, second, third = [await submit(jobs) for _ in range(3)]
    jobs.start()
    await reached(jobs, first, JobState.RUNNING)
    assert (await jobs.pause(first)).job.standing.state is JobState.PAUSING
    assert (await jobs.pause(first)).job.state in (JobState.PAUSING, JobState.PAUSED)
    await reached(jobs, first, JobState.PAUSED)
    report = await jobs.report(first)
    assert report.job.standing.reason is JobReason.REQUESTED
    assert report.progress.checkpoint_step == 1
    assert report.queue_position is None
    await reached(jobs, second, JobState.RUNNING)
    resumed = await jobs.resume(first)
    assert (resumed.job.state, resumed.queue_position) == (JobState.QUEUED, 0)
    assert (await jobs.resume(first)).job.state is JobState.QUEUED
    await jobs.cancel(second)
    assert await reached(jobs, third, JobState.SUCCEEDED) is JobState.SUCCEEDED
    order = [trainer.run.path.name for trainer in launcher(jobs).trainers]
    assert order == [first, second, first, third]
    before = "QUEUED STARTING RUNNING PAUSING PAUSED"
    assert await history(jobs, first) == f"{before} QUEUED STARTING RUNNING SUCCEEDED"
    attempts = (await job(jobs, first)).attempts
    assert [(a.exit_code, a.first_step) for a in attempts] == [(75, 0), (0, 1)]
    assert [a.ending for a in attempts] == [
        "saved its work and left, as it was asked to",
        "did all its steps",
    ]


async def test_jobs_that_wait_are_paused_at_once(open_: Open) -> None:
    jobs = await open_(crash, until_terminated, first_backoff_seconds=60)
    recovering, queued = await submit(jobs), await submit(jobs)
    jobs.start()
    await reached(jobs, recovering, JobState.RECOVERING)
    for job_id in (queued, recovering):
        assert (await jobs.pause(job_id)).job.state is JobState.PAUSED
    await jobs.resume(recovering)
    await reached(jobs, recovering, JobState.RUNNING)
    assert (await jobs.cancel(queued)).job.state is JobState.CANCELLED


async def test_what_cannot_be_paused_or_resumed_says_why(open_: Open) -> None:
    jobs = await open_(for_ever)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    assert (await jobs.resume(job_id)).job.state is JobState.RUNNING
    await jobs.pause(job_id)
    with pytest.raises(FailedPrecondition, match="is pausing and cannot be resumed"):
        await jobs.resume(job_id)
    assert (await jobs.cancel(job_id)).job.state is JobState.CANCELLING
    for wish, word in ((jobs.pause, "paused"), (jobs.resume, "resumed")):
        with pytest.raises(FailedPrecondition, match=f"is cancelling and cannot be {word}"):
            await wish(job_id)
    launcher(jobs).trainers[0].kill()
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED
    with pytest.raises(FailedPrecondition, match="is cancelled and cannot be paused"):
        await jobs.pause(job_id)


async def test_a_trainer_that_crashes_while_pausing_is_paused_all_the_same(open_: Open) -> None:
    async def die(trainer: FakeTrainer) -> int:
        await trainer.terminated.wait()
        return -15

    jobs = await open_(die, succeed, max_crashes=1)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.pause(job_id)
    assert await reached(jobs, job_id, JobState.PAUSED) is JobState.PAUSED
    await jobs.resume(job_id)
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_a_job_that_was_done_when_it_was_asked_to_pause_is_a_success(open_: Open) -> None:
    async def finish(trainer: FakeTrainer) -> int:
        await trainer.terminated.wait()
        return 0

    jobs = await open_(finish)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.pause(job_id)
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_a_pause_survives_the_server(open_: Open) -> None:
    jobs = await open_(for_ever)
    pausing, paused = await submit(jobs), await submit(jobs)
    jobs.start()
    await reached(jobs, pausing, JobState.RUNNING)
    await jobs.pause(pausing)
    await jobs.pause(paused)
    await died(jobs)
    later = await open_(succeed)
    later.start()
    assert await reached(later, pausing, JobState.PAUSED) is JobState.PAUSED
    assert (await job(later, paused)).state is JobState.PAUSED
    assert not launcher(later).trainers
    assert (await job(later, pausing)).attempts[0].ending == NOBODY_SAW
    await later.resume(pausing)
    assert await reached(later, pausing, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_a_stopping_server_leaves_a_pausing_job_paused(open_: Open) -> None:
    jobs = await open_(until_terminated)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.pause(job_id)
    await jobs.drain(30)
    assert (await job(jobs, job_id)).state is JobState.PAUSED


async def test_a_hung_trainer_of_a_dead_server_is_killed_in_the_end(open_: Open) -> None:
    jobs = await open_(succeed, abandoned_seconds=0.05)
    job_id = await submit(jobs)
    leave_hung_trainer(jobs, job_id)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert await history(jobs, job_id) == "QUEUED STARTING RUNNING SUCCEEDED"


async def test_cancelling_does_not_leave_a_hung_trainer_of_a_dead_server(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.05)
    jobs = await open_(succeed)
    job_id = await submit(jobs)
    leave_hung_trainer(jobs, job_id)
    jobs.start()
    await reached(jobs, job_id, JobState.STARTING)
    await jobs.cancel(job_id)
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED
    with jobs._ledger.directory(job_id).lock():  # it is free
        pass


async def test_a_pause_that_has_to_kill_is_no_crash(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.05)
    jobs = await open_(for_ever, max_crashes=0)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.pause(job_id)
    assert await reached(jobs, job_id, JobState.PAUSED) is JobState.PAUSED
    assert (await job(jobs, job_id)).standing.reason is JobReason.REQUESTED


async def test_a_job_that_is_paused_and_resumed_before_it_starts_gets_another_turn(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await open_(succeed)
    job_id = await submit(jobs)
    count, wishes = jobs._store.crashes_since, [jobs.pause, jobs.resume]

    async def wish_and_count(*arguments: Any) -> int:
        while wishes:
            await wishes.pop(0)(job_id)
        return await count(*arguments)

    monkeypatch.setattr(jobs._store, "crashes_since", wish_and_count)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert await history(jobs, job_id) == "QUEUED PAUSED QUEUED STARTING RUNNING SUCCEEDED"


async def test_a_trainer_that_meets_that_of_a_dead_server_costs_no_crash(open_: Open) -> None:
    """That one was started but had no lock yet when its server died and the next one looked."""

    async def late(trainer: FakeTrainer) -> int:
        return ExitCode.BUSY

    jobs = await open_(late, late, succeed, max_crashes=0)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert [attempt.exit_code for attempt in (await job(jobs, job_id)).attempts] == [73, 73, 0]


async def test_a_run_that_a_stranger_holds_fails_and_lets_the_next_one_run(open_: Open) -> None:
    jobs = await open_(succeed, abandoned_seconds=0.05, max_crashes=1)
    held, free = await submit(jobs), await submit(jobs)
    with jobs._ledger.directory(held).lock():
        jobs.start()
        assert await reached(jobs, free, JobState.SUCCEEDED) is JobState.SUCCEEDED
    failed = await job(jobs, held)
    assert failed.standing.reason is JobReason.CRASH_LOOP
    assert [attempt.ending for attempt in failed.attempts] == [
        "another process held its run directory"
    ] * 2


async def test_a_stopping_server_keeps_the_job_and_its_place(open_: Open) -> None:
    jobs = await open_(until_terminated)
    first, second = await submit(jobs), await submit(jobs)
    jobs.start()
    await reached(jobs, first, JobState.RUNNING)
    await jobs.drain(30)
    kept = await job(jobs, first)
    assert kept.standing.state is JobState.QUEUED
    assert kept.standing.reason is JobReason.SERVER_RESTART
    assert [attempt.exit_code for attempt in kept.attempts] == [75]
    await jobs.close()
    jobs.close = jobs.drain = lambda *_: asyncio.sleep(0)  # type: ignore[method-assign, assignment]

    later = await open_(succeed, max_crashes=0)
    later.start()
    assert await reached(later, second, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert [trainer.run.path.name for trainer in launcher(later).trainers] == [first, second]
    assert (await job(later, first)).state is JobState.SUCCEEDED


async def test_a_trainer_that_does_not_listen_is_killed(open_: Open) -> None:
    jobs = await open_(for_ever)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.drain(0)
    kept = await job(jobs, job_id)
    assert kept.state is JobState.QUEUED
    assert [attempt.exit_code for attempt in kept.attempts] == [-9]


async def test_a_job_that_a_dead_server_ran_goes_on(open_: Open) -> None:
    jobs = await open_(until_terminated)
    first, second = await submit(jobs), await submit(jobs)
    jobs.start()
    await reached(jobs, first, JobState.RUNNING)
    await died(jobs)

    later = await open_(succeed, max_crashes=0)
    later.start()
    assert await reached(later, second, JobState.SUCCEEDED) is JobState.SUCCEEDED
    resumed = await job(later, first)
    assert resumed.state is JobState.SUCCEEDED
    assert [attempt.exit_code for attempt in resumed.attempts] == [None, 0]
    assert resumed.attempts[0].end_time is not None
    assert [trainer.run.path.name for trainer in launcher(later).trainers] == [first, second]


async def test_a_job_waits_for_the_trainer_of_a_dead_server(open_: Open) -> None:
    jobs = await open_(succeed)
    job_id = await submit(jobs)
    run = jobs._ledger.directory(job_id)
    async with jobs.follow(job_id, 1) as subscription:
        assert isinstance(await subscription.next(30), Standing)
        with run.lock():
            jobs.start()
            await reached(jobs, job_id, JobState.STARTING)
            record(run, started())  # the old trainer still writes: followers see it
            news: object = None
            while not isinstance(news, list):
                news = await subscription.next(30)
            assert [event.sequence for event in news] == [1]
            assert not launcher(jobs).trainers
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert len(launcher(jobs).trainers) == 1


async def test_a_job_that_waits_for_an_old_trainer_can_be_cancelled(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as long as its own trainer would have had, since this one is not ours to kill."""
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.05)
    jobs = await open_(succeed)
    job_id = await submit(jobs)
    with jobs._ledger.directory(job_id).lock():
        jobs.start()
        await reached(jobs, job_id, JobState.STARTING)
        await jobs.cancel(job_id)
        assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED
    assert not launcher(jobs).trainers


async def test_a_cancellation_survives_the_server(open_: Open) -> None:
    jobs = await open_(for_ever)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    await jobs.cancel(job_id)
    await died(jobs)
    later = await open_(succeed)
    later.start()
    assert await reached(later, job_id, JobState.CANCELLED) is JobState.CANCELLED
    assert not launcher(later).trainers


async def test_a_publication_that_the_server_died_in_is_made_up_for(
    open_: Open, tmp_path: Path
) -> None:
    publishing = asyncio.Event()
    loop = asyncio.get_running_loop()

    def die(run: RunDirectory, job_id: str, model_folder: Path) -> None:
        loop.call_soon_threadsafe(publishing.set)
        raise OSError("the power went")

    jobs = await open_(succeed, publish=die, first_backoff_seconds=60)
    job_id = await submit(jobs)
    jobs.start()
    await publishing.wait()
    await died(jobs)
    assert not (tmp_path / "models" / "tiny").exists()

    later = await open_(crash)  # no trainer is needed any more
    later.start()
    assert await reached(later, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert not launcher(later).trainers
    assert (tmp_path / "models" / "tiny").is_dir()


async def test_a_name_taken_meanwhile_fails_the_job_and_keeps_its_weights(open_: Open) -> None:
    def taken(run: RunDirectory, job_id: str, model_folder: Path) -> None:
        raise NameTaken

    jobs = await open_(succeed, publish=taken)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.FAILED) is JobState.FAILED
    assert f"job:{job_id}" in (await job(jobs, job_id)).standing.error


async def test_a_model_that_cannot_be_written_is_tried_again(open_: Open) -> None:
    failures = 2

    def publish(run: RunDirectory, job_id: str, model_folder: Path) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device", str(model_folder))

    jobs = await open_(succeed, publish=publish, max_crashes=2)
    job_id = await submit(jobs)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert await history(jobs, job_id) == "QUEUED STARTING RUNNING SUCCEEDED"
    assert len(launcher(jobs).trainers) == 1


def cannot_be_written(run: RunDirectory, job_id: str, model_folder: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(model_folder))


async def test_a_model_that_can_never_be_written_fails_its_job_only(
    open_: Open, tmp_path: Path
) -> None:
    jobs = await open_(succeed, publish=cannot_be_written, max_crashes=2)
    first, second = await submit(jobs), await submit(jobs)
    jobs.start()
    assert await reached(jobs, second, JobState.FAILED) is JobState.FAILED
    standing = (await job(jobs, first)).standing
    assert standing.state is JobState.FAILED
    assert "Read-only file system" in standing.error
    assert f"job:{first}" in standing.error
    assert str(tmp_path) not in standing.error


async def test_a_publication_that_is_tried_again_can_be_cancelled(open_: Open) -> None:
    jobs = await open_(succeed, publish=cannot_be_written, first_backoff_seconds=60)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    while not (await job(jobs, job_id)).attempts[0].end_time:
        await asyncio.sleep(0.01)
    await jobs.cancel(job_id)
    assert await reached(jobs, job_id, JobState.CANCELLED) is JobState.CANCELLED


async def test_a_publication_that_is_tried_again_survives_the_server(open_: Open) -> None:
    jobs = await open_(succeed, publish=cannot_be_written, first_backoff_seconds=60)
    job_id = await submit(jobs)
    jobs.start()
    await reached(jobs, job_id, JobState.RUNNING)
    while not (await job(jobs, job_id)).attempts[0].end_time:
        await asyncio.sleep(0.01)
    await jobs.drain(30)
    assert (await job(jobs, job_id)).state is JobState.QUEUED
    await jobs.close()
    jobs.close = jobs.drain = lambda *_: asyncio.sleep(0)  # type: ignore[method-assign, assignment]
    later = await open_(crash)  # no trainer is needed any more
    later.start()
    assert await reached(later, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED


async def test_a_full_disk_pauses_the_queue_and_no_more(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await open_(succeed)
    job_id, begin = await submit(jobs), jobs._store.begin_attempt
    failures = 2

    async def no_space(job_id: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        await begin(job_id)

    monkeypatch.setattr(jobs._store, "begin_attempt", no_space)
    jobs.start()
    assert await reached(jobs, job_id, JobState.SUCCEEDED) is JobState.SUCCEEDED
    assert failures == 0


async def test_a_damaged_record_fails_its_job_only(open_: Open) -> None:
    async def scribble(trainer: FakeTrainer) -> int:
        trainer.run.metrics_path.write_text("this is no event\n")
        return 0

    jobs = await open_(scribble, succeed)
    damaged, sound = await submit(jobs), await submit(jobs)
    jobs.start()
    assert await reached(jobs, sound, JobState.SUCCEEDED) is JobState.SUCCEEDED
    standing = (await job(jobs, damaged)).standing
    assert standing.state is JobState.FAILED
    assert "damaged" in standing.error
    listed, _ = await jobs.page(10, None)
    assert [report.job.id for report in listed] == [sound, damaged]
    assert (await jobs.cancel(damaged)).job.standing == standing


async def test_metrics_count_each_step_once_across_restarts(open_: Open) -> None:
    def run_to(number: int, exit_code: int) -> Script:
        async def script(trainer: FakeTrainer) -> int:
            record(trainer.run, started(), *(step(i) for i in range(1, number + 1)))
            if exit_code == 75:
                await trainer.terminated.wait()
            return exit_code

        return script

    first = Metrics()
    jobs = await open_(run_to(3, -9), run_to(5, 75), metrics=first)
    job_id = await submit(jobs)
    jobs.start()
    async with jobs.follow(job_id, 6) as subscription:
        while not isinstance(await subscription.next(30), list):
            pass  # event 6 is step 5
    value = first.registry.get_sample_value
    assert value("nanogpt_train_steps_total") == 5
    assert value("nanogpt_train_tokens_total") == 5 * 64
    assert value("nanogpt_train_step_seconds_count") == 5
    assert value("nanogpt_train_loss") == step(5).loss
    assert value("nanogpt_train_jobs", {"state": "running"}) == 1
    await died(jobs)

    second = Metrics()
    later = await open_(run_to(9, 0), metrics=second)
    later.start()
    await reached(later, job_id, JobState.SUCCEEDED)
    value = second.registry.get_sample_value
    assert value("nanogpt_train_steps_total") == 4  # 6 to 9
    assert value("nanogpt_train_tokens_total") == 4 * 64
    assert value("nanogpt_train_jobs", {"state": "succeeded"}) == 1
    assert value("nanogpt_train_queue_depth") == 0
    assert value("nanogpt_train_job_duration_seconds_count", {"outcome": "succeeded"}) == 1
    assert str(value("nanogpt_train_tokens_per_second")) == "nan"


async def test_followers_see_every_event_once_across_crashes(open_: Open) -> None:
    def run_to(number: int, exit_code: int) -> Script:
        async def script(trainer: FakeTrainer) -> int:
            for i in range(number + 1):  # a resumed run offers its first events again
                record(trainer.run, step(i) if i else started())
                await asyncio.sleep(0)
            return exit_code

        return script

    jobs = await open_(run_to(4, -9), run_to(9, 1), run_to(12, 0))
    job_id, said = await submit(jobs), []
    async with jobs.follow(job_id, 1) as subscription:
        jobs.start()
        while (news := await subscription.next(30)) is not None:
            said += [str(news.state)] if isinstance(news, Standing) else [e.sequence for e in news]
    assert [number for number in said if isinstance(number, int)] == list(range(1, 14))
    assert said[0] == "QUEUED"
    assert said[-1] == "SUCCEEDED"
    assert said.index("RECOVERING") > said.index(5)  # what was recorded before it comes before it
