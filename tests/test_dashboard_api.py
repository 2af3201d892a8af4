"""The JSON API of the dashboard against a whole server, with a scripted trainer."""

import asyncio
import io
import json
import re
import sys
import tarfile
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

import server.app
from nanogpt.checkpoint_folder import step_folder
from nanogpt.training.events import Sample
from server.app import App
from server.web.api import datasets, generation
from server.web.site import create_site
from tests.fake_trainer import TINY, FakeLauncher, checkpoint, evaluation, record, started, step
from tests.serving import held_steps, until, write_checkpoint

TEXT = "the quick brown fox jumps over the lazy dog\n" * 200
UPLOAD = {"Content-Type": "application/octet-stream", "X-Nanogpt-Upload": "1"}


async def train(trainer):
    """Two steps at once, the rest when told to stop."""
    with trainer.run.log_path.open("a") as log:
        log.write("hello from the trainer\n")
    record(trainer.run, started(), step(1), evaluation(1, 3.5), checkpoint(1), step(2))
    await trainer.terminated.wait()
    record(trainer.run, Sample(2, "A", "<b>text</b>"))
    return 75


@pytest.fixture
async def running(settings, monkeypatch):
    """A server whose trainer plays a script, and its address."""
    monkeypatch.setattr(server.app, "LocalLauncher", lambda threads, nice: FakeLauncher(train))
    app = await App.start(settings)
    yield app
    await app.stop()


@pytest.fixture
async def client(running):
    url = f"http://127.0.0.1:{running.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield client


async def upload(client, name="text", text=TEXT, **params):
    return await client.post(f"/api/datasets/{name}", params=params, content=text, headers=UPLOAD)


async def submit(client, **changed) -> dict:
    await upload(client)
    response = await client.post("/api/jobs", json={"dataset": "text", "config": TINY, **changed})
    assert response.status_code == 201, response.text
    return response.json()


@asynccontextmanager
async def stream(client, path, **options):
    """The events of a stream, one at a time: (id, data)."""
    method = options.pop("method", "GET")
    async with client.stream(method, path, **options) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"

        async def events():
            id = None
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    id = int(line[4:])
                elif line.startswith("data: "):
                    yield id, json.loads(line[6:])
                elif not line:
                    id = None

        yield events()


async def until_step(client, job_id, number):
    async with asyncio.timeout(20):
        while (await client.get(f"/api/jobs/{job_id}")).json()["step"] < number:
            await asyncio.sleep(0.01)


async def test_the_first_lines_of_each_file_list_its_paths(settings, monkeypatch):
    served = []

    def create(routes, *rest):
        served.extend(routes)
        return create_site(routes, *rest)

    monkeypatch.setattr(server.app, "create_site", create)
    await (await App.start(settings)).stop()
    paths = {}
    for route in served:
        if route.path.startswith("/api/"):
            path = re.sub(r"{[^}]+}", "*", route.path)
            found = {(method, path) for method in route.methods - {"HEAD"}}
            paths.setdefault(sys.modules[route.endpoint.__module__], set()).update(found)
    assert len(paths) == 8
    for file, found in paths.items():
        lines = re.findall(r"^ *([A-Z]+) +(/api/[^\s?]+)", file.__doc__, re.MULTILINE)
        listed = {(method, re.sub(r"[A-Z]+", "*", path)) for method, path in lines}
        assert listed == found, file.__name__


async def test_a_dataset_is_uploaded_listed_and_deleted(client):
    created = await upload(client, val_ratio=0.2)
    assert created.status_code == 201
    assert created.json()["characters"] == len(TEXT)
    assert created.json()["val_tokens"] == pytest.approx(len(TEXT) * 0.2, abs=1)
    listed = (await client.get("/api/datasets")).json()
    assert [dataset["name"] for dataset in listed["datasets"]] == ["text"]
    assert "python_reference" in [shipped["name"] for shipped in listed["shipped"]]
    gone = await client.delete("/api/datasets/text", headers={"Content-Type": "application/json"})
    assert gone.status_code == 204
    assert (await client.get("/api/datasets")).json()["datasets"] == []


