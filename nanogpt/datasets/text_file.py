"""A text file of any size, read in small pieces and decoded exactly as its bytes are.

Line ends stay what they are. The encoding is UTF-8, with or without a byte order mark, or
Windows-1252, and never the platform's default.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from nanogpt.datasets.dataset import BadDataset

CHUNK_BYTES = 1 << 16  # so that no step of the pure Python around it holds the GIL for long
REPLACEMENT = "\ufffd"
ENCODINGS = {"utf-8": "UTF-8", "cp1252": "Windows-1252"}

T = TypeVar("T")


def read_bytes(source: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    """The file in chunks; before each of them `progress` gets the bytes read with it."""
    position = 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            position += len(chunk)
            progress(position)
            yield chunk


def decode(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Their text, without UTF-8's byte order mark. Raises BadDataset with the byte's offset."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0  # of the next byte that the decoder gets
    held = b""  # the beginning of a character, kept back by the decoder

    def decode_next(chunk: bytes, final: bool) -> str:
        try:
            return decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            # `error.object` is what the decoder held, then the chunk
            wrong, offset = error.object[error.start], position - len(held) + error.start
            raise BadDataset(
                f"byte 0x{wrong:02x} at offset {offset} is not {ENCODINGS[encoding]}"
            ) from error

    at_start = True
    for chunk in chunks:
        text = decode_next(chunk, final=False)
        position += len(chunk)
        held = decoder.getstate()[0]
        if at_start and text:
            at_start = False
            text = text.removeprefix("\ufeff")  # no single byte of Windows-1252 is this character
        yield text
    yield decode_next(b"", final=True)


def in_its_encoding(source: Path, read: Callable[[str], T]) -> T:
    """What `read` returns for `utf-8`, or for `cp1252` if it raises BadDataset for that.

    Nearly every sequence of bytes is Windows-1252, and hardly any text in it is valid UTF-8. Raises
    BadDataset if the file can be read with neither.
    """
    with source.open("rb") as file:
        if is_utf16(file.read(2)):
            raise BadDataset("the text is UTF-16; save it as UTF-8")
    problems = []
    for encoding in ENCODINGS:
        try:
            return read(encoding)
        except BadDataset as problem:
            problems.append(str(problem))
    raise BadDataset("the text cannot be decoded: " + ", and ".join(problems))


def is_utf16(start: bytes) -> bool:
    """Whether a file that starts so is UTF-16, of which neither encoding makes text."""
    return start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_with_replacement(data: bytes, encoding: str) -> tuple[str, int]:
    """The text, U+FFFD where bytes are none, and how many of those were not in the text before."""
    text = data.decode(encoding, "replace")
    undecodable = text.count(REPLACEMENT)
    if undecodable and encoding == "utf-8":
        # an invalid sequence never contains a whole U+FFFD: its first byte begins a character
        undecodable -= data.count(REPLACEMENT.encode())
    return text, undecodable
