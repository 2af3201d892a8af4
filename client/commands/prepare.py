"""Command that makes datasets: uploads text, or asks for one that ships with the server."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from client.arguments import Options, UsageError
from client.commands.connection import connect
from client.commands.datasets import summary
from client.commands.help import PROGRAM
from client.commands.output import print_json
from client.commands.upload_bar import UploadBar
from client.exit_code import ExitCode
from client.requests import CHUNK_BYTES
from client.text_folder import TEXT_SUFFIXES, folder_archive, folder_files
from protos.nanogpt.v1.datasets_pb2 import Dataset

SHIPPED = {
    "python_reference": "the Python language reference, one token a character",
    "shakespeare_char": "tiny Shakespeare, one token a character",
    "shakespeare": "tiny Shakespeare, GPT-2's tokens",
}
FIXED_BY_SHIPPED = ("tokenizer", "val_ratio", "encoding", "text_field", "max_documents")
OF_DOCUMENTS = ("text_field", "max_documents")


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of text that can be uploaded."""

    description: str
    format: str
    suffixes: tuple[str, ...] = ()
    """Of the files to take, for a folder."""
    output: str = ""
    """Name of the dataset, instead of one made of PATH."""
    tokenizer: str = "char"
    val_ratio: float = 0.1


SOURCES = {
    "textfile": Source("any text", "text"),
    "folder": Source(f"a folder of {', '.join(TEXT_SUFFIXES)} files", "tar", TEXT_SUFFIXES),
    "jsonl": Source("one JSON object a line, one document each", "jsonl"),
    "parquet": Source("a Parquet file, one document a row", "parquet"),
    # https://github.com/karpathy/nanoGPT/blob/master/data/openwebtext/prepare.py
    "openwebtext": Source(
        "a folder like openwebtext's, of .txt, .tar and .parquet files: GPT-2's tokens, "
        "0.05 % for validation",
        "tar",
        (".txt", ".tar", ".parquet"),
        output="openwebtext",
        tokenizer="gpt2",
        val_ratio=0.0005,
    ),
}


def prepare(options: Options) -> ExitCode:
    if not options.arguments:
        print(_choices(), file=sys.stderr)
        return ExitCode.USAGE
    what, *path = options.arguments
    if what in SOURCES:
        if not path:
            kind = "folder" if SOURCES[what].suffixes else "file"
            raise UsageError(f"prepare {what} needs PATH: the {kind}")
        dataset = _upload(options, what, SOURCES[what], Path(path[0]))
    elif what in SHIPPED:
        if path:
            raise UsageError(f"{path[0]!r} is one word too many; a local copy is --file=PATH")
        dataset = _make_shipped(options, what)
    else:
        raise UsageError(f"cannot prepare {what!r}.\n{_choices()}")
    for warning in dataset.report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.flag("json"):
        print_json(dataset)
    else:
        print(f"dataset {dataset.name}: {summary(dataset)}")
        print(f"Train on it: {PROGRAM} train --dataset={dataset.name}")
    return ExitCode.DONE


def _choices() -> str:
    uploads = {f"{name} PATH": source.description for name, source in SOURCES.items()}
    lines = [f"  {name:17} {description}" for name, description in {**uploads, **SHIPPED}.items()]
    return "\n".join([f"usage: {PROGRAM} prepare WHAT, where WHAT is", *lines])


def _upload(options: Options, what: str, source: Source, path: Path) -> Dataset:
    if "file" in options.explicit:
        raise UsageError(f"--file is for the datasets that ship; {what} takes PATH")
    if what == "textfile":
        for key in OF_DOCUMENTS:
            if key in options.explicit:
                raise UsageError(f"--{key} is for several documents; textfile has one")
    name = options.text("output") or source.output or dataset_name(path)
    size_bytes, pieces = _folder(path, source) if source.suffixes else _file(path)
    with connect(options) as client, UploadBar(client, name, path.name, size_bytes) as bar:
        return client.create_dataset(
            name,
            bar.counted(pieces),
            tokenizer=str(options.given.get("tokenizer", source.tokenizer)),
            val_ratio=cast(float, options.given.get("val_ratio", source.val_ratio)),
            encoding=options.text("encoding"),
            format=source.format,
            text_field=options.text("text_field"),
            max_documents=cast("int | None", options["max_documents"]),
        )


def _make_shipped(options: Options, name: str) -> Dataset:
    for key in FIXED_BY_SHIPPED:
        if key in options.explicit:
            raise UsageError(f"{key} of {name} is fixed; leave --{key} out")
    output = options.text("output")
    path = Path(options.text("file")) if "file" in options.given else None
    size_bytes, pieces = (0, iter(())) if path is None else _file(path)
    label = name if path is None else path.name
    with connect(options) as client, UploadBar(client, output or name, label, size_bytes) as bar:
        return client.create_dataset(output, bar.counted(pieces), shipped=name)


def dataset_name(path: Path) -> str:
    """A valid name made of the file's: `Alice's Book.txt` -> `alice_s_book`."""
    name = re.sub(r"[^a-z0-9_-]+", "_", path.stem.lower()).strip("_-")[:63]
    if not name:
        raise UsageError(f"no name can be made of {path.name!r}; give one: --output=NAME")
    return name


def _file(path: Path) -> tuple[int, Iterator[bytes]]:
    """Size of a file in bytes, and its pieces."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    return path.stat().st_size, pieces()


def _folder(path: Path, source: Source) -> tuple[int, Iterator[bytes]]:
    """Bytes of the files in a folder, and the pieces of their archive, which is a little larger."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder")
    sizes = [file.stat().st_size for file in folder_files(path, source.suffixes)]
    if not sizes:
        raise UsageError(f"there is no {' or '.join(source.suffixes)} file below {path}")
    return sum(sizes), folder_archive(path, source.suffixes)