async def test_a_shipped_dataset_is_made_without_an_upload(client):
    """As the dashboard asks for it: every change it makes has a JSON object for its body."""
    path = "/api/datasets/python_reference"
    made = await client.post(path, params={"shipped": "python_reference"}, json={})
    assert made.status_code == 201, made.text
    assert made.json()["vocab_size"] > 50


async def test_all_that_is_wrong_with_an_upload_is_said_at_once(client):
    response = await upload(
        client, "No Name", tokenizer="words", val_ratio="most", max_documents="0", nope="1"
    )
    assert response.status_code == 400
    fields = {violation["field"] for violation in response.json()["violations"]}
    assert fields == {"name", "tokenizer", "val_ratio", "max_documents", "nope"}
    assert (await upload(client)).status_code == 201
    again = await upload(client)
    assert (again.status_code, again.json()["reason"]) == (409, "DATASET_ALREADY_EXISTS")


async def test_an_upload_that_stalls_ends_and_frees_its_name(running, client, monkeypatch):
    monkeypatch.setattr(datasets, "STALLED_SECONDS", 0.05)
    fields = {"Host": "127.0.0.1", "Content-Length": "1000", **UPLOAD}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    for name, reason in (("text", b"DEADLINE_EXCEEDED"), ("NO", b"INVALID_ARGUMENT")):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
        writer.write(f"POST /api/datasets/{name} HTTP/1.1\r\n{head}\r\nabc".encode())
        async with asyncio.timeout(20):
            await reader.readuntil(reason)
        writer.close()
    monkeypatch.undo()
    assert (await upload(client)).status_code == 201


async def test_the_form_explains_every_field(client):
    form = (await client.get("/api/form")).json()
    fields = {field["name"]: field for field in form["fields"]}
    assert fields["n_head"] == {
        "name": "n_head",
        "type": "int",
        "is_optional": False,
        "default": 6,
        "help": "Attention heads in each block; a divisor of n_embd.",
        "choices": None,
        "allowed": "in [1, 1024]",
        "ge": 1,
        "le": 1024,
    }
    assert fields["device"]["choices"] == ["auto", "cpu", "cuda", "mps"]
    assert all(field["help"] for field in form["fields"])
    assert "train_shakespeare_char" in [preset["name"] for preset in form["presets"]]


async def test_a_run_is_checked_before_it_is_submitted(client):
    await upload(client)
    good = await client.post("/api/jobs/check", json={"dataset": "text", "config": TINY})
    plan = good.json()["plan"]
    assert plan["tokens_per_step"] == 64 and plan["parameter_count"] > 10_000
    assert plan["config_origin"]["n_layer"] == "request"
    bad = await client.post(
        "/api/jobs/check",
        json={"dataset": "text", "config": {**TINY, "n_head": 5, "max_iters": 0}},
    )
    assert bad.json()["plan"] is None
    fields = [violation["field"] for violation in bad.json()["problem"]["violations"]]
    assert sorted(fields) == ["config.max_iters", "config.n_head"]
    assert (await client.get("/api/jobs")).json()["jobs"] == []


async def test_a_job_is_submitted_once_and_listed(client):
    first = await submit(client, request_id="a", model="mine")
    again = await submit(client, request_id="a", model="mine")
    assert first["id"] == again["id"] and first["config"]["n_layer"] == 2
    await until_step(client, first["id"], 2)
    page = (await client.get("/api/jobs?size=1")).json()
    assert page["next_before"] is None
    (job,) = page["jobs"]
    assert (job["model"], job["state"], job["step"], job["max_iters"]) == ("mine", "RUNNING", 2, 20)
    assert job["best_val_loss"] == 3.5 and job["latest_step"]["mfu"] == 0.1
    assert job["remaining_seconds"] > 0


async def test_a_history_and_the_stream_after_it_have_no_gap(client):
    job_id = (await submit(client))["id"]
    await until_step(client, job_id, 2)
    history = (await client.get(f"/api/jobs/{job_id}/history")).json()
    assert history["sequence"] == 5 and history["lines"]["loss"]["x"] == [1, 2]
    start = history["sequence"] + 1
    async with stream(client, f"/api/jobs/{job_id}/events?start={start}") as events:
        assert (await anext(events))[1]["kind"] == "state"
        cancelled = await client.post(f"/api/jobs/{job_id}/cancel", json={})
        assert cancelled.json()["state"] in ("CANCELLING", "CANCELLED")
        rest = [event async for event in events]
    assert [(id, data["kind"]) for id, data in rest if id] == [(6, "sample")]
    assert [data["state"] for _, data in rest if data["kind"] == "state"][-1] == "CANCELLED"
    assert rest[-1][1] == {"kind": "end"}
    history = (await client.get(f"/api/jobs/{job_id}/history")).json()
    assert history["samples"][0]["text"] == "<b>text</b>"


