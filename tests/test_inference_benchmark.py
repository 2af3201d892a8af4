"""Inference benchmarks, through a server and alone."""

import asyncio
import threading
from array import array
from dataclasses import replace

import grpc
import pytest
import torch
from serving import (
    CONFIG,
    LONG,
    model_store,
    refused,
    sample,
    served,
    until,
    violations,
    write_checkpoint,
)

from nanogpt.device import Peak
from nanogpt.flops import decode_bytes_per_step, decode_flops_per_token
from nanogpt.option import InvalidConfig
from protos.nanogpt.v1 import inference_pb2 as pb
from server.benchmark import inference as module
from server.benchmark.inference import InferenceBenchmark, InferenceLoad, PeakMeter, percentiles
from server.models import kernels as kernels_module
from server.models.kernels import Kernels
from server.serving.request_stream import RequestStream

PEAK = Peak(flops=1e9, bytes_per_second=1e9, source="configured")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "models" / "tiny")
    monkeypatch.setattr(module, "measure_peak", lambda device, dtype: PEAK)
    return tmp_path


async def test_one_result_for_each_concurrency(folder):
    async with served(folder) as server:
        load = pb.InferenceBenchmark(
            model="tiny", concurrency=[1, 3], prompt_tokens=5, completion_tokens=12, requests=7
        )
        call = server.inference.Benchmark(pb.BenchmarkRequest(inference=load))
        responses = [response async for response in call]
        assert [response.inference.concurrency for response in responses] == [1, 3]
        for response in responses:
            result, device = response.inference, response.device
            assert (result.model, result.completed) == ("tiny", 7)
            assert result.requests_per_second == pytest.approx(7 / result.duration_seconds)
            assert result.tokens_per_second == pytest.approx(7 * 12 / result.duration_seconds)
            for summary in (result.time_to_first_token_seconds, result.inter_token_latency_seconds):
                assert 0 < summary.p50 <= summary.p95 <= summary.p99
            assert result.mfu > 0 and result.mbu > 0
            assert (device.type, device.dtype) == ("cpu", "float32")
            assert device.threads >= 1 and device.name
            assert (device.peak_flops, device.peak_source) == (1e9, "configured")
        # the warm-up is not counted, but it is served: 1 and 3 requests of 8 tokens
        tokens = sample(server.metrics, "generation_tokens_total", model="tiny")
        assert tokens == 2 * 7 * 12 + (1 + 3) * 8
        await until(lambda: server.load() == (0, 0, 0))


async def test_tokens_that_are_read_together_have_gaps_too(folder, monkeypatch):
    take = RequestStream.next

    async def late(stream):
        await until(lambda: stream.has_ended)  # the loop was busy: all tokens are there
        return await take(stream)

    monkeypatch.setattr(RequestStream, "next", late)
    async with model_store(folder) as store, store.acquire("tiny") as model:
        load = InferenceLoad(completion_tokens=2, requests=1)
        result = await InferenceBenchmark(model, load, PEAK).measure(1)
        assert result.inter_token_latency_seconds.p50 > 0


async def test_defaults(folder):
    async with served(folder) as server:
        request = pb.BenchmarkRequest()
        request.inference.completion_tokens = 2
        responses = [response async for response in server.inference.Benchmark(request)]
        assert [r.inference.concurrency for r in responses] == [1, 8]
        assert [r.inference.completed for r in responses] == [4, 32]


async def test_a_cancelled_benchmark_cancels_its_requests(folder):
    async with served(folder) as server:
        load = pb.InferenceBenchmark(concurrency=[4], completion_tokens=4096, requests=10_000)
        call = server.inference.Benchmark(pb.BenchmarkRequest(inference=load))
        reading = asyncio.create_task(refused(call))
        await until(lambda: sample(server.metrics, "generation_tokens_total", model="tiny") > 100)
        call.cancel()
        await asyncio.wait([reading])
        await until(lambda: server.load() == (0, 0, 0))


async def test_a_benchmark_is_bound_by_the_queue_like_all(folder):
    async with served(folder, num_slots=1, max_waiting=1) as server:
        request = pb.BenchmarkRequest(inference=pb.InferenceBenchmark(concurrency=[2]))
        endless = pb.StoppingParams(max_new_tokens=LONG, ignore_end_of_text=True)
        other = server.inference.Generate(pb.GenerateRequest(stopping=endless))
        await other.read()
        error = await refused(server.inference.Benchmark(request))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        other.cancel()
        await until(lambda: server.load() == (0, 0, 0))
        assert [response async for response in server.inference.Benchmark(request)]


