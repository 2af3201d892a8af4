"""Commands about models: list, load, unload."""

from client.arguments import Options
from client.commands.connection import connect
from client.commands.figures import count, instant, word
from client.commands.help import PROGRAM
from client.commands.output import print_json, print_table
from client.exit_code import ExitCode
from protos.nanogpt.v1.models_pb2 import Model

COLUMNS = ("model", "state", "step", "val loss", "parameters", "context", "tokenizer", "created")


def models(options: Options) -> ExitCode:
    with connect(options) as client:
        found = client.models()
    if options.flag("json"):
        for model in found:
            print_json(model)
    elif found:
        print_table(COLUMNS, map(_row, found))
    else:
        print(f"There is no model yet; `{PROGRAM} train` makes one.")
    return ExitCode.DONE


def load(options: Options) -> ExitCode:
    with connect(options) as client:
        precision = options.text("precision")
        _show(client.load(options.arguments[0], precision=precision), options)
    return ExitCode.DONE


def unload(options: Options) -> ExitCode:
    with connect(options) as client:
        _show(client.unload(options.arguments[0]), options)
    return ExitCode.DONE


def _show(model: Model, options: Options) -> None:
    if options.flag("json"):
        print_json(model)
    else:
        held = f" in {model.precision}" if model.precision else ""
        print(f"{model.name}: {_state(model)}{held}")


def _state(model: Model) -> str:
    return word(Model.State.Name(model.state), "STATE_")


def _row(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        _state(model),
        count(model.step),
        f"{model.val_loss:.4f}" if model.HasField("val_loss") else "",
        count(model.parameter_count),
        count(model.config.block_size),
        model.tokenizer,
        instant(model.create_time),
    )
