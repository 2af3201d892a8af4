"""How the server's models are doing, as lines of text, once a second."""

from client.arguments import Options
from client.commands.connection import connect
from client.commands.figures import count, percent, size, spread
from client.commands.output import print_json
from client.exit_code import ExitCode
from protos.nanogpt.v1.training_pb2 import ModelFigures, ServingFigures


def watch_serving(options: Options) -> ExitCode:
    with connect(options) as client:
        for event in client.watch_serving():
            if options.flag("json"):
                print_json(event)
            else:
                print("\n".join(_lines(event.serving)), flush=True)
    return ExitCode.DONE


def _lines(figures: ServingFigures) -> list[str]:
    lines = [_model_text(model) for model in figures.models] or ["no model is loaded"]
    if figures.skipped:
        seconds = "1 second" if figures.skipped == 1 else f"{count(figures.skipped)} seconds"
        lines.insert(0, f"too slow for {seconds}: left out")
    return lines


def _model_text(model: ModelFigures) -> str:
    parts = [
        f"{model.model}@{count(model.weight_version)}",
        f"{count(model.running)} running, {count(model.waiting)} waiting",
        f"{count(round(model.generation_tokens_per_second))} tokens/s",
    ]
    if model.HasField("time_to_first_token_seconds"):
        parts.append(f"first token {spread(model.time_to_first_token_seconds)} ms")
    if model.HasField("inter_token_latency_seconds"):
        parts.append(f"gap {spread(model.inter_token_latency_seconds)} ms")
    parts.append(f"KV cache {percent(model.kv_cache_usage_ratio)}")
    if model.HasField("prefix_cache_hit_ratio"):
        parts.append(f"prefix cache {percent(model.prefix_cache_hit_ratio)}")
    return "  ".join([*parts, size(model.memory_bytes)])