async def test_more_requests_than_the_queue_ever_takes_are_refused_at_once(folder):
    async with served(folder, num_slots=1, max_waiting=1) as server:
        load = pb.InferenceBenchmark(concurrency=[2, 3, 256], prompt_tokens=CONFIG.block_size)
        error = await refused(server.inference.Benchmark(pb.BenchmarkRequest(inference=load)))
        found = violations(error)
        assert set(found) == {
            "inference.concurrency[1]",
            "inference.concurrency[2]",
            "inference.prompt_tokens",
        }
        assert found["inference.concurrency[1]"].startswith("must be at most 2, ")
        assert found["inference.concurrency[1]"].endswith(", got 3")
        assert server.load() == (0, 0, 0)


async def test_wrong_fields_are_named(folder):
    async with served(folder) as server:
        load = pb.InferenceBenchmark(
            concurrency=[1, 0, 257], prompt_tokens=0, completion_tokens=1, requests=0
        )
        error = await refused(server.inference.Benchmark(pb.BenchmarkRequest(inference=load)))
        assert set(violations(error)) == {
            "inference.concurrency[1]",
            "inference.concurrency[2]",
            "inference.prompt_tokens",
            "inference.completion_tokens",
            "inference.requests",
        }
        load = pb.InferenceBenchmark(prompt_tokens=CONFIG.block_size)
        error = await refused(server.inference.Benchmark(pb.BenchmarkRequest(inference=load)))
        assert set(violations(error)) == {"inference.prompt_tokens"}


def test_too_many_concurrencies():
    with pytest.raises(InvalidConfig, match="1 to 16"):
        InferenceLoad(concurrency=(1,) * 17)


async def test_utilization_follows_from_the_speed(folder):
    load = InferenceLoad(concurrency=(2,), prompt_tokens=1, completion_tokens=9, requests=4)
    async with model_store(folder) as store, store.acquire("tiny") as model:
        result = await InferenceBenchmark(model, load, PEAK).measure(2)
        unknown = InferenceBenchmark(model, load, Peak(None, None, ""))
        without_peak = await unknown.measure(2)
    # one token of the prompt and all but the last sampled one are computed
    flops = sum(decode_flops_per_token(CONFIG, context) for context in range(1, 10))
    assert result.mfu == pytest.approx(result.requests_per_second * flops / 1e9)
    assert without_peak.mfu is None and without_peak.mbu is None


async def test_windows_are_repeated_until_the_last_three_agree(folder, monkeypatch):
    asked, threads = [], set()

    def agree(windows):
        asked.append([len(window.laps) for window in windows])
        threads.add(threading.get_ident())
        return len(asked) >= 5  # after four windows, and in their summary

    monkeypatch.setattr(module, "are_stable", agree)
    async with model_store(folder) as store, store.acquire("tiny") as model:
        load = InferenceLoad(completion_tokens=2, requests=5, max_windows=10)
        result = await InferenceBenchmark(model, load, PEAK).measure(2)
        assert [len(windows) for windows in asked] == [0, 1, 2, 3, 3, 3]  # older ones are gone
        assert asked[-1] == [5, 5, 5]
        assert threading.get_ident() not in threads
        assert (result.windows, result.completed, result.is_stable) == (4, 15, True)
        assert result.tokens_per_second == pytest.approx(15 * 2 / result.duration_seconds)
        monkeypatch.setattr(module, "are_stable", lambda windows: False)
        load = InferenceLoad(completion_tokens=2, requests=5, max_windows=3)
        result = await InferenceBenchmark(model, load, PEAK).measure(2)
        assert (result.windows, result.completed, result.is_stable) == (3, 15, False)
        load = InferenceLoad(completion_tokens=2, requests=5, max_windows=2)
        result = await InferenceBenchmark(model, load, PEAK).measure(2)
        assert (result.windows, result.completed, result.is_stable) == (2, 10, None)


def window(seconds: float, *latencies: float) -> "module._Window":
    return module._Window(
        [module._Lap(latency, array("d", [0.0])) for latency in latencies], seconds
    )


def test_stable_is_three_windows_within_a_tenth():
    first, same, slower = window(1.0, 0.5, 0.5), window(1.09, 0.5, 0.52), window(1.2, 0.5, 0.5)
    longer = window(1.0, 0.6, 0.6)
    assert module.are_stable([first, same, first])
    assert module.are_stable([slower, longer, first, same, first])  # only the last ones count
    assert not module.are_stable([first, first])
    assert not module.are_stable([first, slower, first])
    assert not module.are_stable([first, longer, first])


