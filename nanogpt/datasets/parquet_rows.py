"""The process that reads a Parquet file: its library parses what strangers sent, in C++.

    python -m nanogpt.datasets.parquet_rows PATH COLUMN MAX_BYTES

Writes to stdout a `Frame` for each row, and a last one that says how it ended. What a file says
about its size is compared with MAX_BYTES before anything is unpacked; for one that lies about it
there is a limit to the memory of this process. A crash or a bomb ends it and nothing else.
"""

import json
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt.datasets.dataset import BadDataset, TooMuchText

MAX_MEMORY_BYTES = 4 << 30
"""Of addresses, most of them never touched. A page, which is unpacked whole, may have 2 GiB:
https://parquet.apache.org/docs/file-format/data-pages/"""

BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_MAX_FOOTER_STRING_BYTES = 16 << 20
_MAX_FOOTER_ITEMS = 1 << 20


class Kind(IntEnum):
    """What the bytes of a frame are."""

    ROWS = 0
    """A JSON number: how many rows will come."""
    TEXT = 1
    """Of a row, as it is in the file: nothing has checked that it is UTF-8."""
    NULL = 2
    """Nothing: the row has no text."""
    END = 3
    """Nothing: all rows have been written."""
    BAD = 4
    """Why the file cannot be used, for who sent it."""
    TOO_MUCH = 5
    """Why it is too large, for who sent it."""


FRAME = struct.Struct("<BQ")
"""Before the bytes of a frame: its kind, and how many they are."""


def main(path: Path, column: str, max_bytes: int, out: BinaryIO) -> None:
    """Writes the frames of a file."""

    def write(kind: Kind, data: bytes = b"") -> None:
        out.write(FRAME.pack(kind, len(data)) + data)

    try:
        for row in _rows(path, column, max_bytes):
            if isinstance(row, int):
                write(Kind.ROWS, json.dumps(row).encode())
            else:
                write(Kind.NULL) if row is None else write(Kind.TEXT, row)
        write(Kind.END)
    except TooMuchText as error:
        write(Kind.TOO_MUCH, str(error).encode())
    except BadDataset as error:
        write(Kind.BAD, str(error).encode())
    out.flush()


def _rows(path: Path, column: str, max_bytes: int) -> Iterator[int | bytes | None]:
    """How many rows there are, then the text of each."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # reserves no addresses ahead
    with _explained():
        file, sizes = _open(path, column)
    if sum(sizes) > max_bytes:
        raise TooMuchText(f"has more than {max_bytes:,} bytes in its column {column!r}")
    yield file.metadata.num_rows
    for group, size_bytes in enumerate(sizes):
        batch_rows = BATCH_BYTES * file.metadata.row_group(group).num_rows // max(size_bytes, 1)
        batches = file.iter_batches(
            batch_size=max(1, min(batch_rows, MAX_BATCH_ROWS)),
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )
        while True:
            with _explained():
                batch = next(batches, None)
                if batch is None:
                    break
                indices = batch.column(0).indices
                values = batch.column(0).dictionary.cast(pa.large_binary())
            for index in indices:
                yield values[index.as_py()].as_py() if index.is_valid else None


def _open(path: Path, column: str) -> tuple[Any, list[int]]:
    """The file, and what each group of its rows declares as the column's unpacked size in bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits = {
        "buffer_size": _BUFFER_BYTES,  # pages are read one by one, not whole columns
        "thrift_string_size_limit": _MAX_FOOTER_STRING_BYTES,
        "thrift_container_size_limit": _MAX_FOOTER_ITEMS,
    }
    with pq.ParquetFile(path, **limits) as file:
        schema = file.schema_arrow
    if schema.names.count(column) != 1:
        names = ", ".join(map(repr, schema.names[:20]))
        raise BadDataset(f"has no column {column!r}; its columns are {names}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadDataset(f"has {kind} in its column {column!r}, not text")
    # as a dictionary, so that a text that stands in a million rows is held once
    file = pq.ParquetFile(path, read_dictionary=[column], **limits)
    sizes = []
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        sizes += [c.total_uncompressed_size for c in chunks if c.path_in_schema == column]
    return file, sizes


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what pyarrow raises about a damaged file into BadDataset."""
    import pyarrow as pa

    try:
        yield
    except BadDataset:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
        raise BadDataset("is not a whole Parquet file") from error


def _limit_memory() -> None:
    """Where the system can."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > MAX_MEMORY_BYTES:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, most))
        except (OSError, ValueError):  # macOS refuses
            pass


if __name__ == "__main__":
    _limit_memory()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.stdout.buffer)
