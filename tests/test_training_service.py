"""TrainingService over gRPC: first with scripted trainers, then with real ones, killed and all."""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from fake_trainer import (
    TINY,
    FakeLauncher,
    FakeTrainer,
    checkpoint,
    evaluation,
    fails_with,
    make_dataset,
    open_jobs,
    reached,
    record,
    started,
    step,
    succeed,
    until_terminated,
)
from google.rpc import error_details_pb2, status_pb2

from nanogpt.checkpoint import load_model, read_meta
from nanogpt.checkpoint_folder import list_checkpoints
from nanogpt.training.events import Divergence, Evaluation, Event, EventReader, Sample
from nanogpt.training.run_directory import ExitCode
from protos.nanogpt.v1 import training_pb2 as pb
from protos.nanogpt.v1 import training_pb2_grpc as pb_grpc
from server.gate import Gate
from server.interceptors import interceptor_chain
from server.jobs import service as service_module
from server.jobs import tail as tail_module
from server.jobs.job import JobState
from server.jobs.launcher import LocalLauncher, LocalTrainer
from server.jobs.publication import publish_best
from server.jobs.service import JobService
from server.jobs.submission import Submission
from server.metrics import Metrics
from server.models.monitor import ServingMonitor
from server.services import training as training_service
from server.services.training import TrainingService

Code = grpc.StatusCode


class Server:
    """A JobService behind gRPC."""

    def __init__(self, jobs: JobService, address: str, stub: pb_grpc.TrainingServiceStub) -> None:
        self.jobs = jobs
        self.address = address
        self.stub = stub

    async def train(self, **values: Any) -> pb.Job:
        config = pb.TrainConfig(**values.pop("config", TINY))
        response = await self.stub.Train(
            pb.TrainRequest(**{"dataset": "tiny", **values}, config=config)
        )
        return response.job

    async def job(self, job_id: str) -> pb.Job:
        return (await self.stub.GetJob(pb.GetJobRequest(id=job_id))).job

    def follow(self, job_id: str, start: int = 0) -> Any:
        request = pb.StreamMetricsRequest(job_id=job_id, start_sequence=start)
        return self.stub.StreamMetrics(request)


Serve = Callable[..., Awaitable[Server]]


