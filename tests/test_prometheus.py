"""Prometheus accepts what a live server exposes, by the judgement of its own tool."""

import shutil
import subprocess

import httpx
import pytest

from protos.nanogpt.v1 import inference_pb2 as pb
from protos.nanogpt.v1 import inference_pb2_grpc


@pytest.fixture
async def exposition(app, channel) -> str:
    """/metrics of a server that has answered a request."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = pb.GenerateRequest(model="tiny", stopping=pb.StoppingParams(max_new_tokens=8))
    assert [message async for message in stub.Generate(request)]
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{app.http_port}/metrics")
    assert answer.status_code == 200
    return answer.text


async def test_promtool_accepts_live_metrics(exposition: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr


async def test_a_request_is_visible(exposition: str) -> None:
    samples = dict(
        line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#")
    )
    assert float(samples['nanogpt_generation_tokens_total{model="tiny"}']) == 8
    assert float(samples['nanogpt_time_to_first_token_seconds_count{model="tiny"}']) == 1
    assert float(samples['nanogpt_inter_token_latency_seconds_count{model="tiny"}']) == 7
    for name in (
        "prompt_tokens_cached_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    ):
        assert f'nanogpt_{name}{{model="tiny"}}' in samples
    assert float(samples['nanogpt_num_requests_running{model="tiny"}']) == 0
    assert samples["nanogpt_train_mfu_ratio"] == "NaN"  # nothing trains: unknown, not zero
