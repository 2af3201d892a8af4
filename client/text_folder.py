"""A folder of texts as a tar archive, built while it is sent: no copy, and little memory.

client.create_dataset("books", folder_archive(Path("books")), format="tar")
"""

import errno
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from client.requests import CHUNK_BYTES

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
"""Of files that a server makes documents of."""


def folder_files(folder: Path, suffixes: Iterable[str] = TEXT_SUFFIXES) -> Iterator[Path]:
    """The files below a folder that end so, in the order of their names, hidden ones left out."""
    wanted = tuple(suffixes)
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(wanted) and not name.startswith("."):
                yield Path(parent, name)


def folder_archive(folder: Path, suffixes: Iterable[str] = TEXT_SUFFIXES) -> Iterator[bytes]:
    """A tar archive of those files, in pieces of about 1 MiB.

    Of a `.tar` file, if that is among the suffixes, come the texts in it. Raises OSError if a file
    cannot be read or becomes shorter meanwhile.
    """
    return _joined(_archive(folder, suffixes))


def _archive(folder: Path, suffixes: Iterable[str]) -> Iterator[bytes]:
    for path in folder_files(folder, suffixes):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() == ".tar":
            yield from _texts_in(path, name)
        else:
            with path.open("rb") as file:
                yield from _entry(name, os.fstat(file.fileno()).st_size, file)
    yield bytes(2 * tarfile.BLOCKSIZE)  # the end of every archive


def _texts_in(path: Path, name: str) -> Iterator[bytes]:
    try:
        with tarfile.open(path, "r|*") as archive:  # read forwards, so nothing is kept
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
                if member.isreg() and member.name.lower().endswith(TEXT_SUFFIXES):
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file has content"
                    yield from _entry(f"{name}/{member.name}", member.size, file)
    except tarfile.TarError as error:
        raise OSError(errno.EIO, f"{name} is not a whole tar archive") from error


def _entry(name: str, size_bytes: int, file: IO[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = left = size_bytes
    yield info.tobuf(tarfile.PAX_FORMAT)
    while left:
        piece = file.read(min(left, CHUNK_BYTES))
        if not piece:
            raise OSError(errno.EIO, f"{name} became shorter while it was sent")
        left -= len(piece)
        yield piece
    yield bytes(-size_bytes % tarfile.BLOCKSIZE)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces: a message for each of a million small files would be slow."""
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) >= CHUNK_BYTES:
            yield bytes(joined)
            joined.clear()
    yield bytes(joined)