@asynccontextmanager
async def serving(
    data_dir: Path, launcher: Any, heartbeat_seconds: float = 15, **options: Any
) -> AsyncIterator[Server]:
    jobs = await open_jobs(data_dir, launcher, **options)
    server = grpc.aio.server(interceptors=interceptor_chain(Metrics(), Gate(), 60))
    pb_grpc.add_TrainingServiceServicer_to_server(
        TrainingService(jobs, ServingMonitor(lambda: []), heartbeat_seconds), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    jobs.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(jobs, f"127.0.0.1:{port}", pb_grpc.TrainingServiceStub(channel))
    finally:
        await jobs.drain(30)
        await server.stop(0)
        await jobs.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Trainers that work until they are told to stop."""
    async with serving(tmp_path, FakeLauncher(until_terminated)) as server:
        yield server


async def refused(call: Any) -> tuple[Code, str, set[str]]:
    """Code, message and violated fields of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    fields = set()
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields = {violation.field for violation in bad.field_violations}
    return error.code(), error.details() or "", fields


async def collect(stream: Any) -> list[pb.StreamMetricsResponse]:
    said = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        said.append(response)
    return said


def sequences(responses: Iterable[pb.StreamMetricsResponse]) -> list[int]:
    return [response.sequence for response in responses if response.HasField("sequence")]


def states(responses: Iterable[pb.StreamMetricsResponse]) -> list[str]:
    return [
        pb.Job.State.Name(response.state_change.state).removeprefix("STATE_")
        for response in responses
        if response.HasField("state_change")
    ]


async def test_train_answers_with_the_whole_job(server: Server) -> None:
    job = await server.train(model="mine", config={"n_layer": 3, "seed": (1 << 64) - 1})
    assert (job.model, job.dataset, job.state) == ("mine", "tiny", pb.Job.STATE_QUEUED)
    assert job.queue_position == 0
    assert job.HasField("create_time")
    assert not job.HasField("start_time")
    scalars = job.config_origin.keys() - {"sample_prompts"}
    assert all(job.config.HasField(name) for name in scalars)
    assert len(job.config_origin) == len(pb.TrainConfig.DESCRIPTOR.fields)
    assert (job.config.n_layer, job.config.n_head, job.config.seed) == (3, 6, (1 << 64) - 1)
    assert (job.config_origin["n_layer"], job.config_origin["n_head"]) == ("request", "default")


async def test_zero_and_false_are_values(server: Server) -> None:
    job = await server.train(config={"decay_lr": False, "dropout": 0.0, "seed": 0})
    assert not job.config.decay_lr
    assert {job.config_origin[name] for name in ("decay_lr", "dropout", "seed")} == {"request"}


@pytest.mark.parametrize(
    ("sent", "meant"), [("True", "on"), ("false", "off"), ("TRUE", "on"), ("auto", "auto")]
)
async def test_compile_may_be_a_boolean(server: Server, sent: str, meant: str) -> None:
    assert (await server.train(config={"compile": sent})).config.compile == meant


async def test_all_faults_are_answered_at_once(server: Server) -> None:
    call = server.train(
        model="../etc", dataset="", request_id="x" * 200, config={"n_layer": -1, "compile": "maybe"}
    )
    code, _, fields = await refused(call)
    assert code is Code.INVALID_ARGUMENT
    assert fields == {"model", "dataset", "request_id", "config.n_layer", "config.compile"}


async def test_a_dataset_that_is_not_there(server: Server) -> None:
    code, message, _ = await refused(server.train(dataset="nowhere"))
    assert (code, "nowhere" in message) == (Code.NOT_FOUND, True)


async def test_nothing_is_left_of_a_refused_job(server: Server, tmp_path: Path) -> None:
    await refused(server.train(dataset="nowhere"))
    assert not list((tmp_path / "runs").iterdir())
    assert not (await server.stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_an_accepted_job_has_its_run_directory(server: Server, tmp_path: Path) -> None:
    job = await server.train()
    spec = json.loads((tmp_path / "runs" / job.id / "spec.json").read_text())
    assert (spec["job_id"], spec["model"], spec["dataset_dir"]) == (
        job.id,
        "tiny",
        "../../datasets/tiny",
    )
    assert spec["config"]["n_embd"] == 32


async def test_names_are_taken_by_models_and_by_unfinished_jobs(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "models" / "old").mkdir(parents=True)
    assert (await refused(server.train(model="old")))[0] is Code.ALREADY_EXISTS
    job = await server.train(model="new")
    assert (await refused(server.train(model="new")))[0] is Code.ALREADY_EXISTS
    await server.stub.CancelJob(pb.CancelJobRequest(id=job.id))
    await reached(server.jobs, job.id, JobState.CANCELLED)
    assert (await server.train(model="new")).model == "new"


async def test_a_name_left_open_is_a_free_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny-2").mkdir(parents=True)
    names = [(await server.train()).model for _ in range(3)]
    assert names == ["tiny", "tiny-3", "tiny-4"]


async def test_fifty_calls_with_one_request_id_make_one_job(server: Server) -> None:
    calls = [server.train(request_id="once") for _ in range(50)]
    assert len({job.id for job in await asyncio.gather(*calls)}) == 1
    assert len((await server.stub.ListJobs(pb.ListJobsRequest())).jobs) == 1


async def test_fifty_calls_without_one_make_fifty_jobs(server: Server) -> None:
    jobs = await asyncio.gather(*(server.train() for _ in range(50)))
    assert len({job.id for job in jobs}) == len({job.model for job in jobs}) == 50


async def test_a_repeated_call_is_answered_whatever_has_changed(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeLauncher(succeed), max_queued_jobs=1) as server:
        first = await server.train(model="m", request_id="once")
        await reached(server.jobs, first.id, JobState.SUCCEEDED)
        again = await server.train(model="m", request_id="once")
        assert (again.id, again.state) == (first.id, pb.Job.STATE_SUCCEEDED)
        code, message, _ = await refused(server.train(model="other", request_id="once"))
        assert (code, "once" in message) == (Code.ALREADY_EXISTS, True)


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeLauncher(until_terminated), max_queued_jobs=1) as server:
        running = await server.train()
        await reached(server.jobs, running.id, JobState.RUNNING)
        waiting = await server.train(request_id="waiting")
        code, message, _ = await refused(server.train())
        assert (code, "1 jobs wait or are paused" in message) == (Code.RESOURCE_EXHAUSTED, True)
        assert (await server.train(request_id="waiting")).id == waiting.id


async def test_paused_jobs_keep_their_places_in_a_full_queue(tmp_path: Path) -> None:
    """Or a client that pauses what it queued could queue without end."""
    async with serving(tmp_path, FakeLauncher(until_terminated), max_queued_jobs=2) as server:
        running = await server.train()
        await reached(server.jobs, running.id, JobState.RUNNING)
        waiting = [(await server.train()).id for _ in range(2)]
        for job_id in waiting:
            await server.stub.PauseJob(pb.PauseJobRequest(id=job_id))
        code, message, _ = await refused(server.train())
        assert (code, "2 jobs wait or are paused" in message) == (Code.RESOURCE_EXHAUSTED, True)
        # coming back takes no place that was not its own: it is never refused
        await server.stub.ResumeJob(pb.ResumeJobRequest(id=waiting[0]))
        await server.stub.CancelJob(pb.CancelJobRequest(id=waiting[1]))
        assert (await server.train()).queue_position == 1


async def test_a_caller_that_goes_away_leaves_a_whole_job(server: Server) -> None:
    submission = Submission(dataset="tiny", config=TINY)
    call = asyncio.ensure_future(server.jobs.submit(submission))
    await asyncio.sleep(0)  # it has begun
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    while not (found := await server.jobs.page(1, None))[0]:
        await asyncio.sleep(0.01)
    assert await reached(server.jobs, found[0][0].job.id, JobState.RUNNING) is JobState.RUNNING


async def test_a_draining_server_refuses_and_sends_followers_away(server: Server) -> None:
    job = await server.train()
    await reached(server.jobs, job.id, JobState.RUNNING)
    stream = server.follow(job.id)
    assert states([await stream.read()]) == ["RUNNING"]
    await server.jobs.drain(30)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        said = [await stream.read()]
        while True:
            said.append(await stream.read())
    assert error.value.code() is Code.UNAVAILABLE
    assert states(said) == ["QUEUED"]  # it goes on with the next server
    assert sequences(said) == [1, 2, 3]
    assert (await refused(server.train()))[0] is Code.UNAVAILABLE
    assert (await refused(server.follow(job.id).read()))[0] is Code.UNAVAILABLE
    assert (await server.job(job.id)).reason == pb.Job.REASON_SERVER_RESTART


async def test_get_job_tells_all_that_is_known(tmp_path: Path) -> None:
    async def script(trainer: FakeTrainer) -> int:
        record(trainer.run, started(), evaluation(0, 4.5), step(1), step(2), evaluation(2, 3.5))
        return await until_terminated(trainer)

    async with serving(tmp_path, FakeLauncher(script)) as server:
        job_id = (await server.train()).id
        async with server.jobs.follow(job_id, 5) as subscription:
            while not isinstance(await subscription.next(30), list):
                pass
        job = await server.job(job_id)
        assert (job.state, job.step) == (pb.Job.STATE_RUNNING, 2)
        assert job.run.model_config.n_embd == 32
        assert job.run.peak_source == "measured"
        assert job.latest_step.loss == step(2).loss
        assert job.latest_evaluation.val_loss == job.best_val_loss == 3.5
        assert job.remaining_seconds == 18 * 0.25 + 2 * 2.0  # steps, and evaluations of 2 s
        assert [attempt.number for attempt in job.attempts] == [1]
        assert not job.attempts[0].HasField("exit_code")
        assert not job.HasField("queue_position")
        listed = (await server.stub.ListJobs(pb.ListJobsRequest())).jobs
        del job.history[:]  # told of one job only
        assert list(listed) == [job]
    async with serving(tmp_path, FakeLauncher(succeed)) as server:  # a new server knows it too
        assert (await server.job(job_id)).best_val_loss == 3.5


@pytest.mark.parametrize("job_id", ["nobody", "", "../../etc", "x" * 10_000, "\x00"])
async def test_an_unknown_job(server: Server, job_id: str) -> None:
    stub = server.stub
    calls = [
        stub.GetJob(pb.GetJobRequest(id=job_id)),
        stub.CancelJob(pb.CancelJobRequest(id=job_id)),
        stub.PauseJob(pb.PauseJobRequest(id=job_id)),
        stub.ResumeJob(pb.ResumeJobRequest(id=job_id)),
        stub.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id)),
        stub.PinCheckpoint(pb.PinCheckpointRequest(job_id=job_id, step=1)),
        stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(job_id=job_id, step=1)),
        stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id)).read(),
        server.follow(job_id).read(),
    ]
    for call in calls:
        assert (await refused(call))[0] is Code.NOT_FOUND


