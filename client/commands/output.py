"""Ways to print: JSON lines, tables and the progress of a transfer."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table


def print_json(message: Message) -> None:
    """One line with the message's fields as the protos name them, enums by name, times as ISO."""
    print(json.dumps(as_json(message), ensure_ascii=False), flush=True)


def as_json(message: Message) -> dict[str, Any]:
    """The message in protobuf's JSON, but 64-bit integers are numbers, as in every other JSON.

    https://protobuf.dev/programming-guides/json/ writes them as text.
    """
    fields = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(fields, message.DESCRIPTOR)


_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def _with_numbers(fields: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The fields of a message of that kind (its descriptor), 64-bit integers as numbers."""
    for name, value in fields.items():
        field = kind.fields_by_name[name]
        values = value if isinstance(value, list) else [value]
        if field.cpp_type in _WIDE:
            numbers = [int(text) for text in values]
            fields[name] = numbers if isinstance(value, list) else numbers[0]
        elif field.message_type is not None:
            inner = field.message_type
            if inner is not Timestamp.DESCRIPTOR and not inner.GetOptions().map_entry:
                for item in values:
                    _with_numbers(item, inner)
    return fields


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal, or as its contents if they go to a file."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")  # a narrow terminal shows names whole
    for row in rows:
        table.add_row(*row)
    console().print(table)


def transfer_bar() -> Progress:
    """A progress bar of bytes on stderr, if that is a terminal. Its tasks are the caller's."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def print_fields(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values below each other, without the empty ones."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value:
            table.add_row(name, value)
    console().print(table)


def console() -> Console:
    """A console that prints text as it is: no markup, no colouring of numbers, no cut lines."""
    width = None if sys.stdout.isatty() else 1000
    return Console(width=width, markup=False, highlight=False, emoji=False)
