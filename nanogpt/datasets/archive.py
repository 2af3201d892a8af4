"""Files of a tar archive, one after another, in memory that does not grow with the archive.

Nothing is ever written under a name that the archive chose: names only say what kind of file it is
and stand in errors. Links, devices and sparse files are left out, headers and the unpacked archive
are bounded, so neither a bomb nor a lie about a size costs more than reading the upload does.

    with open("texts.tar.gz", "rb") as file:
        for name, member in members(file, max_bytes=1 << 30, progress=print):
            print(name, member.read(100))
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Protocol, cast

from nanogpt.datasets.dataset import BadDataset, TooMuchText

CHUNK_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 20
"""What stands between two files: a name, perhaps a long one, and attributes."""

MAX_XZ_MEMORY_BYTES = 128 << 20
"""`xz -9` needs 65 MiB: https://tukaani.org/xz/xz-javadoc (LZMA2 dictionary of 64 MiB)."""

DAMAGED = "the archive is damaged or breaks off"
_DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def members(
    file: BinaryIO, *, max_bytes: int, progress: Callable[[int], None]
) -> Iterator[tuple[str, BinaryIO | None]]:
    """Name and content of each entry that is no folder; None for what is not a regular file.

    A content can be read until the next one is asked for. `progress` gets the bytes of `file` read
    so far. Raises BadDataset if this is no whole tar archive, TooMuchText if it unpacks to more
    than `max_bytes`.
    """
    tape = _Tape(file, max_bytes, progress)
    last = ""
    with _explained(last), tape.header():
        archive = tarfile.TarFile(fileobj=cast(IO[bytes], tape), mode="r")
    while True:
        with _explained(last), tape.header():
            entry = archive.next()
        if entry is None:
            break
        # it keeps every header, so that one could go back
        archive.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
        last = entry.name
        if entry.isdir():
            continue
        content = archive.extractfile(entry) if entry.isreg() and not entry.issparse() else None
        yield entry.name, cast("BinaryIO | None", content)
    if not tape.at_end_mark:  # tarfile takes an archive that was cut off for one that ends there
        raise BadDataset(f"{DAMAGED}{_after(last)}")


def shown(name: str) -> str:
    """A name out of an archive, as errors show it."""
    return repr(name if len(name) <= 80 else f"{name[:40]}...{name[-40:]}")


def _after(last: str) -> str:
    return f" after {shown(last)}" if last else ""


@contextmanager
def _explained(last: str) -> Iterator[None]:
    """Turns whatever tarfile raises about a damaged header into BadDataset."""
    try:
        yield
    except BadDataset:
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # tarfile parses headers as they come, so a hostile one can raise nearly anything
        raise BadDataset(f"{DAMAGED}{_after(last)}") from error


class _Tape(io.RawIOBase):
    """An archive, unpacked as it is read: forwards only, and never more than `max_bytes`."""

    def __init__(self, file: BinaryIO, max_bytes: int, progress: Callable[[int], None]) -> None:
        self._file = file
        self._unpacked = _unpack(file)
        self._max_bytes = max_bytes
        self._progress = progress
        self._position = 0
        self._header_bytes_left: int | None = None
        self.at_end_mark = False
        """Whether the last thing read was a block of zeros, with which every archive ends."""

    @contextmanager
    def header(self) -> Iterator[None]:
        """Within this, at most MAX_HEADER_BYTES may be read."""
        self._header_bytes_left = MAX_HEADER_BYTES
        try:
            yield
        finally:
            self._header_bytes_left = None

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Skips forward; a header that asks to go back lies."""
        if whence != io.SEEK_SET or position < self._position:
            raise BadDataset("a header of the archive lies about a size")
        while self._position < position:
            if not self._take(min(position - self._position, CHUNK_BYTES)):
                break  # tarfile finds out
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes. Fewer at the end, which no content may reach."""
        if self._header_bytes_left is not None:
            self._header_bytes_left -= size
            if size < 0 or self._header_bytes_left < 0:
                raise BadDataset(
                    f"the archive has a header of more than {MAX_HEADER_BYTES:,} bytes"
                )
        parts = []
        while size > 0 and (part := self._take(min(size, CHUNK_BYTES))):
            parts.append(part)
            size -= len(part)
        if size > 0 and self._header_bytes_left is None:
            raise BadDataset(DAMAGED)
        data = b"".join(parts)
        self.at_end_mark = len(data) == tarfile.BLOCKSIZE and not any(data)
        return data

    def _take(self, size: int) -> bytes:
        try:
            data = self._unpacked.read(size)
        except _DECOMPRESSION_ERRORS as error:
            raise BadDataset(DAMAGED) from error
        self._position += len(data)
        if self._position > self._max_bytes:
            raise TooMuchText(f"the archive unpacks to more than {self._max_bytes:,} bytes")
        self._progress(self._file.tell())
        return data


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _unpack(file: BinaryIO) -> _Readable:
    """The file without its compression, which its first bytes tell."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ\x00"):
        return _Xz(file)
    return file


class _Xz:
    """An xz file read forwards, with bounded memory, which `lzma.LZMAFile` does not offer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = _xz_stream()

    def read(self, size: int) -> bytes:
        while True:
            data = b""
            if self._stream.eof:  # another stream may follow, perhaps after zeros
                data = self._stream.unused_data.lstrip(b"\0") or self._file.read(CHUNK_BYTES)
                if not data:
                    return b""
                self._stream = _xz_stream()
            elif self._stream.needs_input:
                data = self._file.read(CHUNK_BYTES)
                if not data:
                    raise EOFError
            if unpacked := self._stream.decompress(data, size):
                return unpacked


def _xz_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)