async def test_jobs_are_listed_newest_first_in_pages(server: Server) -> None:
    ids = [(await server.train()).id for _ in range(5)]
    assert ids == sorted(ids)
    found, token = [], ""
    while True:
        page = await server.stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token))
        assert len(page.jobs) <= 2
        found += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert found == ids[::-1]


async def test_a_page_ends_before_it_is_too_big_for_a_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = {**TINY, "sample_prompts": ["x" * 256] * 16}
    ids = [(await server.train(config=big)).id for _ in range(5)][::-1]
    size = (await server.job(ids[0])).ByteSize()
    for max_bytes, expected in ((1, ids[:1]), (size * 5 // 2, ids[:2]), (size * 6, ids)):
        monkeypatch.setattr(training_service, "MAX_PAGE_BYTES", max_bytes)
        page = await server.stub.ListJobs(pb.ListJobsRequest())
        assert [job.id for job in page.jobs] == expected
        assert page.next_page_token == ("" if expected == ids else expected[-1])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListJobsRequest(page_size=-1), "page_size"),
        (pb.ListJobsRequest(page_size=1001), "page_size"),
        (pb.ListJobsRequest(page_token="made up"), "page_token"),
    ],
)
async def test_pages_that_cannot_be(
    server: Server, request_: pb.ListJobsRequest, field: str
) -> None:
    code, _, fields = await refused(server.stub.ListJobs(request_))
    assert (code, fields) == (Code.INVALID_ARGUMENT, {field})


