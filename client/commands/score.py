"""Command that says how likely a model finds a text."""

from typing import cast

from client.arguments import Options
from client.commands.connection import connect
from client.commands.figures import count
from client.commands.output import print_json
from client.commands.sample import text_of
from client.exit_code import ExitCode
from protos.nanogpt.v1.inference_pb2 import ScoreResponse


def score(options: Options) -> ExitCode:
    text = text_of(options.arguments[0])
    with connect(options) as client:
        found = client.score(
            text,
            model=options.text("model"),
            top_logprobs=cast(int | None, options["top_logprobs"]),
        )
    if options.flag("json"):
        print_json(found)
    else:
        print(_summary(found))
    return ExitCode.DONE


def _summary(found: ScoreResponse) -> str:
    return (
        f"{count(len(found.logprobs))} tokens at step {count(found.weight_version)}: "
        f"loss {found.loss:.4f} nats a token, perplexity {found.perplexity:.4g}, "
        f"{found.bits_per_byte:.4f} bits a byte"
    )