async def test_a_browser_that_comes_back_says_which_event_it_saw_last(client):
    job_id = (await submit(client))["id"]
    await until_step(client, job_id, 2)
    headers = {"Last-Event-ID": "3"}
    async with stream(client, f"/api/jobs/{job_id}/events", headers=headers) as events:
        seen = [await anext(events) for _ in range(3)]
    assert [(id, data["kind"]) for id, data in seen] == [
        (None, "state"),
        (4, "checkpoint"),
        (5, "step"),
    ]


async def test_the_list_of_jobs_is_live(client):
    async with stream(client, "/api/jobs/live") as events:
        assert (await anext(events))[1]["jobs"] == []
        job = await submit(client)
        async with asyncio.timeout(20):
            async for _, data in events:
                if data["jobs"] and data["jobs"][0]["step"] == 2:
                    break
        assert data["jobs"][0]["id"] == job["id"]


async def test_streams_end_when_the_server_stops(running, client):
    job_id = (await submit(client))["id"]
    await until_step(client, job_id, 2)
    async with (
        stream(client, "/api/jobs/live") as live,
        stream(client, f"/api/jobs/{job_id}/events") as events,
    ):
        await anext(live)
        await anext(events)
        stopping = asyncio.create_task(running.stop())
        last = [event async for event in events][-1][1]
        async for _ in live:
            pass
        await stopping
    assert (last["kind"], last["reason"]) == ("error", "UNAVAILABLE")


async def test_a_job_is_paused_and_resumed(client):
    job_id = (await submit(client, priority=-3))["id"]
    await until_step(client, job_id, 2)
    paused = await client.post(f"/api/jobs/{job_id}/pause", json={})
    assert (paused.status_code, paused.json()["priority"]) == (200, -3)
    async with asyncio.timeout(20):
        while (job := (await client.get(f"/api/jobs/{job_id}")).json())["state"] != "PAUSED":
            await asyncio.sleep(0.01)
    assert "PAUSING" in [standing["state"] for standing in job["history"]]
    assert (await client.post(f"/api/jobs/{job_id}/resume", json={})).status_code == 200
    await client.post(f"/api/jobs/{job_id}/cancel", json={})


async def test_what_the_trainer_printed_is_streamed(client):
    job_id = (await submit(client))["id"]
    await until_step(client, job_id, 2)
    async with stream(client, f"/api/jobs/{job_id}/log?offset=0") as events:
        _, piece = await anext(events)
        assert "hello from the trainer" in piece["text"] and piece["next_offset"] > 20
        await client.post(f"/api/jobs/{job_id}/cancel", json={})
        assert [data async for _, data in events][-1] == {"kind": "end"}
    wrong = await client.get(f"/api/jobs/{job_id}/log?offset=end")
    assert wrong.json()["violations"][0]["field"] == "offset"


async def test_checkpoints_are_listed_pinned_and_deleted(running, client):
    job_id = (await submit(client))["id"]
    folder = running.settings.data_dir / "runs" / job_id / "checkpoints"
    write_checkpoint(step_folder(folder, 1), step=1, job_id=job_id)
    path = f"/api/jobs/{job_id}/checkpoints"
    (found,) = (await client.get(path)).json()["checkpoints"]
    assert (found["step"], found["is_pinned"], found["is_loaded"]) == (1, False, False)
    assert (await client.post(f"{path}/1/pin", json={})).json()["is_pinned"]
    await client.post(f"/api/jobs/{job_id}/cancel", json={})
    refused = await client.delete(f"{path}/1", headers={"Content-Type": "application/json"})
    assert refused.status_code == 409
    assert not (await client.post(f"{path}/1/pin", json={"pinned": False})).json()["is_pinned"]
    gone = await client.delete(f"{path}/7", headers={"Content-Type": "application/json"})
    assert gone.status_code == 404
    for number in ("9" * 5000, "9" * 300, str(1 << 63), "-1", "x"):
        pinned = await client.post(f"{path}/{number}/pin", json={})
        gone = await client.delete(f"{path}/{number}", headers={"Content-Type": "application/json"})
        for refused in (pinned, gone):
            assert refused.status_code == 400
            assert refused.json()["violations"][0]["field"] == "step"
    assert (await client.post(f"{path}/{(1 << 63) - 1}/pin", json={})).status_code == 404


