"""Finds in a trainer's log what it said to the user. The rest of the log stays in the log."""

from pathlib import Path

PREFIX = "error: "
"""Begins the one line that is written for the user; see nanogpt/training/run_directory.py."""

_TAIL_BYTES = 1 << 16


def log_size(log: Path) -> int:
    """Bytes in the log; 0 if there is none yet, or none that can be read."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def error_line(log: Path, since: int) -> str | None:
    """The last line for the user that was written after the first `since` bytes, or None."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log_size(log) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:  # there is none, or none that can be read
        return None
    said = [line for line in lines if line.startswith(PREFIX)]
    return said[-1].removeprefix(PREFIX).strip() if said else None
