"""Commands that exchange models with other systems: export and import."""

import json
import re
from pathlib import Path

from rich.progress import Progress

from client.arguments import Options, UsageError
from client.commands.connection import connect
from client.commands.figures import count, size
from client.commands.help import PROGRAM
from client.commands.output import print_json, transfer_bar
from client.exit_code import ExitCode
from protos.nanogpt.v1.models_pb2 import Model

BYTES_PER_WEIGHT = 4  # every format holds float32


def export(options: Options) -> ExitCode:
    name, format = options.arguments[0], options.text("format")
    folder = Path(options.text("output") or re.sub(r"[:@]", "_", name))
    with connect(options) as client, _bar(client.model(name)) as bar:
        try:
            paths = client.export_model(
                name, format, folder, progress=lambda moved: bar.advance(bar.task_ids[0], moved)
            )
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    for path in paths:
        size_bytes = path.stat().st_size
        if options.flag("json"):
            print(json.dumps({"file": str(path), "size_bytes": size_bytes}, ensure_ascii=False))
        else:
            print(f"{path}: {size(size_bytes)}")
    return ExitCode.DONE


def import_files(options: Options) -> ExitCode:
    name = options.arguments[0]
    with connect(options) as client:
        model = client.import_model(
            name,
            options.text("source") or name,
            options.text("format"),
            dataset=options.text("dataset"),
        )
    if options.flag("json"):
        print_json(model)
    else:
        print(
            f"model {model.name}: {count(model.parameter_count)} parameters, {model.tokenizer} "
            f"tokenizer\nSample from it: {PROGRAM} sample --model={model.name}"
        )
    return ExitCode.DONE


def _bar(model: Model) -> Progress:
    """A progress bar of the download.

    Its end is the size of the weights: a format adds little to them, and says it only at the end.
    """
    bar = transfer_bar()
    bar.add_task(f"exporting {model.name}", total=BYTES_PER_WEIGHT * model.parameter_count)
    return bar