async def test_a_stream_replays_and_follows_to_the_end(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(trainer: FakeTrainer) -> int:
        record(trainer.run, started(), step(1))
        await go_on.wait()
        record(trainer.run, step(2), evaluation(2), checkpoint(2))
        return 0

    async with serving(tmp_path, FakeLauncher(script)) as server:
        job_id = (await server.train()).id
        stream = server.follow(job_id)
        said = []
        while sequences(said) != [1, 2]:
            said.append(await stream.read())
        go_on.set()
        said += await collect(stream)
        assert sequences(said) == [1, 2, 3, 4, 5]
        assert [response.WhichOneof("event") for response in said if response.sequence] == [
            "started",
            "step",
            "step",
            "evaluation",
            "checkpoint",
        ]
        assert said[0].HasField("state_change")
        assert states(said)[-1] == "SUCCEEDED"
        assert said[-1].HasField("state_change")
        assert all(response.HasField("time") for response in said)
        late = await collect(server.follow(job_id, 4))
        assert (states(late), sequences(late)) == (["SUCCEEDED"], [4, 5])
        assert sequences(await collect(server.follow(job_id, 6))) == []
        code, _, fields = await refused(server.follow(job_id, -1).read())
        assert (code, fields) == (Code.INVALID_ARGUMENT, {"start_sequence"})


async def test_a_quiet_stream_gives_signs_of_life(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeLauncher(until_terminated), heartbeat_seconds=0.01) as server:
        job_id = (await server.train()).id
        stream = server.follow(job_id)
        while not (response := await stream.read()).HasField("heartbeat"):
            pass
        assert response.HasField("time")
        assert not response.HasField("sequence")


async def test_a_follower_that_leaves_cancels_nothing(server: Server) -> None:
    job_id = (await server.train()).id
    streams = [server.follow(job_id) for _ in range(20)]
    for stream in streams:
        await stream.read()
        stream.cancel()
    while server.jobs._ledger._watchers != {job_id: 1}:  # the supervisor stays
        await asyncio.sleep(0.01)
    while (state := (await server.job(job_id)).state) == pb.Job.STATE_STARTING:
        await asyncio.sleep(0.01)
    assert state == pb.Job.STATE_RUNNING


async def test_a_queued_and_a_running_job_are_cancelled(server: Server) -> None:
    running, queued = (await server.train()).id, (await server.train()).id
    await reached(server.jobs, running, JobState.RUNNING)
    cancel = server.stub.CancelJob
    job = (await cancel(pb.CancelJobRequest(id=queued))).job
    assert (job.state, job.reason) == (pb.Job.STATE_CANCELLED, pb.Job.REASON_REQUESTED)
    assert job.HasField("end_time")
    stream = server.follow(running)
    assert (await cancel(pb.CancelJobRequest(id=running))).job.state == pb.Job.STATE_CANCELLING
    assert states(await collect(stream))[-1] == "CANCELLED"
    again = (await cancel(pb.CancelJobRequest(id=running))).job
    assert again.state == pb.Job.STATE_CANCELLED


async def test_a_failed_job_says_what_to_do(tmp_path: Path) -> None:
    words = fails_with(ExitCode.DIVERGED, "error: the loss was NaN at step 3")
    async with serving(tmp_path, FakeLauncher(words)) as server:
        job_id = (await server.train()).id
        change = (await collect(server.follow(job_id)))[-1].state_change
        assert (change.state, change.reason) == (pb.Job.STATE_FAILED, pb.Job.REASON_DIVERGED)
        assert change.error == "the loss was NaN at step 3"
        job = await server.job(job_id)
        assert (job.error, job.attempts[0].exit_code) == (change.error, 70)


async def test_datasets_and_names_in_use(server: Server) -> None:
    job = await server.train(model="m")
    assert await server.jobs.datasets_in_use() == {"tiny"}
    assert await server.jobs.models_in_training() == {"m"}
    await server.stub.CancelJob(pb.CancelJobRequest(id=job.id))
    await reached(server.jobs, job.id, JobState.CANCELLED)
    assert await server.jobs.datasets_in_use() == set()


async def test_a_job_is_paused_and_resumed_with_its_whole_history(server: Server) -> None:
    job_id = (await server.train(priority=-5)).id
    await reached(server.jobs, job_id, JobState.RUNNING)
    paused = (await server.stub.PauseJob(pb.PauseJobRequest(id=job_id))).job
    assert (paused.state, paused.reason) == (pb.Job.STATE_PAUSING, pb.Job.REASON_REQUESTED)
    await reached(server.jobs, job_id, JobState.PAUSED)
    stream = server.follow(job_id)
    assert states([await stream.read()]) == ["PAUSED"]
    resumed = (await server.stub.ResumeJob(pb.ResumeJobRequest(id=job_id))).job
    assert resumed.state in (pb.Job.STATE_QUEUED, pb.Job.STATE_STARTING, pb.Job.STATE_RUNNING)
    await reached(server.jobs, job_id, JobState.RUNNING)
    job = await server.job(job_id)
    assert job.priority == -5
    assert [pb.Job.State.Name(change.state).removeprefix("STATE_") for change in job.history] == [
        "QUEUED", "STARTING", "RUNNING", "PAUSING", "PAUSED", "QUEUED", "STARTING", "RUNNING",
    ]  # fmt: skip
    times = [change.time.ToDatetime() for change in job.history]
    assert times == sorted(times)
    assert job.history[0].time == job.create_time
    assert job.attempts[0].ending == "saved its work and left, as it was asked to"
    assert not job.attempts[1].ending
    (listed,) = (await server.stub.ListJobs(pb.ListJobsRequest())).jobs
    assert not listed.history


async def test_a_job_in_the_wrong_state_is_not_paused_or_resumed(server: Server) -> None:
    job_id = (await server.train()).id
    await server.stub.CancelJob(pb.CancelJobRequest(id=job_id))
    await reached(server.jobs, job_id, JobState.CANCELLED)
    for call in (
        server.stub.PauseJob(pb.PauseJobRequest(id=job_id)),
        server.stub.ResumeJob(pb.ResumeJobRequest(id=job_id)),
    ):
        code, message, _ = await refused(call)
        assert (code, "is cancelled" in message) == (Code.FAILED_PRECONDITION, True)


@pytest.mark.parametrize("priority", [-101, 101])
async def test_a_priority_out_of_range(server: Server, priority: int) -> None:
    code, _, fields = await refused(server.train(priority=priority))
    assert (code, fields) == (Code.INVALID_ARGUMENT, {"priority"})


async def log_of(stream: Any) -> tuple[str, int]:
    """Text and last offset of a stream of a log."""
    pieces = await collect(stream)
    return "".join(piece.text for piece in pieces), pieces[-1].next_offset if pieces else -1


async def test_a_log_is_read_over_all_attempts_and_followed_to_the_end(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def second(trainer: FakeTrainer) -> int:
        with trainer.run.log_path.open("a") as log:
            log.write("secönd\n")
        await go_on.wait()
        return await fails_with(0, "done")(trainer)

    scripts = (fails_with(-9, "first"), second)
    async with serving(tmp_path, FakeLauncher(*scripts)) as server:
        stub, job_id = server.stub, (await server.train()).id
        following = stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id, follow=True))
        text, offset = "", 0
        while not text.endswith("secönd\n"):
            piece = await following.read()
            text, offset = text + piece.text, piece.next_offset
        assert text == "some output\nfirst\nsecönd\n"
        assert offset == len(text.encode())
        now = await log_of(stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id)))
        assert now == (text, offset)
        go_on.set()
        assert await log_of(following) == ("some output\ndone\n", offset + 17)
        again = pb.StreamLogsRequest(job_id=job_id, follow=True, offset=offset)
        assert await log_of(stub.StreamLogs(again)) == ("some output\ndone\n", offset + 17)
        end = pb.StreamLogsRequest(job_id=job_id, offset=-5)
        assert await log_of(stub.StreamLogs(end)) == ("done\n", offset + 17)


