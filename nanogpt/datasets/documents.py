"""The documents of an upload, one after another, out of any format that holds several.

    tar       each .txt file is a document, and each line of a .jsonl, each row of a .parquet file
    jsonl     each line is a document
    parquet   each row is a document

A collection may be millions of documents from anywhere, so bytes that are no text become U+FFFD and
are counted, where a single text would be refused. Everything else that is wrong stops it, and the
error names the file, the line and the field. It does not know what becomes of the documents.
"""

import codecs
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO

from nanogpt.datasets.archive import members, shown
from nanogpt.datasets.dataset import BadDataset
from nanogpt.datasets.json_lines import read_json_lines
from nanogpt.datasets.parquet_file import read_parquet
from nanogpt.datasets.text_file import CHUNK_BYTES, ENCODINGS, REPLACEMENT, is_utf16

FORMATS = ("tar", "jsonl", "parquet")

_IN_MEMORY_BYTES = 1 << 20  # of a text in an archive; a larger one waits on the disk


class Documents:
    """Reads the documents of one upload and counts what it had to replace or leave out."""

    def __init__(
        self, format: str, *, field: str, encoding: str | None, scratch: Path, max_bytes: int
    ) -> None:
        """`field` holds the text of a line or row. `encoding` is that of .txt files, or None to
        find out, file by file. `scratch` is a folder for what does not fit into memory. An archive
        may unpack to `max_bytes`."""
        self._format, self._field, self._encoding = format, field, encoding
        self._scratch, self._max_bytes = scratch, max_bytes
        self.undecodable_characters = 0
        self.files_left_out = 0
        self.encodings: set[str] = set()
        """Of the documents so far."""

    def read(self, source: Path, progress: Callable[[int], None]) -> Iterator[str | None]:
        """The text of each document in pieces, and None at its end.

        `progress` gets the bytes of the file read so far. Raises BadDataset.
        """
        if self._format == "parquet":
            size_bytes = source.stat().st_size
            yield from self._parquet(source, "", lambda done: progress(int(done * size_bytes)))
            return
        with source.open("rb") as file:
            if self._format == "tar":
                yield from self._archive(file, progress)
            else:
                for piece in self._json_lines(file, ""):
                    progress(file.tell())
                    yield piece

    def _archive(self, file: BinaryIO, progress: Callable[[int], None]) -> Iterator[str | None]:
        for name, member in members(file, max_bytes=self._max_bytes, progress=progress):
            base = PurePosixPath(name).name
            kind = None if base.startswith(".") else PurePosixPath(base).suffix.lower()
            if member is not None and kind == ".txt":
                yield from self._text(member, name)
            elif member is not None and kind == ".jsonl":
                yield from self._json_lines(member, f"{shown(name)}, ")
            elif member is not None and kind == ".parquet":
                yield from self._parquet_member(member, name)
            else:
                self.files_left_out += 1

    def _text(self, member: BinaryIO, name: str) -> Iterator[str | None]:
        with SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(self._scratch)) as copy:
            encoding = self._encoding or _copy_and_detect(member, copy)
            if self._encoding:
                shutil.copyfileobj(member, copy, CHUNK_BYTES)
            copy.seek(0)
            if is_utf16(copy.read(2)):
                raise BadDataset(f"{shown(name)} is UTF-16; save it as UTF-8")
            copy.seek(0)
            self.encodings.add(encoding)
            chunks = iter(lambda: copy.read(CHUNK_BYTES), b"")
            yield from self._replacing(chunks, encoding)
        yield None

    def _replacing(self, chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
        """The text of the chunks, counting each U+FFFD that was not in it before."""
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        written, tail, at_start = REPLACEMENT.encode(), b"", True
        for chunk in chain(chunks, [b""]):
            text = decoder.decode(chunk, final=not chunk)
            self.undecodable_characters += text.count(REPLACEMENT)
            if encoding == "utf-8":
                self.undecodable_characters -= (tail + chunk).count(written)
                tail = (tail + chunk)[-2:]
            if at_start and text:
                at_start = False
                text = text.removeprefix("\ufeff")
            yield text

    def _json_lines(self, file: BinaryIO, where: str) -> Iterator[str | None]:
        self.encodings.add("utf-8")
        for text, undecodable in read_json_lines(file, self._field, where):
            self.undecodable_characters += undecodable
            yield text
            yield None

    def _parquet_member(self, member: BinaryIO, name: str) -> Iterator[str | None]:
        """A Parquet file is read from its end, so it is copied out of the archive first."""
        path = self._scratch / "member.parquet"
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(member, copy, CHUNK_BYTES)
            yield from self._parquet(path, f"{shown(name)} ", lambda done: None)
        finally:
            path.unlink(missing_ok=True)

    def _parquet(
        self, path: Path, where: str, progress: Callable[[float], None]
    ) -> Iterator[str | None]:
        self.encodings.add("utf-8")
        rows = read_parquet(
            path, self._field, where or "it ", max_bytes=self._max_bytes, progress=progress
        )
        for text, undecodable in rows:
            self.undecodable_characters += undecodable
            yield text
            yield None


def _copy_and_detect(member: BinaryIO, copy: IO[bytes]) -> str:
    """Copies a text and returns the first encoding that all of it has, `utf-8` if there is none."""
    decoders = {name: codecs.getincrementaldecoder(name)() for name in ENCODINGS}
    while chunk := member.read(CHUNK_BYTES):
        copy.write(chunk)
        _drop_failing(decoders, chunk)
    _drop_failing(decoders, b"", final=True)
    return next(iter(decoders), "utf-8")


def _drop_failing(
    decoders: dict[str, codecs.IncrementalDecoder], chunk: bytes, final: bool = False
) -> None:
    for name, decoder in list(decoders.items()):
        try:
            decoder.decode(chunk, final)
        except UnicodeDecodeError:
            del decoders[name]
