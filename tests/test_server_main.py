"""`python -m server` as its own process."""

import asyncio
import os
import re
import signal
import sys
import threading
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.nanogpt.v1 import datasets_pb2, datasets_pb2_grpc, inference_pb2, inference_pb2_grpc
from server.__main__ import serve
from server.app import App
from server.errors import CannotStart
from server.settings import Settings

LINE = re.compile(r"serves gRPC on (\S+) and (http://\S+) \(device cpu, data in (.+)\)")


@asynccontextmanager
async def running(*arguments: str, **environment: str):
    """A process of the server, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        *arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def arguments(data_dir) -> list[str]:
    return [
        f"--data_dir={data_dir}",
        "--grpc_address=127.0.0.1:0",
        "--http_address=127.0.0.1:0",
        "--device=cpu",
        "--drain_seconds=30",
    ]


async def addresses(process) -> tuple[str, str]:
    """Where the server says that it listens, once it does."""
    line = (await process.stdout.readline()).decode()
    found = LINE.search(line)
    assert found, line or (await process.stderr.read()).decode()
    return found[1], found[2]


async def test_it_says_where_it_serves_answers_and_ends_on_sigterm(arguments, data_dir):
    async with running(*arguments) as process:
        grpc_address, http_address = await addresses(process)
        async with grpc.aio.insecure_channel(grpc_address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            text = ""
            request = inference_pb2.GenerateRequest(model="tiny", prompt="A")
            async for part in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
                text += part.delta.text
            assert len(text) == 128
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{http_address}/metrics")).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, log = await process.communicate()
        assert (process.returncode, output) == (0, b"")
        assert b"Traceback" not in log and b"ERROR" not in log
        assert b"method=/nanogpt.v1.InferenceService/Generate code=OK" in log
        assert str(data_dir).encode() not in log


async def test_ctrl_c_drains_and_a_second_one_ends_it_at_once(arguments, data_dir):
    async with running(*arguments) as process:
        grpc_address, _ = await addresses(process)
        async with grpc.aio.insecure_channel(grpc_address) as channel:
            # an upload that never ends: the drain would wait for it
            upload = datasets_pb2_grpc.DatasetServiceStub(channel).CreateDataset()
            spec = datasets_pb2.DatasetSpec(name="endless")
            await upload.write(datasets_pb2.CreateDatasetRequest(spec=spec))
            while not list((data_dir / "datasets").iterdir()):
                await asyncio.sleep(0.01)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGINT)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert process.returncode is None
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGINT
            upload.cancel()


async def test_a_second_server_on_one_port_fails_clearly(arguments, tmp_path):
    async with running(*arguments) as first:
        grpc_address, _ = await addresses(first)
        second = [*arguments, f"--grpc_address={grpc_address}", f"--data_dir={tmp_path / 'other'}"]
        async with running(*second) as process:
            _, log = await process.communicate()
        assert process.returncode == 1
        assert f"cannot listen on {grpc_address}".encode() in log
        assert b"Traceback" not in log


async def test_bad_settings_end_with_2_and_name_the_variable():
    async with running("--num_slot=3", NANOGPT_THREADS="many") as process:
        output, log = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    assert log.decode() == "--num_slot: no such setting; did you mean --num_slots?\n"
    async with running(NANOGPT_THREADS="many") as process:
        _, log = await process.communicate()
    assert process.returncode == 2
    assert log.startswith(b"NANOGPT_THREADS: must be a valid integer")


async def test_help_lists_the_settings():
    async with running("--help") as process:
        output, log = await process.communicate()
    assert (process.returncode, log) == (0, b"")
    assert b"--grpc_address=127.0.0.1:50051" in output


async def test_protobuf_in_pure_python_is_refused(arguments):
    async with running(*arguments, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python") as process:
        _, log = await process.communicate()
    assert process.returncode == 1
    assert b"pure Python" in log and b"Traceback" not in log


async def test_as_much_work_as_is_let_in_leaves_threads_to_the_rest(monkeypatch):
    async def start(settings):
        together = threading.Barrier(32)
        await asyncio.gather(*(asyncio.to_thread(together.wait, 10) for _ in range(32)))
        raise CannotStart("all at a time")

    monkeypatch.setattr(App, "start", start)
    with pytest.raises(CannotStart, match="all at a time"):
        await serve(Settings())