async def test_goodput_counts_requests_that_met_every_objective(folder):
    async with served(folder) as server:

        async def measure(**objectives: float) -> pb.InferenceResult:
            load = pb.InferenceBenchmark(
                concurrency=[2], completion_tokens=4, requests=6, **objectives
            )
            call = server.inference.Benchmark(pb.BenchmarkRequest(inference=load))
            (response,) = [response async for response in call]
            return response.inference

        within, never = 3600.0, 1e-9
        result = await measure()
        assert not result.HasField("goodput_requests_per_second")
        assert (result.windows, result.HasField("is_stable")) == (1, False)
        assert result.precision == "float32"
        for summary in (result.time_per_output_token_seconds, result.e2e_latency_seconds):
            assert 0 < summary.p50 <= summary.p95 <= summary.p99
        whole = result.e2e_latency_seconds.p50
        assert whole > result.time_to_first_token_seconds.p50
        assert whole > 3 * result.time_per_output_token_seconds.p50
        all_good = await measure(
            time_to_first_token_objective_seconds=within,
            time_per_output_token_objective_seconds=within,
        )
        assert all_good.goodput_requests_per_second == all_good.requests_per_second
        for objectives in (
            {"time_to_first_token_objective_seconds": never},
            {"time_per_output_token_objective_seconds": never},
        ):
            none_good = await measure(**objectives)
            assert none_good.goodput_requests_per_second == 0
            assert none_good.HasField("goodput_requests_per_second")


async def test_wrong_windows_and_objectives_are_named(folder):
    async with served(folder) as server:
        load = pb.InferenceBenchmark(
            max_windows=101,
            time_to_first_token_objective_seconds=0,
            time_per_output_token_objective_seconds=float("nan"),
        )
        error = await refused(server.inference.Benchmark(pb.BenchmarkRequest(inference=load)))
        assert set(violations(error)) == {
            "inference.max_windows",
            "inference.time_to_first_token_objective_seconds",
            "inference.time_per_output_token_objective_seconds",
        }


async def test_fewer_bits_are_fewer_bytes_to_read(folder):
    load = InferenceLoad(concurrency=(1,), completion_tokens=2, requests=2)
    async with (
        model_store(folder, precision="bfloat16") as store,
        store.acquire("tiny") as model,
    ):
        benchmark = InferenceBenchmark(model, load, PEAK)
        result = await benchmark.measure(1)
        assert result.precision == "bfloat16"
        context = load.prompt_tokens + 1
        read = decode_bytes_per_step(
            CONFIG, bytes_per_weight=2, bytes_per_kv_value=4, batch=1, context_tokens=context
        )
        assert result.mbu == pytest.approx(result.tokens_per_second * read / 1e9)


async def test_peaks_of_a_type_are_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "measure_peak", lambda device, dtype: calls.append(dtype) or PEAK)
    meter = PeakMeter()
    device = torch.device("cpu")
    types = ["float32", "bfloat16", "integer", "bfloat16", "float32"]
    peaks = await asyncio.gather(*(meter.peak(device, arithmetic) for arithmetic in types))
    unknown = Peak(flops=None, bytes_per_second=1e9, source="configured")
    assert peaks == [PEAK, PEAK, unknown, PEAK, PEAK]
    assert calls == [torch.float32, torch.bfloat16]


async def test_utilization_is_of_the_arithmetic_that_weights_are_multiplied_in(
    folder, kernels, monkeypatch
):
    monkeypatch.setattr(kernels_module, "cached_kernels", lambda folder: folder)
    monkeypatch.setattr(kernels_module, "Library", lambda path: kernels)
    peaks = {torch.float32: 1e9, torch.bfloat16: 2e9}
    monkeypatch.setattr(
        module, "measure_peak", lambda device, dtype: replace(PEAK, flops=peaks[dtype])
    )
    load = pb.InferenceBenchmark(concurrency=[1], completion_tokens=2, requests=1)
    for precision, dtype, peak in (
        ("float32", "float32", 1e9),
        ("bfloat16", *(("bfloat16", 2e9) if kernels.multiplies_bfloat16 else ("float32", 1e9))),
        ("int8", "integer", None),
        ("int4", "integer", None),
    ):
        native = Kernels(folder)
        async with served(folder, precision=precision, kernels=native) as server:
            call = server.inference.Benchmark(pb.BenchmarkRequest(inference=load))
            (response,) = [response async for response in call]
        native.close()
        assert response.device.dtype == dtype
        assert response.inference.HasField("mfu") == (peak is not None)
        assert response.inference.HasField("mbu")
        assert response.device.HasField("peak_flops") == (peak is not None)
        assert response.device.peak_flops == (peak or 0)


def test_percentiles_are_interpolated():
    summary = percentiles(range(101))
    assert (summary.p50, summary.p95, summary.p99) == (50, 95, 99)
