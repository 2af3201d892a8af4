"""A full disk is a limit that callers are told of, not a bug of ours."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ResourceExhausted


@contextmanager
def full_disk_is_exhausted() -> Iterator[None]:
    """Raises ResourceExhausted for a disk, quota or database that is full; the rest passes."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = (
            error.errno in (errno.ENOSPC, errno.EDQUOT)
            if isinstance(error, OSError)
            else error.sqlite_errorcode == sqlite3.SQLITE_FULL
        )
        if not full:
            raise
        raise ResourceExhausted("the server's disk is full", limit="disk") from None
