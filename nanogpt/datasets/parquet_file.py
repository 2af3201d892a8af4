"""Texts out of a column of a Parquet file, read by a process of its own: see parquet_rows.

Needs pyarrow, which is never loaded here, so that no file can harm who reads it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from nanogpt.datasets.dataset import BadDataset, MissingParquet, TooMuchText
from nanogpt.datasets.parquet_rows import FRAME, Kind
from nanogpt.datasets.text_file import decode_with_replacement

MAX_ROW_BYTES = 64 << 20


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
    command = (sys.executable, "-m", "nanogpt.datasets.parquet_rows")
    with subprocess.Popen(
        (*command, str(path), column, str(max_bytes)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            yield from _texts(process.stdout, where, progress)
        finally:
            process.kill()


def _texts(
    frames: IO[bytes], where: str, progress: Callable[[float], None]
) -> Iterator[tuple[str, int]]:
    rows, rows_read = 1, 0
    while True:
        head = frames.read(FRAME.size)
        if len(head) < FRAME.size:  # it crashed, or wanted more memory than it may have
            raise BadDataset(f"{where}is not a whole Parquet file, or takes too much memory")
        kind, size_bytes = FRAME.unpack(head)
        if size_bytes > MAX_ROW_BYTES:
            raise BadDataset(f"{where}has more than {MAX_ROW_BYTES:,} bytes in row {rows_read + 1}")
        data = frames.read(size_bytes)
        match kind:
            case Kind.TEXT | Kind.NULL:
                yield decode_with_replacement(data, "utf-8")
                rows_read += 1
                progress(min(rows_read / rows, 1.0))
            case Kind.ROWS:
                rows = max(json.loads(data), 1)
            case Kind.TOO_MUCH:
                raise TooMuchText(where + data.decode())
            case Kind.BAD:
                raise BadDataset(where + data.decode())
            case Kind.END:
                return
