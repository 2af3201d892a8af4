"""Writes the files of an exported model into a folder: all of them whole, or none.

Trusts no name that a server sends. Knows no gRPC.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from client.errors import NanoGPTError
from protos.nanogpt.v1.models_pb2 import ExportModelResponse

Progress = Callable[[int], None]
"""Hears of each piece that was written: its bytes."""


def write_files(
    pieces: Iterable[ExportModelResponse], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Paths of the files, in the order in which they came.

    They are written beside their places and renamed once the last piece is there; files of the
    same names are replaced. The folder is made if need be. Raises OSError, NanoGPTError for a name
    that leads out of the folder, and what reading the pieces raises.
    """
    files: dict[str, BinaryIO] = {}
    with ExitStack() as on_exit:
        staging: Path | None = None
        for piece in pieces:
            if staging is None:  # a call that is refused leaves no folder
                folder.mkdir(parents=True, exist_ok=True)
                staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
                on_exit.callback(shutil.rmtree, staging)
            if piece.file not in files:
                path = staging / _checked(piece.file)
                files[piece.file] = on_exit.enter_context(path.open("xb"))
            files[piece.file].write(piece.data)
            if progress is not None:
                progress(len(piece.data))
        for name, file in files.items():
            file.close()
            os.replace(file.name, folder / name)
    return [folder / name for name in files]


def _checked(name: str) -> str:
    """The name, if it is that of a file in the folder. Raises NanoGPTError."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise NanoGPTError(f"the server sent a file with the name {name!r}, which is no file's")
    return name
