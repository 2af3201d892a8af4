"""Command that makes datasets: uploads a text file, or asks for one that ships with the server."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from rich.console import Console
from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from client.arguments import Options, UsageError
from client.commands.connection import connect
from client.commands.datasets import tokenizer_name
from client.commands.figures import count
from client.commands.help import PROGRAM
from client.commands.output import print_json
from client.exit_code import ExitCode
from client.requests import CHUNK_BYTES
from protos.nanogpt.v1.datasets_pb2 import Dataset

SHIPPED = {
    "python_reference": "the Python language reference, one token a character",
    "shakespeare_char": "tiny Shakespeare, one token a character",
    "shakespeare": "tiny Shakespeare, GPT-2's tokens",
}
FIXED_BY_SHIPPED = ("tokenizer", "val_ratio", "encoding")


def prepare(options: Options) -> ExitCode:
    if not options.arguments:
        print(_choices(), file=sys.stderr)
        return ExitCode.USAGE
    what, *path = options.arguments
    if what == "textfile":
        if not path:
            raise UsageError("prepare textfile needs PATH: the text file")
        dataset = _upload(options, Path(path[0]))
    elif what in SHIPPED:
        if path:
            raise UsageError(f"{path[0]!r} is one word too many; a local copy is --file=PATH")
        dataset = _make_shipped(options, what)
    else:
        raise UsageError(f"cannot prepare {what!r}.\n{_choices()}")
    if options.flag("json"):
        print_json(dataset)
    else:
        print(_dataset_text(dataset))
    return ExitCode.DONE


def _choices() -> str:
    lines = [f"  {name:17} {description}" for name, description in SHIPPED.items()]
    return "\n".join(
        [f"usage: {PROGRAM} prepare WHAT, where WHAT is", "  textfile PATH     any text", *lines]
    )


def _upload(options: Options, path: Path) -> Dataset:
    if "file" in options.explicit:
        raise UsageError("--file is for the datasets that ship; textfile takes PATH")
    name = options.text("output") or dataset_name(path)
    with connect(options) as client, _open(path) as file, _bar(path) as bar:
        return client.create_dataset(
            name,
            _pieces(file, bar),
            tokenizer=options.text("tokenizer"),
            val_ratio=cast(float, options["val_ratio"]),
            encoding=options.text("encoding"),
        )


def _make_shipped(options: Options, name: str) -> Dataset:
    for key in FIXED_BY_SHIPPED:
        if key in options.explicit:
            raise UsageError(f"{key} of {name} is fixed; it is for textfile")
    with connect(options) as client:
        if "file" not in options.given:
            return client.create_dataset(options.text("output"), shipped=name)
        path = Path(options.text("file"))
        with _open(path) as file, _bar(path) as bar:
            return client.create_dataset(options.text("output"), _pieces(file, bar), shipped=name)


def dataset_name(path: Path) -> str:
    """A valid name made of the file's: `Alice's Book.txt` -> `alice_s_book`."""
    name = re.sub(r"[^a-z0-9_-]+", "_", path.stem.lower()).strip("_-")[:63]
    if not name:
        raise UsageError(f"no name can be made of {path.name!r}; give one: --output=NAME")
    return name


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _bar(path: Path) -> Progress:
    """A progress bar of the upload on stderr, if that is a terminal."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    bar.add_task(f"uploading {path.name}", total=path.stat().st_size)
    return bar


def _pieces(file: BinaryIO, bar: Progress) -> Iterator[bytes]:
    """The file's bytes; moves the bar on as gRPC takes them."""
    task = bar.task_ids[0]
    while piece := file.read(CHUNK_BYTES):
        yield piece
        bar.update(task, advance=len(piece))
    bar.update(task, description="uploaded; the server makes tokens of it")


def _dataset_text(dataset: Dataset) -> str:
    return (
        f"dataset {dataset.name}: {count(dataset.characters)} characters ({dataset.encoding}), "
        f"{tokenizer_name(dataset)} vocabulary of {count(dataset.vocab_size)}, "
        f"{count(dataset.train_tokens)} train and {count(dataset.val_tokens)} val tokens\n"
        f"Train on it: {PROGRAM} train --dataset={dataset.name}"
    )
