"""Documents on their way: gathered from an upload into one file, read from it again.

The file is UTF-8 with a byte after each document that UTF-8 never has, so that a document needs no
length and may be of any size. What the first reading has to find out is found out on the way in.
"""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from nanogpt.datasets.dataset import TooMuchText
from nanogpt.datasets.text_file import read_bytes

END = b"\xff"  # https://www.rfc-editor.org/rfc/rfc3629#section-3: "FE, FF never appear in UTF-8"


class Spool:
    """Takes documents in pieces and writes them to a file, at most `max_bytes` of UTF-8."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self.size_bytes = 0
        self.characters = 0
        self.documents = 0
        self.empty_documents = 0
        self.vocabulary: set[str] = set()
        self.joined_by_newline = False
        """Whether a document that another one follows does not end its last line."""
        self._is_new = True  # nothing of the document has been written yet
        self._last = ""  # character of the document that is being written, or of the one before

    def write(self, text: str) -> None:
        """The next piece of a document. Raises TooMuchText."""
        if not text:
            return
        if self._is_new and self.documents and self._last != "\n":
            self.joined_by_newline = True
        self._is_new, self._last = False, text[-1]
        self.characters += len(text)
        self.vocabulary.update(text)
        self._append(text.encode())

    def end_document(self) -> None:
        """The document is complete. One without text is counted and leaves no trace."""
        if self._is_new:
            self.empty_documents += 1
            return
        self.documents += 1
        self._is_new = True
        self._append(END)

    def _append(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise TooMuchText(f"the upload unpacks to more than {self._max_bytes:,} bytes of text")
        self._file.write(data)


def read_spool(path: Path, progress: Callable[[int], None]) -> Iterator[str | None]:
    """The text of each document in pieces, and None at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for chunk in read_bytes(path, progress):
        *ends, rest = chunk.split(END)
        for end in ends:
            yield decoder.decode(end, final=True)
            yield None
        yield decoder.decode(rest)
