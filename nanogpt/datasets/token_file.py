"""Token files in parts: text in any portions becomes ids, appended as little-endian uint16."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from nanogpt.datasets.dataset import TOKEN_DTYPE
from nanogpt.datasets.piece_buffer import PieceBuffer
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer

_COPY_BYTES = 1 << 20


class TokenWriter:
    """Appends the tokens of a text, or of several documents, to a file."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file = file
        self._tokenizer = tokenizer
        # where one character is one token, every place is good to cut
        self._pieces = PieceBuffer() if tokenizer.kind == GPT2Tokenizer.kind else None
        self._last = "\n"  # character before a document that begins now
        self._newline_due = False
        self.num_tokens = 0

    def write(self, text: str) -> None:
        """The next portion of a text or document. Raises BadDataset if it cannot be cut."""
        if text and self._newline_due:
            text, self._newline_due = f"\n{text}", False
        self._last = text[-1:] or self._last
        self._encode(text if self._pieces is None else self._pieces.push(text))

    def finish(self) -> None:
        """The text is complete."""
        if self._pieces is not None:
            self._encode(self._pieces.flush())

    def end_document(self) -> None:
        """The document is complete: the token that says so follows, as openwebtext has it.

        A vocabulary without one gets a newline before the next document, unless one stands there.
        https://github.com/karpathy/nanoGPT/blob/master/data/openwebtext/prepare.py
        """
        self.finish()
        if self._tokenizer.end_of_text_id is not None:
            self._append([self._tokenizer.end_of_text_id])
        else:
            self._newline_due = self._last != "\n"

    def _encode(self, text: str) -> None:
        self._append(self._tokenizer.encode(text))

    def _append(self, token_ids: list[int]) -> None:
        ids = np.array(token_ids, dtype=TOKEN_DTYPE)
        self._file.write(ids.tobytes())
        self.num_tokens += len(ids)


class TokenReader:
    """The ids of a file, read in parts. Mapped ones would count as memory of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_tokens = path.stat().st_size // TOKEN_DTYPE.itemsize

    def part(self, start: int, count: int) -> NDArray[np.uint16]:
        """Ids from `start` on, (count,), fewer at the end of the file."""
        offset = start * TOKEN_DTYPE.itemsize
        return np.fromfile(self._path, dtype=TOKEN_DTYPE, count=count, offset=offset)

    def parts(self, count: int) -> Iterator[NDArray[np.uint16]]:
        """All ids, `count` at a time."""
        return (self.part(start, count) for start in range(0, self.num_tokens, count))


def move_tail(source: Path, target: Path, num_tokens: int) -> None:
    """Moves the last tokens of a file into a new one."""
    size_bytes = num_tokens * TOKEN_DTYPE.itemsize
    with source.open("rb+") as whole, target.open("wb") as tail:
        start = whole.seek(0, 2) - size_bytes
        whole.seek(start)
        while chunk := whole.read(_COPY_BYTES):
            tail.write(chunk)
        whole.truncate(start)
