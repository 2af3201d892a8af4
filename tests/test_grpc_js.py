"""A client that shares no code with the server, in JavaScript, is served as ours is."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from protos.nanogpt.v1 import inference_pb2 as pb
from protos.nanogpt.v1 import inference_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
INSTALL_SECONDS = 90


@pytest.fixture
async def program(tmp_path: Path) -> Path:
    """A copy of tests/grpc_js with its packages, which npm keeps in a cache of its own."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path / "grpc_js"
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "tests" / "grpc_js", folder, ignore=ignored)
    # the packages need none of their install scripts
    command = ("npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
    try:
        code, _, errors = await run(*command, cwd=folder, timeout_seconds=INSTALL_SECONDS)
    except TimeoutError:
        pytest.skip(f"npm could not install grpc-js within {INSTALL_SECONDS} s")
    if code != 0:
        pytest.skip(f"npm cannot install grpc-js here: {errors.strip().splitlines()[-1:]}")
    return folder / "generate.mjs"


async def run(*command: str | Path, cwd: Path, timeout_seconds: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a program. Kills it and raises TimeoutError if it is slow."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout_seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_streams_deadlines_and_cancellation(app, channel, program: Path) -> None:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = pb.GenerateRequest(
        sampling=pb.SamplingParams(temperature=0),
        stopping=pb.StoppingParams(max_new_tokens=24, ignore_end_of_text=True),
    )
    expected = "".join([message.delta.text async for message in stub.Generate(request)])

    code, output, errors = await run(
        "node",
        program,
        f"127.0.0.1:{app.grpc_port}",
        ROOT,
        cwd=program.parent,
        timeout_seconds=60,
    )
    assert code == 0, errors
    outcome = json.loads(output)

    complete = outcome["complete"]
    assert complete["code"] == "OK"
    assert complete["started"]["model"] == "tiny"
    assert complete["started"]["weight_version"] == 10
    assert complete["text"] == expected
    assert len(complete["token_ids"]) == 24
    assert complete["finished"]["reason"] == "FINISH_REASON_LENGTH"
    assert complete["finished"]["usage"]["completion_tokens"] == 24

    for kind, code_name in [("cancelled", "CANCELLED"), ("expired", "DEADLINE_EXCEEDED")]:
        assert outcome[kind]["code"] == code_name
        assert outcome[kind]["finished"] is None
    assert outcome["cancelled"]["deltas"] >= 1

    async with asyncio.timeout(10):  # what nobody waits for frees its slot
        while app.metrics.registry.get_sample_value(
            "nanogpt_num_requests_running", {"model": "tiny"}
        ):
            await asyncio.sleep(0.01)
