"""Training benchmarks as clients see them: the answer, the process, and its end."""

import asyncio
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from serving import detail, refused, served, until, violations

from nanogpt.training.run_directory import ExitCode
from protos.nanogpt.v1 import inference_pb2 as pb
from server.benchmark.training import COMMAND

Code = grpc.StatusCode

TINY = {
    "batch_size": 2,
    "block_size": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "dtype": "float32",
    "warmup_steps": 1,
    "steps": 3,
}


def request(**fields) -> pb.BenchmarkRequest:
    return pb.BenchmarkRequest(training=pb.TrainingBenchmark(**{**TINY, **fields}))


def process_that(code: str) -> tuple[str, ...]:
    """Stands in for the benchmark's process."""
    return (sys.executable, "-c", code)


async def test_a_step_is_measured(tmp_path):
    async with served(tmp_path, training_command=COMMAND) as server:
        responses = [r async for r in server.inference.Benchmark(request())]
        assert len(responses) == 1
        result, device = responses[0].training, responses[0].device
        assert 0 < result.step_seconds.p50 <= result.step_seconds.p99
        assert result.tokens_per_second == pytest.approx(16 / result.step_seconds.p50)
        assert result.loss > 0 and result.flops_per_step > 0 and result.parameter_count > 16 * 50304
        assert result.peak_memory_bytes > 1 << 20
        assert (device.type, device.dtype) == ("cpu", "float32")


async def test_not_while_a_job_trains(tmp_path):
    async def training() -> set[str]:
        return {"mine"}

    async with served(tmp_path, models_in_training=training) as server:
        error = await refused(server.inference.Benchmark(request()))
        assert error.code() is Code.FAILED_PRECONDITION
        assert detail(error, error_details_pb2.PreconditionFailure).violations[0].subject == "mine"


async def test_wrong_fields_and_unknown_datasets(tmp_path):
    async with served(tmp_path) as server:
        call = server.inference.Benchmark(request(batch_size=0, dropout=1.0, compile="maybe"))
        found = violations(await refused(call))
        assert set(found) == {"training.batch_size", "training.dropout", "training.compile"}
        for dataset in ("nope", "../nope"):
            error = await refused(server.inference.Benchmark(request(dataset=dataset)))
            assert error.code() is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("exit_code", "code"),
    [
        (ExitCode.BAD_CONFIG, Code.INVALID_ARGUMENT),
        (ExitCode.BAD_DATASET, Code.INVALID_ARGUMENT),
        (ExitCode.DIVERGED, Code.INVALID_ARGUMENT),
        (ExitCode.OUT_OF_MEMORY, Code.RESOURCE_EXHAUSTED),
        (1, Code.INTERNAL),
        (-9, Code.INTERNAL),
    ],
)
async def test_failures_are_explained(tmp_path, exit_code, code):
    process = process_that(
        "import os, sys; print('noise\\nerror: a sentence', file=sys.stderr, flush=True);"
        f"code = {int(exit_code)};"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    )
    async with served(tmp_path, training_command=process) as server:
        error = await refused(server.inference.Benchmark(request()))
        assert error.code() is code
        assert ("a sentence" in error.details()) == (code is not Code.INTERNAL)


async def test_the_process_ends_with_the_call_and_two_never_run_at_once(tmp_path):
    started = tmp_path / "started"
    process = process_that(
        "import os, pathlib, sys, time; sys.stdin.read();"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    async with served(tmp_path, training_command=process) as server:
        call = server.inference.Benchmark(request())
        reading = asyncio.create_task(refused(call))
        await until(lambda: started.exists() and started.read_text() != "")
        child = psutil.Process(int(started.read_text()))
        own = Path("/proc/self/oom_score_adj")  # the child ends first if memory runs out
        if own.exists():
            score = int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())
            assert score == min(int(own.read_text()) + 500, 1000)
        error = await refused(server.inference.Benchmark(request()))
        assert error.code() is Code.FAILED_PRECONDITION
        call.cancel()
        await asyncio.wait([reading])
        await until(lambda: not child.is_running())
