"""The whole server in this process: health, drain, ports, data folder, page."""

import asyncio
import functools
import logging
import shutil
import sys

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import server.app
from protos.nanogpt.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from server.app import SERVICES, App, is_loopback
from server.errors import CannotStart
from server.jobs.launcher import LocalLauncher
from server.settings import Settings
from tests.serving import held_steps

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ("", "liveness", "readiness", *SERVICES)


async def check(channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def until_ready(app: App) -> None:
    async with asyncio.timeout(30):
        while not app.health.serving("readiness"):
            await app.health.changed()


def changed(settings: Settings, **values) -> Settings:
    """The settings with some values replaced."""
    return settings.model_copy(update=values)


async def test_every_part_is_healthy_once_ready(app, channel):
    await until_ready(app)
    assert [await check(channel, name) for name in NAMES] == [SERVING] * len(NAMES)


async def test_every_service_answers(app, channel):
    models = await models_pb2_grpc.ModelServiceStub(channel).ListModels(
        models_pb2.ListModelsRequest()
    )
    assert [model.name for model in models.models] == ["tiny"]
    await training_pb2_grpc.TrainingServiceStub(channel).ListJobs(training_pb2.ListJobsRequest())
    await datasets_pb2_grpc.DatasetServiceStub(channel).ListDatasets(
        datasets_pb2.ListDatasetsRequest()
    )
    tokens = await inference_pb2_grpc.InferenceServiceStub(channel).Tokenize(
        inference_pb2.TokenizeRequest(model="tiny", text="ab")
    )
    assert len(tokens.token_ids) == 2


async def generate(channel, **options) -> str:
    request = inference_pb2.GenerateRequest(model="tiny", prompt="A", **options)
    request.stopping.max_new_tokens = 5
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return "".join([answer.delta.text async for answer in stub.Generate(request)])


async def test_text_is_generated_and_counted(app, channel):
    assert len(await generate(channel)) == 5
    value = app.metrics.registry.get_sample_value
    assert value("nanogpt_generation_tokens_total", {"model": "tiny"}) == 5
    labels = {
        "grpc_type": "server_stream",
        "grpc_service": "nanogpt.v1.InferenceService",
        "grpc_method": "Generate",
        "grpc_code": "OK",
    }
    assert value("grpc_server_handled_total", labels) == 1


async def test_models_are_loaded_at_start(settings):
    app = await App.start(changed(settings, load_models=("tiny",)))
    await until_ready(app)
    assert [model.state for model in await app.models.list()] == ["loaded"]
    assert app.metrics.registry.get_sample_value(
        "nanogpt_startup_time_seconds", {"phase": "models"}
    )
    await app.stop()


async def test_models_run_on_kernels_that_an_earlier_start_has_left(settings, kernels_file):
    folder = settings.data_dir / "kernels"
    folder.mkdir()
    shutil.copy(kernels_file, folder)
    values = {"kernels": "auto", "precision": "int8", "load_models": ("tiny",)}
    app = await App.start(changed(settings, **values))
    await until_ready(app)
    (model,) = app.models.in_memory
    assert model.is_native and model.precision == "int8"
    await app.stop()


async def test_a_machine_without_a_compiler_cannot_have_what_needs_kernels(settings, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotStart, match="no native kernels for cpu"):
        await App.start(changed(settings, kernels="native"))
    with pytest.raises(CannotStart, match="cannot run models in int4 on cpu"):
        await App.start(changed(settings, kernels="auto", precision="int4"))


async def test_a_model_that_cannot_be_loaded_keeps_the_server_unready(settings, caplog):
    app = await App.start(changed(settings, load_models=("nope", "tiny")))
    async with asyncio.timeout(30):
        while (
            app.metrics.registry.get_sample_value(
                "nanogpt_weight_load_duration_seconds", {"model": "tiny"}
            )
            is None
        ):
            await asyncio.sleep(0.01)
    assert app.health.serving("readiness") is False and app.health.serving("") is True
    assert "there is no model 'nope'" in caplog.text
    await app.stop()


async def test_health_flips_and_work_is_refused_while_a_call_is_drained(app, channel):
    await until_ready(app)
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service="readiness")
    )
    assert (await watch.read()).status == SERVING
    # an upload that its client has not finished keeps the drain going
    uploads = datasets_pb2_grpc.DatasetServiceStub(channel)
    upload = uploads.CreateDataset()
    spec = datasets_pb2.DatasetSpec(name="slow")
    await upload.write(datasets_pb2.CreateDatasetRequest(spec=spec))
    datasets_folder = app.settings.data_dir / "datasets"
    while not list(datasets_folder.iterdir()):
        await asyncio.sleep(0.001)

    training = training_pb2_grpc.TrainingServiceStub(channel)
    stopping = asyncio.create_task(app.stop())
    assert (await watch.read()).status == NOT_SERVING
    assert [app.health.serving(name) for name in NAMES] == [False] * len(NAMES)
    for call in (training.Train(training_pb2.TrainRequest()), generate(channel)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the server is stopping; try another one, or later"

    await upload.write(datasets_pb2.CreateDatasetRequest(text=b"to be or not to be " * 20))
    await upload.done_writing()
    assert (await upload).dataset.name == "slow"
    await stopping


async def test_playground_and_scores_are_drained_too(app, channel, monkeypatch):
    await generate(channel)  # loads the model
    (loaded,) = app.models.in_memory
    gate = held_steps(loaded.engine, monkeypatch)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    score = stub.Score(inference_pb2.ScoreRequest(model="tiny", text="AB"))
    body = {"model": "tiny", "prompt": "A", "stopping": {"max_new_tokens": 3}}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as http:
        write = asyncio.create_task(http.post("/api/generate", json=body))
        while len(loaded.engine._streams) < 2:
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(app.stop())
        while not app.health.is_draining:
            await asyncio.sleep(0.001)
        late = await http.post("/api/generate", json=body)
        assert late.status_code == 503
        gate.set()
        assert len((await score).logprobs) == 1
        assert '"kind": "finished"' in (await write).text
        await stopping


async def test_the_grace_ends(settings):
    app = await App.start(changed(settings, drain_seconds=0.1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        upload = datasets_pb2_grpc.DatasetServiceStub(channel).CreateDataset()
        spec = datasets_pb2.DatasetSpec(name="endless")
        await upload.write(datasets_pb2.CreateDatasetRequest(spec=spec))
        while not list((settings.data_dir / "datasets").iterdir()):
            await asyncio.sleep(0.001)
        await asyncio.wait_for(app.stop(), 5)
        assert await upload.code() is grpc.StatusCode.UNAVAILABLE
    assert list((settings.data_dir / "datasets").iterdir()) == []


async def test_an_upload_over_http_that_stalls_does_not_hold_up_the_end(settings, caplog):
    app = await App.start(changed(settings, drain_seconds=0.1))
    _, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    head = "POST /api/datasets/endless HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
    upload = "Content-Type: application/octet-stream\r\nX-Nanogpt-Upload: 1\r\n\r\nabc"
    writer.write((head + upload).encode())
    while not list((settings.data_dir / "datasets").iterdir()):
        await asyncio.sleep(0.001)
    await app.stop()
    writer.close()
    assert list((settings.data_dir / "datasets").iterdir()) == []
    assert "handlers still run" not in caplog.text


async def test_a_stream_that_outlasts_the_grace_is_told_why_it_ends(settings):
    app = await App.start(changed(settings, drain_seconds=0.1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        request = inference_pb2.GenerateRequest(model="tiny", prompt="A")
        request.stopping.max_new_tokens = 65536
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)
        assert (await stream.read()).HasField("started")
        stopping = asyncio.create_task(app.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await stream.read():
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the server is stopping; try again"
        await stopping


async def test_a_server_starts_again_where_it_stopped(settings):
    for _ in range(2):
        app = await App.start(settings)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
            assert len(await generate(channel)) == 5
        await app.stop()


async def test_stopping_twice_is_stopping_once(settings):
    app = await App.start(settings)
    await app.stop()
    await app.stop()


async def test_a_taken_grpc_port_is_said_and_leaves_nothing_behind(app, settings, tmp_path):
    taken = f"127.0.0.1:{app.grpc_port}"
    other = changed(settings, data_dir=tmp_path / "other", grpc_address=taken)
    with pytest.raises(CannotStart, match=f"cannot listen on {taken}"):
        await App.start(other)
    again = await App.start(changed(other, grpc_address="127.0.0.1:0"))
    await again.stop()


async def test_a_taken_http_port_is_said(app, settings, tmp_path):
    taken = f"127.0.0.1:{app.http_port}"
    with pytest.raises(CannotStart, match=f"port {app.http_port}, for HTTP"):
        await App.start(changed(settings, data_dir=tmp_path / "other", http_address=taken))


async def test_a_data_folder_has_one_server(app, settings):
    with pytest.raises(CannotStart, match="another server uses the data folder"):
        await App.start(settings)


async def test_a_data_folder_that_cannot_be_made_is_said(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="cannot use the data folder"):
        await App.start(changed(settings, data_dir=tmp_path / "file" / "data"))


async def test_a_damaged_database_is_said(settings):
    (settings.data_dir / "jobs.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(CannotStart, match=r"jobs\.sqlite is damaged"):
        await App.start(settings)


@pytest.mark.parametrize("name", ["datasets", "runs", "jobs.sqlite"])
async def test_stores_that_cannot_be_opened_are_said(settings, name):
    if name == "jobs.sqlite":
        (settings.data_dir / name).mkdir()
    else:
        (settings.data_dir / name).write_text("a file")
    with pytest.raises(CannotStart, match=r"cannot open .* data folder .* disk needs"):
        await App.start(settings)


async def reflected(channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    answer = await call.read()
    return {service.name for service in answer.list_services_response.service}


async def test_clients_may_ask_for_the_api_on_loopback(channel):
    assert {*SERVICES, "grpc.health.v1.Health"} <= await reflected(channel)


async def test_reflection_can_be_turned_off(settings):
    app = await App.start(changed(settings, reflection="off"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for _ in stub.ServerReflectionInfo(iter([request])):
                pass
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await app.stop()


async def test_listening_beyond_this_machine_is_warned_about(settings, caplog):
    caplog.set_level(logging.WARNING)
    app = await App.start(changed(settings, grpc_address="0.0.0.0:0"))
    assert "asks for no credentials" in caplog.text
    await app.stop()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


async def test_malformed_bytes_and_unknown_names_on_the_real_services(channel):
    methods = {
        "InferenceService": ("Generate", "Benchmark", "Tokenize", "Detokenize", "Score"),
        "TrainingService": ("Train", "StreamMetrics", "GetJob", "ListJobs", "CancelJob"),
        "ModelService": (
            "GetModel",
            "LoadModel",
            "UnloadModel",
            "DeleteModel",
            "ImportModel",
            "ExportModel",
        ),
        "DatasetService": ("GetDataset", "DeleteDataset"),
    }
    for service, names in methods.items():
        for name in names:
            call = channel.unary_stream(f"/nanogpt.v1.{service}/{name}")(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (service, name)


async def test_errors_of_the_real_services_have_details(channel):
    stub = models_pb2_grpc.ModelServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(models_pb2.GetModelRequest(name="nope"))
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("MODEL_NOT_FOUND", "nanogpt.v1")


async def test_the_dashboard_is_served(app):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as http:
        page = await http.get("/")
        assert page.status_code == 200 and "/static/app.js" in page.text
        metrics = (await http.get("/metrics")).text
    assert 'nanogpt_accelerator_info{device="cpu",name=' in metrics
    assert "nanogpt_build_info{" in metrics
    memory = next(m for m in metrics.splitlines() if m.startswith("nanogpt_device_memory_bytes "))
    assert float(memory.split()[1]) > 1e6


async def test_healthz_is_ready_with_the_server(app):
    await until_ready(app)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_several_servers_share_a_process(app, settings, tmp_path):
    other = await App.start(changed(settings, data_dir=tmp_path / "other"))
    assert other.grpc_port != app.grpc_port
    async with grpc.aio.insecure_channel(f"127.0.0.1:{other.grpc_port}") as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        assert not (await stub.ListModels(models_pb2.ListModelsRequest())).models
    await other.stop()


@pytest.fixture
def idle_trainer(monkeypatch):
    """A trainer that does nothing until it is told to end."""
    command = (sys.executable, "-c", "import time; time.sleep(3600)")
    launcher = functools.partial(LocalLauncher, command=command)
    monkeypatch.setattr(server.app, "LocalLauncher", launcher)


async def test_a_job_outlives_the_server_and_its_followers_are_sent_on(settings, idle_trainer):
    app = await App.start(settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        await create_dataset(channel, "hamlet")
        training = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.TrainRequest(dataset="hamlet", model="prince")
        request.config.block_size = 8
        job = (await training.Train(request)).job
        datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name="hamlet"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        follower = training.StreamMetrics(training_pb2.StreamMetricsRequest(job_id=job.id))
        assert (await follower.read()).HasField("state_change")
        stopping = asyncio.create_task(app.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await follower.read():
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping

    app = await App.start(settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        training = training_pb2_grpc.TrainingServiceStub(channel)
        [known] = (await training.ListJobs(training_pb2.ListJobsRequest())).jobs
        assert (known.id, known.model) == (job.id, "prince")
        assert not known.HasField("end_time")
        await training.CancelJob(training_pb2.CancelJobRequest(id=job.id))
    await app.stop()


async def test_who_watches_the_server_sees_its_models_and_is_sent_away_at_once(settings):
    app = await App.start(settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        request = training_pb2.StreamMetricsRequest(server=training_pb2.ServerSource())
        watching = training_pb2_grpc.TrainingServiceStub(channel).StreamMetrics(request)
        generating = inference_pb2.GenerateRequest(model="tiny", prompt="A")
        async for _ in inference_pb2_grpc.InferenceServiceStub(channel).Generate(generating):
            pass
        tiny = training_pb2.ModelFigures(running=1)
        while tiny.running:  # figures of a second that began before the end of the call
            models = (await watching.read()).serving.models
            tiny = models[0] if models else tiny
        assert (tiny.model, tiny.weight_version, tiny.running, tiny.waiting) == ("tiny", 10, 0, 0)
        assert tiny.memory_bytes > 0
        spread = tiny.inter_token_latency_seconds
        assert 0 < spread.p50 <= spread.p95 <= spread.p99
        assert tiny.time_to_first_token_seconds.p50 > 0
        stopping = asyncio.create_task(app.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await watching.read():
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, settings.drain_seconds / 2)


async def create_dataset(channel, name: str) -> None:
    async def requests():
        yield datasets_pb2.CreateDatasetRequest(spec=datasets_pb2.DatasetSpec(name=name))
        yield datasets_pb2.CreateDatasetRequest(text=b"to be or not to be " * 100)

    await datasets_pb2_grpc.DatasetServiceStub(channel).CreateDataset(requests())
