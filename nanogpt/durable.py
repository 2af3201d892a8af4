"""Files that survive a power cut: written, flushed to the disk, and only then given their name.

Knows nothing about what is in the files. A reader sees the whole new file or the whole old one.
https://lwn.net/Articles/457667/

What lasts passes through `operation`, flushes and renames here and commits of the job database
there, so a campaign can end a process right before any of them and see whether all goes on.
"""

import os
import signal
from pathlib import Path

_operations_left: int | None = None


def crash_at(point: str | None, process: str) -> None:
    """Ends this process, as kill -9 does, before its durable operation of a certain number.

    `point` is PROCESS:NUMBER, such as `trainer:7`, and concerns this process if it is `process`.
    None is no crash. Raises ValueError if it is something else.
    """
    global _operations_left
    if point is not None:
        name, _, number = point.partition(":")
        if name not in ("server", "trainer") or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"must be server:NUMBER or trainer:NUMBER, got {point!r}")
        _operations_left = int(number) if name == process else None


def operation() -> None:
    """Right before what must survive a crash: a flush, a rename, a commit."""
    global _operations_left
    if _operations_left is not None:
        _operations_left -= 1
        if not _operations_left:
            os.kill(os.getpid(), signal.SIGKILL)


def sync(descriptor: int) -> None:
    """Waits until what was written to an open file is on the disk."""
    operation()
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the contents of a file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    sync_file(path)  # a folder is a file of names


def rename(old: Path, new: Path) -> None:
    """Gives a file or folder its name at once. It lasts once the folder above is synced."""
    operation()
    old.rename(new)


def write_file(path: Path, data: bytes) -> None:
    """Puts a file of these bytes at `path`, replacing what was there at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    sync_file(temporary)
    rename(temporary, path)
    sync_folder(path.parent)
