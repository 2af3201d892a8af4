"""Texts out of a column of a Parquet file. Needs pyarrow, which is loaded when it is first used.

Rows are read in batches of about 8 MB. What a file says about its size is compared with the limit
before anything is unpacked; a file that lies about it can make pyarrow unpack one page, which the
format bounds at 2 GiB. https://parquet.apache.org/docs/file-format/data-pages/
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanogpt.datasets.dataset import BadDataset, MissingParquet, TooMuchText
from nanogpt.datasets.text_file import decode_with_replacement

BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_MAX_FOOTER_STRING_BYTES = 16 << 20
_MAX_FOOTER_ITEMS = 1 << 20


def check_parquet() -> None:
    """Raises MissingParquet unless pyarrow is installed."""
    if find_spec("pyarrow") is None:
        raise MissingParquet(
            "this server cannot read Parquet: its operator has to install "
            "nanogpt-service[server,parquet]"
        )


def read_parquet(
    path: Path, column: str, where: str, *, max_bytes: int, progress: Callable[[float], None]
) -> Iterator[tuple[str, int]]:
    """The text of each row, empty for null, and how many of its characters were undecodable.

    `where` stands before errors. `progress` gets the fraction of rows read. Raises BadDataset if
    the file is damaged or has no such column of text, TooMuchText if it declares that the column
    has more than `max_bytes`, MissingParquet.
    """
    check_parquet()
    import pyarrow as pa

    with _explained(where):
        file, sizes = _open(path, column, where)
    if sum(sizes) > max_bytes:
        raise TooMuchText(f"{where}has more than {max_bytes:,} bytes in its column {column!r}")
    rows_read, rows = 0, max(file.metadata.num_rows, 1)
    for group, size_bytes in enumerate(sizes):
        batch_rows = BATCH_BYTES * file.metadata.row_group(group).num_rows // max(size_bytes, 1)
        batches = file.iter_batches(
            batch_size=max(1, min(batch_rows, MAX_BATCH_ROWS)),
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )
        while True:
            with _explained(where):
                batch = next(batches, None)
            if batch is None:
                break
            texts = batch.column(0)
            with _explained(where):
                # as bytes, since nothing has checked that they are UTF-8
                values = texts.dictionary.cast(pa.large_binary())
            for index in texts.indices:
                if index.is_valid:
                    yield decode_with_replacement(values[index.as_py()].as_py(), "utf-8")
                else:
                    yield "", 0
            rows_read += batch.num_rows
            progress(min(rows_read / rows, 1.0))


def _open(path: Path, column: str, where: str) -> tuple[Any, list[int]]:
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
        raise BadDataset(f"{where}has no column {column!r}; its columns are {names}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadDataset(f"{where}has {kind} in its column {column!r}, not text")
    # as a dictionary, so that a text that stands in a million rows is held once
    file = pq.ParquetFile(path, read_dictionary=[column], **limits)
    sizes = []
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        sizes += [c.total_uncompressed_size for c in chunks if c.path_in_schema == column]
    return file, sizes


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns what pyarrow raises about a damaged file into BadDataset."""
    import pyarrow as pa

    try:
        yield
    except BadDataset:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
        raise BadDataset(f"{where}is not a whole Parquet file") from error
