"""The data folder belongs to one server at a time."""

import fcntl
from pathlib import Path
from typing import IO

from server.errors import CannotStart


def claim(data_dir: Path) -> IO[str]:
    """Makes the folder if need be and holds it until the returned file is closed.

    The kernel lets go if the process dies. Raises CannotStart if another server has the folder or
    it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "server.lock").open("w")
    except OSError as error:
        raise CannotStart(f"cannot use the data folder {data_dir}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStart(
            f"another server uses the data folder {data_dir}; stop it or choose another folder"
        ) from None
    return lock
