"""Command that measures: generation at several concurrencies, or one training step."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from client.arguments import Options, UsageError
from client.client import Client
from client.commands.connection import connect
from client.commands.figures import count, percent, size, spread
from client.commands.output import print_fields, print_json, print_table
from client.commands.table import INFERENCE_BENCH_KEYS, PICTURE, TRAINING_BENCH_KEYS
from client.exit_code import ExitCode
from client.picture import Line, Panel, draw
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
    "whole ms p50/p95/p99",
    "goodput",
    "MFU",
    "MBU",
    "windows",
)


def bench(options: Options) -> ExitCode:
    training = options.text("mode") == "training"
    _check_mode(options, training)
    picture = None if training else _picture_path(options)
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
    if picture is not None:
        picture.write_text(draw_inference(responses))
    return ExitCode.DONE


def _picture_path(options: Options) -> Path | None:
    """Where to draw, None if nowhere. Raises UsageError before anything is measured."""
    if options["output"] is None:
        return None
    path = Path(options.text("output"))
    if path.suffix != ".svg":
        raise UsageError(f"output must end with .svg, got {path.name}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"output: there is no folder {path.parent}")
    return path


def draw_inference(responses: Sequence[BenchmarkResponse]) -> str:
    """Throughput and latencies over concurrency, as an SVG document."""
    results = [response.inference for response in responses]
    places = [count(result.concurrency) for result in results]
    first = [result.time_to_first_token_seconds for result in results]
    between = [result.inter_token_latency_seconds for result in results]
    panels = [
        Panel(
            "Throughput", "tokens/s", places, [Line("all", [r.tokens_per_second for r in results])]
        ),
        Panel("First token", "ms", places, _spread_lines(first)),
        Panel("Between tokens", "ms", places, _spread_lines(between)),
    ]
    device = responses[0].device
    precision = results[0].precision or device.dtype
    title = f"{results[0].model}, {precision} on {device.name}, {device.threads} threads"
    return draw(title, panels, "concurrent requests")


def _spread_lines(found: Sequence[Percentiles]) -> list[Line]:
    return [
        Line(name, [getattr(percentiles, name) * 1e3 for percentiles in found])
        for name in ("p50", "p95", "p99")
    ]


def _check_mode(options: Options, training: bool) -> None:
    """Raises UsageError for a key of the other mode, or for what no request can say."""
    mode = "inference" if training else "training"
    other = (*INFERENCE_BENCH_KEYS, PICTURE) if training else TRAINING_BENCH_KEYS
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
        spread(result.time_to_first_token_seconds),
        spread(result.inter_token_latency_seconds),
        spread(result.e2e_latency_seconds),
        _goodput(result),
        percent(result.mfu) if result.HasField("mfu") else "",
        percent(result.mbu) if result.HasField("mbu") else "",
        _windows(result),
    )


def _goodput(result: InferenceResult) -> str:
    """Requests a second that met the objectives, empty if there were none."""
    if not result.HasField("goodput_requests_per_second"):
        return ""
    return f"{result.goodput_requests_per_second:,.2f}/s"


def _windows(result: InferenceResult) -> str:
    """How many windows were measured and, if that can be told, whether the last ones agree."""
    if not result.HasField("is_stable"):
        return count(result.windows)
    return f"{count(result.windows)} {'stable' if result.is_stable else 'UNSTABLE'}"


def _training_fields(result: TrainingResult) -> Iterator[tuple[str, str]]:
    yield "step ms p50/p95/p99", spread(result.step_seconds)
    yield "tokens/s", f"{result.tokens_per_second:,.1f}"
    yield "GFLOP a step", f"{result.flops_per_step / 1e9:,.1f}"
    yield "MFU", percent(result.mfu) if result.HasField("mfu") else ""
    yield "loss", f"{result.loss:.4f}"
    yield "peak memory", size(result.peak_memory_bytes)
    yield "parameters", count(result.parameter_count)
