"""Reads what a job's processes printed, as it grows, in pieces of whole characters.

It knows a file and a place in it; when a job has ended somebody else has to say.
"""

import codecs
from pathlib import Path

from server.jobs.trainer_log import log_size

PIECE_BYTES = 1 << 16
"""Largest piece, in bytes of the log."""


class LogReader:
    """One reader's place in a log. For one thread at a time."""

    def __init__(self, path: Path, offset: int) -> None:
        """Begins at byte `offset`; a negative one counts from the end."""
        self._path = path
        self.offset = offset if offset >= 0 else max(0, log_size(path) + offset)
        """Bytes that were read so far: where to go on."""

    def read(self, is_complete: bool) -> str:
        """The next piece; empty if there is nothing more.

        Bytes that are not UTF-8 become U+FFFD. A character whose last bytes are not there yet is
        left for later, unless the log `is_complete`.
        """
        if self.offset >= log_size(self._path):  # a caller's offset may be beyond what files have
            return ""
        with self._path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(PIECE_BYTES)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final=is_complete and len(data) < PIECE_BYTES)
        pending, _ = decoder.getstate()
        self.offset += len(data) - len(pending)
        return text