async def test_a_draining_server_sends_those_away_who_follow_a_log(server: Server) -> None:
    job_id = (await server.train()).id
    await reached(server.jobs, job_id, JobState.RUNNING)
    following = server.stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id, follow=True))
    await server.jobs.drain(30)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await log_of(following)
    assert error.value.code() is Code.UNAVAILABLE


async def test_a_quiet_log_gives_signs_of_life(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(service_module, "LOG_POLL_SECONDS", 0.001)
    job_id = (await server.train()).id
    piece = await server.stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id, follow=True)).read()
    assert (piece.text, piece.next_offset) == ("", 0)


async def test_a_stream_that_names_a_limit_declares_what_it_left_out(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(trainer: FakeTrainer) -> int:
        record(trainer.run, started())
        await go_on.wait()
        record(trainer.run, *(step(number) for number in range(1, 10)))
        return 0

    async with serving(tmp_path, FakeLauncher(script)) as server:
        job_id = (await server.train()).id
        request = pb.StreamMetricsRequest(job_id=job_id, max_behind=2)
        stream, said = server.stub.StreamMetrics(request), []
        while sequences(said) != [1]:
            said.append(await stream.read())
        go_on.set()
        said += await collect(stream)
        (skipped,) = [response.skipped for response in said if response.HasField("skipped")]
        assert (skipped.first_sequence, skipped.last_sequence) == (2, 8)
        assert sequences(said) == [1, 9, 10]
        bad = server.stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job_id, max_behind=0))
        code, _, fields = await refused(bad.read())
        assert (code, fields) == (Code.INVALID_ARGUMENT, {"max_behind"})