async def test_serving_figures_are_live(client):
    await generate(client, model="tiny", prompt="A", stopping={"max_new_tokens": 4})
    async with stream(client, "/api/serving/live") as events:
        (figures,) = (await anext(events))[1]["models"]
    assert (figures["reference"], figures["running"]) == ("tiny", 0)
    assert figures["time_to_first_token"]["p50"] > 0 and figures["memory_bytes"] > 0


async def test_what_is_not_there_is_not_found(client):
    for path in ("/api/jobs/nope", "/api/jobs/nope/events", "/api/jobs/nope/history"):
        response = await client.get(path)
        assert (response.status_code, response.json()["reason"]) == (404, "JOB_NOT_FOUND")
    assert (await client.get("/api/jobs?size=0")).json()["violations"][0]["field"] == "size"
    assert (await client.get("/api/nothing")).status_code == 404


async def generate(client, **body):
    async with stream(client, "/api/generate", method="POST", json=body) as events:
        return [data async for _, data in events]


async def test_text_is_generated_token_by_token(client):
    events = await generate(
        client,
        model="tiny",
        prompt="A",
        sampling={"temperature": 0.7, "seed": 1, "logit_bias": {"2": -1}},
        stopping={"max_new_tokens": 6},
        top_logprobs=2,
    )
    first, *deltas, last = events
    assert first["kind"] == "started" and first["sampling"]["seed"] == 1
    tokens = [token for delta in deltas for token in delta["tokens"]]
    assert len(tokens) == 6 and all(len(token["top"]) == 2 for token in tokens)
    assert "".join(token["text"] for token in tokens) == "".join(d["text"] for d in deltas)
    assert all(token["logprob"] <= 0 for token in tokens)
    assert last["reason"] == "length" and last["usage"]["completion_tokens"] == 6
    assert 0 < last["timings"]["time_to_first_token_seconds"] < 20


async def test_who_waits_is_told_how_many_go_first(settings, client, monkeypatch):
    monkeypatch.setattr(generation, "HEARTBEAT_SECONDS", 0.02)
    body = {"model": "tiny", "prompt": "A", "stopping": {"max_new_tokens": 65536}}
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                stream(client, "/api/generate", method="POST", json=body)
            )
            for _ in range(settings.num_slots + 1)
        ]
        *others, (_, last) = [await anext(events) for events in streams]
        assert {event["kind"] for _, event in others} == {"started"}
        assert last == {"kind": "queued", "requests_ahead": 0}


@pytest.mark.parametrize("heartbeat_seconds", [0.01, 20], ids=["begun", "not begun"])
async def test_a_generation_that_takes_too_long_ends(settings, monkeypatch, heartbeat_seconds):
    monkeypatch.setattr(generation, "HEARTBEAT_SECONDS", heartbeat_seconds)
    app = await App.start(settings.model_copy(update={"max_deadline_seconds": 0.3}))
    await app.models.load("tiny")
    (loaded,) = app.models.in_memory
    gate = held_steps(loaded.engine, monkeypatch)
    body = {"model": "tiny", "prompt": "A", "stopping": {"max_new_tokens": 3}}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.http_port}") as client:
        response = await client.post("/api/generate", json=body, timeout=20)
    if heartbeat_seconds < 1:
        error = json.loads(response.text.split("data: ")[-1])
        assert (response.status_code, error["kind"]) == (200, "error")
    else:
        error = response.json()
        assert response.status_code == 504
    assert error["reason"] == "DEADLINE_EXCEEDED"
    assert error["message"] == "the call took longer than the 0.3 s this server allows"
    assert not loaded.engine._streams
    counted = {"model": "tiny", "reason": "deadline"}
    assert app.metrics.registry.get_sample_value("nanogpt_requests_rejected_total", counted) == 1
    gate.set()
    await app.stop()


