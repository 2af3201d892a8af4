"""Command that measures: generation at several concurrencies, or one training step."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from client.arguments import Options, UsageError
from client.client import Client
from client.commands.connection import connect
from client.commands.figures import count, milliseconds, percent, size
from client.commands.output import print_fields, print_json, print_table
from client.commands.table import INFERENCE_BENCH_KEYS, TRAINING_BENCH_KEYS
from client.exit_code import ExitCode
from protos.nanogpt.v1.inference_pb2 import (
    BenchmarkResponse,
    Device,
    InferenceBenchmark,
    InferenceResult,
    Percentiles,
    TrainingBenchmark,
    TrainingResult,
)

INFERENCE_COLUMNS = (
    "concurrency",
    "requests",
    "tokens/s",
    "requests/s",
    "first token ms p50/p95/p99",
    "between tokens ms p50/p95/p99",
    "MFU",
    "MBU",
)


def bench(options: Options) -> ExitCode:
    training = options.text("mode") == "training"
    _check_mode(options, training)
    with connect(options) as client:
        responses = []
        with Console(stderr=True).status("measuring"):
            for response in _measure(client, options, training):
                if options.flag("json"):
                    print_json(response)
                responses.append(response)
    if not options.flag("json"):
        print(_device_text(responses[0].device))
        if training:
            print_fields(_training_fields(responses[0].training))
        else:
            print_table(INFERENCE_COLUMNS, [_row(r.inference) for r in responses])
    return ExitCode.DONE


def _check_mode(options: Options, training: bool) -> None:
    """Raises UsageError for a key of the other mode, or for what no request can say."""
    other, mode = (
        (INFERENCE_BENCH_KEYS, "inference") if training else (TRAINING_BENCH_KEYS, "training")
    )
    for key in other:
        if key.name in options.explicit:
            raise UsageError(f"{key.name} is for --mode={mode}")
    if "device" in options.explicit and options["device"] != "auto":
        raise UsageError("device must be auto: a benchmark runs on the device that the server uses")


def _measure(client: Client, options: Options, training: bool) -> Iterator[BenchmarkResponse]:
    keys = TRAINING_BENCH_KEYS if training else INFERENCE_BENCH_KEYS
    asked: dict[str, Any] = options.some(keys)
    if "seed" in options.given:
        asked["seed"] = options["seed"]
    if not training:
        return client.benchmark_inference(InferenceBenchmark(**asked))
    asked.pop("device", None)  # always the server's
    if asked.pop("real_data", True) is False:
        asked.pop("dataset", None)
    return client.benchmark_training(TrainingBenchmark(**asked))


def _device_text(device: Device) -> str:
    text = f"{device.type} ({device.name}), {device.dtype}, {device.threads} threads"
    if device.HasField("peak_flops"):
        text += f", {device.peak_flops / 1e9:,.0f} GFLOP/s"
    if device.HasField("peak_bytes_per_second"):
        text += f", {device.peak_bytes_per_second / 1e9:,.0f} GB/s"
    return f"{text} {device.peak_source}".rstrip()


def _row(result: InferenceResult) -> tuple[str, ...]:
    return (
        count(result.concurrency),
        count(result.completed),
        f"{result.tokens_per_second:,.1f}",
        f"{result.requests_per_second:,.2f}",
        _spread(result.time_to_first_token_seconds),
        _spread(result.inter_token_latency_seconds),
        percent(result.mfu) if result.HasField("mfu") else "",
        percent(result.mbu) if result.HasField("mbu") else "",
    )


def _training_fields(result: TrainingResult) -> Iterator[tuple[str, str]]:
    yield "step ms p50/p95/p99", _spread(result.step_seconds)
    yield "tokens/s", f"{result.tokens_per_second:,.1f}"
    yield "GFLOP a step", f"{result.flops_per_step / 1e9:,.1f}"
    yield "MFU", percent(result.mfu) if result.HasField("mfu") else ""
    yield "loss", f"{result.loss:.4f}"
    yield "peak memory", size(result.peak_memory_bytes)
    yield "parameters", count(result.parameter_count)


def _spread(found: Percentiles) -> str:
    return " / ".join(milliseconds(seconds) for seconds in (found.p50, found.p95, found.p99))
