"""Files that survive a power cut: written, flushed to the disk, and only then given their name.

Knows nothing about what is in the files. A reader sees the whole new file or the whole old one.
https://lwn.net/Articles/457667/
"""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Waits until the contents of a file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    sync_file(path)  # a folder is a file of names


def write_file(path: Path, data: bytes) -> None:
    """Puts a file of these bytes at `path`, replacing what was there at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    sync_file(temporary)
    temporary.rename(path)
    sync_folder(path.parent)