async def test_readers_that_do_not_read_cost_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of events are written while two of three readers read nothing."""
    num_steps, begin, left = 5000, asyncio.Event(), asyncio.Event()
    made = 0
    make = training_service._event

    def counted(event: Event) -> pb.StreamMetricsResponse:
        nonlocal made
        made += 1
        return make(event)

    async def write(trainer: FakeTrainer) -> int:
        await begin.wait()
        for first in range(0, num_steps, 100):  # in pieces, so that the loop turns meanwhile
            await asyncio.to_thread(record, trainer.run, *map(step, range(first, first + 100)))
        record(trainer.run, checkpoint(num_steps))
        left.set()
        return 0

    monkeypatch.setattr(training_service, "_event", counted)
    monkeypatch.setattr(tail_module, "PIECE_BYTES", 1 << 14)
    async with serving(tmp_path, FakeLauncher(write)) as server, few_bytes(server) as stub:
        job_id = (await server.train()).id
        slow = [
            stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job_id, **limit))
            for limit in ({}, {"max_behind": 100})
        ]
        for stream in slow:
            await stream.read()  # the state: it is subscribed
        fast = asyncio.create_task(collect(server.follow(job_id)))
        begin.set()
        await left.wait()  # the trainer waits for nobody,
        every = list(range(1, num_steps + 2))
        assert sequences(await fast) == every  # nor does who reads
        # what waits is on the disk: on the wire and in memory is a little of it
        assert made < num_steps * 1.5
        alive = sum(type(found) is Event for found in gc.get_objects())
        assert alive < tail_module.RECENT_EVENTS + 500

        complete, in_time = [await collect(stream) for stream in slow]
        assert sequences(complete) == every
        assert not any(response.HasField("skipped") for response in complete)
        heard, gaps = sequences(in_time), [r.skipped for r in in_time if r.HasField("skipped")]
        left_out = [n for gap in gaps for n in range(gap.first_sequence, gap.last_sequence + 1)]
        assert len(left_out) > num_steps / 2
        assert sorted(heard + left_out) == every  # each is read or declared, and once
        assert every[-100:] == heard[-100:]


@asynccontextmanager
async def few_bytes(server: Server) -> AsyncIterator[pb_grpc.TrainingServiceStub]:
    """A channel that takes 64 KiB of what nobody reads, and does not learn to take more."""
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        yield pb_grpc.TrainingServiceStub(channel)


# from here on: real trainers


class KillingLauncher:
    """Starts real trainers, and kills the first one in the middle of its work."""

    def __init__(self) -> None:
        self._launcher = LocalLauncher(threads=1)
        self._killing: asyncio.Task[None] | None = None

    def check(self, config: Any) -> None:
        self._launcher.check(config)

    async def end_abandoned(self, run: Any) -> None:
        await self._launcher.end_abandoned(run)

    async def start(self, run: Any) -> LocalTrainer:
        trainer = await self._launcher.start(run)
        if self._killing is None:
            self._killing = asyncio.create_task(self._kill(run.metrics_path, trainer.pid))
        return trainer

    async def _kill(self, record: Path, pid: int) -> None:
        reader, last = EventReader(record), 0
        while last < 60:
            last = max([last, *(event.sequence for event in reader.read())])
            await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGKILL)


REAL: dict[str, Any] = {"publish": publish_best}
LONG = {**TINY, "max_iters": 3000, "lr_decay_iters": 3000, "eval_interval": 1000}


def losses(responses: Iterable[pb.StreamMetricsResponse]) -> dict[int, float]:
    return {r.step.step: r.step.loss for r in responses if r.HasField("step")}


async def test_a_real_job_becomes_a_model(tmp_path: Path) -> None:
    async with serving(tmp_path, LocalLauncher(threads=1), **REAL) as server:
        job_id = (await server.train(model="real")).id
        said = await collect(server.follow(job_id))
        assert states(said)[-1] == "SUCCEEDED", (await server.job(job_id)).error
        assert sequences(said) == list(range(1, len(sequences(said)) + 1))
        assert list(losses(said)) == list(range(1, 21))
        listed = await server.stub.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id))
        steps = [found.step for found in listed.checkpoints]
        assert steps == sorted(steps, reverse=True)
        assert steps[0] == 20
        best = next(found for found in listed.checkpoints if found.is_best)
        change = {"job_id": job_id, "step": 20}
        pinned = await server.stub.PinCheckpoint(pb.PinCheckpointRequest(**change))
        assert pinned.checkpoint.is_pinned
        delete = server.stub.DeleteCheckpoint
        code, message, _ = await refused(delete(pb.DeleteCheckpointRequest(**change)))
        assert (code, "is pinned" in message) == (Code.FAILED_PRECONDITION, True)
        unpin = pb.PinCheckpointRequest(**change, pinned=False)
        assert not (await server.stub.PinCheckpoint(unpin)).checkpoint.is_pinned
        await delete(pb.DeleteCheckpointRequest(**change))
        assert (await refused(delete(pb.DeleteCheckpointRequest(**change))))[0] is Code.NOT_FOUND
        listed = await server.stub.ListCheckpoints(pb.ListCheckpointsRequest(job_id=job_id))
        assert [found.step for found in listed.checkpoints] == steps[1:]
        text, _ = await log_of(server.stub.StreamLogs(pb.StreamLogsRequest(job_id=job_id)))
        assert "starting at step 0\n" in text
        assert (await server.job(job_id)).attempts[0].first_step == 0
        meta = read_meta(tmp_path / "models" / "real")
        assert (meta.step, meta.job_id, meta.train) == (best.step, job_id, None)
        assert load_model(tmp_path / "models" / "real").config.n_embd == 32
        tuned = await server.train(config={**TINY, "init_from": "real", "n_layer": 2})
        assert states(await collect(server.follow(tuned.id)))[-1] == "SUCCEEDED"


async def test_a_killed_trainer_leaves_no_trace_in_the_record(tmp_path: Path) -> None:
    config = {**LONG, "max_iters": 300, "checkpoint_interval": 40}
    async with serving(tmp_path, KillingLauncher(), **REAL) as server:
        hurt = await server.train(model="hurt", config=config)
        said = await collect(server.follow(hurt.id))
        assert states(said)[-1] == "SUCCEEDED"
        assert "RECOVERING" in states(said)
        assert sequences(said) == list(range(1, len(sequences(said)) + 1))
        whole = await server.train(model="whole", config=config)
        assert losses(said) == losses(await collect(server.follow(whole.id)))
        exit_codes = [attempt.exit_code for attempt in (await server.job(hurt.id)).attempts]
        assert exit_codes == [-signal.SIGKILL, 0]


async def test_a_stopped_server_goes_on_where_it_was(tmp_path: Path) -> None:
    said: list[pb.StreamMetricsResponse] = []
    async with serving(tmp_path, LocalLauncher(threads=1), **REAL) as server:
        job_id = (await server.train(model="long", config=LONG)).id
        stream = server.follow(job_id)
        while len(sequences(said)) < 30:
            said.append(await stream.read())
        drained = asyncio.ensure_future(server.jobs.drain(30))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            while True:
                said.append(await stream.read())
        await drained
        assert error.value.code() is Code.UNAVAILABLE
        stopped_at = (await server.job(job_id)).step
        assert 30 <= stopped_at < 3000
        assert [attempt.exit_code for attempt in (await server.job(job_id)).attempts] == [75]
    async with serving(tmp_path, LocalLauncher(threads=1), **REAL) as server:
        stream = server.follow(job_id, sequences(said)[-1] + 1)
        while len(sequences(said)) < stopped_at + 60:
            said.append(await stream.read())
        assert sequences(said) == list(range(1, len(sequences(said)) + 1))
        steps = list(losses(said))
        assert steps == list(range(1, len(steps) + 1))
        await server.stub.CancelJob(pb.CancelJobRequest(id=job_id))
        assert states(await collect(stream))[-1] == "CANCELLED"
        assert list_checkpoints(tmp_path / "runs" / job_id / "checkpoints")


SERVER_THAT_DIES = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fake_trainer import open_jobs
from server.jobs.launcher import LocalLauncher
from server.jobs.publication import publish_best
from server.jobs.submission import Submission

async def main():
    jobs = await open_jobs(Path({data_dir!r}), LocalLauncher(threads=1), publish=publish_best)
    jobs.start()
    report = await jobs.submit(Submission(dataset="tiny", model="m", config={config!r}))
    print(report.job.id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_server_goes_on_where_it_was(tmp_path: Path) -> None:
    """The first promise: an acknowledged job is not lost, and no step is told twice."""
    make_dataset(tmp_path)
    config = {**LONG, "max_iters": 300, "checkpoint_interval": 100}
    script = SERVER_THAT_DIES.format(
        tests=str(Path(__file__).parent), data_dir=str(tmp_path), config=config
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    job_id = (await process.stdout.readline()).decode().strip()
    reader, last = EventReader(tmp_path / "runs" / job_id / "metrics.jsonl"), 0
    while last < 30:
        last = max([last, *(event.sequence for event in reader.read())])
        await asyncio.sleep(0.01)
    trainers = psutil.Process(process.pid).children()
    process.kill()
    await process.communicate()
    async with serving(tmp_path, LocalLauncher(threads=1), max_crashes=0, **REAL) as server:
        said = await collect(server.follow(job_id))
        assert states(said)[-1] == "SUCCEEDED"
        assert sequences(said) == list(range(1, len(sequences(said)) + 1))
        assert list(losses(said)) == list(range(1, 301))
        attempts = (await server.job(job_id)).attempts
        assert not attempts[0].HasField("exit_code")  # nobody saw it end
        assert attempts[-1].exit_code == 0
        assert read_meta(tmp_path / "models" / "m").job_id == job_id
    assert len(trainers) == 1
    assert not trainers[0].is_running() or trainers[0].status() == psutil.STATUS_ZOMBIE


async def test_a_dataset_that_breaks_after_train_fails_the_job(tmp_path: Path) -> None:
    jobs = await open_jobs(tmp_path, FakeLauncher(succeed))  # never started
    job_id = (await jobs.submit(Submission(dataset="tiny", config=TINY))).job.id
    await jobs.close()
    (tmp_path / "datasets" / "tiny" / "train.bin").unlink()
    async with serving(tmp_path, LocalLauncher(threads=1)) as server:
        change = (await collect(server.follow(job_id)))[-1].state_change
        assert (change.state, change.reason) == (pb.Job.STATE_FAILED, pb.Job.REASON_BAD_DATASET)
        assert change.error
        assert str(tmp_path) not in change.error


def test_events_on_the_wire() -> None:
    body = Divergence(9, "rolled_back", None, 2.5, 6, 0.5)
    sent = training_service._event(Event(7, 1.5, body, rollbacks=1)).divergence
    assert sent == pb.Divergence(
        step=9,
        action=pb.Divergence.ACTION_ROLLED_BACK,
        grad_norm=2.5,
        rolled_back_to_step=6,
        learning_rate_factor=0.5,
    )
    assert training_service._event(Event(1, 0.0, Sample(3, "a", "b", 2))).sample.index == 2
    found = training_service._event(
        Event(1, 0.0, Evaluation(3, 2.0, 1.0, True, 0.5, 1.25))
    ).evaluation
    assert (found.val_perplexity, found.val_bits_per_byte) == (pytest.approx(2.718282), 1.25)
    found = training_service._event(Event(1, 0.0, Evaluation(3, 2.0, 1.0, True, 0.5))).evaluation
    assert not found.HasField("val_bits_per_byte")
