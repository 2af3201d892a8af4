"""A text file of any size, read in small pieces and decoded exactly as its bytes are.

Line ends stay what they are. The encoding is UTF-8, with or without a byte order mark, or
Windows-1252, and never the platform's default.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanogpt.datasets.dataset import BadDataset

CHUNK_BYTES = 1 << 16  # so that no step of the pure Python around it holds the GIL for long
ENCODINGS = {"utf-8": "UTF-8", "cp1252": "Windows-1252"}


def read_bytes(source: Path, progress: Callable[[float], None]) -> Iterator[bytes]:
    """The file in chunks; before each of them `progress` gets the fraction read with it."""
    size_bytes = source.stat().st_size
    position = 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            position += len(chunk)
            progress(min(position / max(size_bytes, 1), 1.0))
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


def detect_encoding(source: Path, progress: Callable[[float], None]) -> str:
    """`utf-8` if the whole file is valid UTF-8, else `cp1252`. Raises BadDataset if it is neither.

    Nearly every sequence of bytes is Windows-1252, and hardly any text in it is valid UTF-8.
    """
    with source.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise BadDataset("the text is UTF-16; save it as UTF-8")
    problems = []
    for encoding in ENCODINGS:
        try:
            for _ in decode(read_bytes(source, progress), encoding):
                pass
            return encoding
        except BadDataset as problem:
            problems.append(str(problem))
    raise BadDataset("the text cannot be decoded: " + ", and ".join(problems))