async def test_all_that_is_wrong_with_a_generation_is_said_at_once(client):
    response = await client.post(
        "/api/generate",
        json={
            "model": "tiny",
            "prompt": "9",
            "sampling": {"temperature": 3, "tmp": 1, "top_k": "all", "logit_bias": {"a": 1}},
            "stopping": {"max_new_tokens": 0, "stop_strings": "x", "stop_token_ids": [True]},
            "logprobs": "yes",
            "x": 1,
        },
    )
    assert response.status_code == 400
    assert {violation["field"] for violation in response.json()["violations"]} == {
        *("prompt", "sampling.tmp", "sampling.temperature", "sampling.top_k"),
        *("sampling.logit_bias", "stopping.max_new_tokens", "stopping.stop_strings"),
        *("stopping.stop_token_ids", "logprobs", "x"),
    }
    response = await client.post("/api/generate", json={"model": "nope"})
    assert (response.status_code, response.json()["reason"]) == (404, "MODEL_NOT_FOUND")
    response = await client.post(
        "/api/generate", content="[", headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400


async def test_a_visitor_who_leaves_frees_the_slot(running, client):
    body = {"model": "tiny", "prompt": "A", "stopping": {"max_new_tokens": 65536}}

    def running_requests():
        name = "nanogpt_num_requests_running"
        return running.metrics.registry.get_sample_value(name, {"model": "tiny"})

    async with stream(client, "/api/generate", method="POST", json=body) as events:
        await anext(events)
        await anext(events)
        assert running_requests() == 1
    await until(lambda: running_requests() == 0)


async def test_models_are_listed_loaded_and_exported(client):
    (model,) = (await client.get("/api/models")).json()["models"]
    assert (model["name"], model["state"], model["n_layer"]) == ("tiny", "UNLOADED", 2)
    loaded = (await client.post("/api/models/tiny/load", json={})).json()
    assert (loaded["state"], loaded["precision"]) == ("LOADED", "float32")
    wrong = await client.post("/api/models/tiny/load", json={"precision": "int3"})
    assert wrong.json()["violations"][0]["field"] == "precision"
    exported = await client.get("/api/models/tiny/export?format=hugging_face")
    assert 'filename="tiny-hugging_face.tar"' in exported.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(exported.content)) as archive:
        assert {"config.json", "model.safetensors"} <= set(archive.getnames())
        config = json.load(archive.extractfile("config.json"))
    assert config["n_layer"] == 2
    wrong = await client.get("/api/models/tiny/export?format=zip")
    assert wrong.json()["violations"][0]["field"] == "format"
    missing = await client.get("/api/models/nope/export?format=gguf")
    assert (missing.status_code, missing.json()["reason"]) == (404, "MODEL_NOT_FOUND")
    assert (await client.post("/api/models/tiny/unload", json={})).json()["state"] == "UNLOADED"


async def test_nobody_sees_the_text_of_an_unknown_exception(running, client, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(running.models, "list", broken)
    response = await client.get("/api/models")
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error_id"] in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"model": "tiny", "prompt": "\\ud800"}',
        '{"model": "tiny", "sampling": {"temperature": %s}}' % ("9" * 400),
        '{"model": "tiny", "sampling": {"logit_bias": {"1": %s}}}' % ("9" * 400),
        '{"model": "tiny", "stopping": {"max_new_tokens": %s}}' % ("9" * 400),
    ],
)
async def test_odd_bodies_are_refused(client, content):
    response = await client.post(
        "/api/generate", content=content, headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["reason"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("query", ["jobs?size=", "jobs/x/events?start=", "jobs/x/log?offset="])
async def test_odd_numbers_are_refused(client, query):
    for number in ("9" * 5000, "x", str(2**63)):
        response = await client.get(f"/api/{query}{number}")
        assert response.status_code == 400, response.text


async def test_it_says_what_this_server_is(running, client):
    about = (await client.get("/api/about")).json()
    assert about["grpc_address"] == f"127.0.0.1:{running.grpc_port}" and about["device"] == "cpu"
