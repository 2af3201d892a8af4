"""Finds in a trainer's log what it said to the user and to the server.

A line of the trainer's own begins with one of two words, see nanogpt/training/run_directory.py;
all else is for those who read the log.
"""

import re
from pathlib import Path

from nanogpt.training.run_directory import ERROR_PREFIX, STARTED_PREFIX

_TAIL_BYTES = 1 << 16

LAST_LINES, LAST_CHARACTERS = 10, 1000
"""How much of a log's end goes into the error of a job whose trainer crashes over and over."""


def log_size(log: Path) -> int:
    """Bytes in the log; 0 if there is none yet, or none that can be read."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def error_line(log: Path, since: int) -> str | None:
    """The last line for the user that was written after the first `since` bytes, or None."""
    said = [line for line in _last_lines(log, since) if line.startswith(ERROR_PREFIX)]
    return said[-1].removeprefix(ERROR_PREFIX).strip() if said else None


def last_lines(log: Path, since: int) -> str:
    """The end of what was written after the first `since` bytes; empty if that is nothing."""
    return "\n".join(_last_lines(log, since)[-LAST_LINES:])[-LAST_CHARACTERS:]


def first_step(log: Path, since: int) -> int | None:
    """How many updates were done when the trainer started that wrote after `since` bytes.

    None if it has not said so yet.
    """
    try:
        with log.open("rb") as file:
            file.seek(since)
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = re.search(rf"^{STARTED_PREFIX}(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _last_lines(log: Path, since: int) -> list[str]:
    """Lines near the end, written after the first `since` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log_size(log) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:  # there is none, or none that can be read
        return []
