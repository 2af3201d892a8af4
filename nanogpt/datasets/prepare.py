"""A text file into a dataset folder, in memory that does not grow with the file.

The file is read twice (and once before that if its encoding has to be found out): for its length,
hash and vocabulary, then for its tokens. The first characters are the training split, the rest is
for validation, as nanoGPT has it; GPT-2's encoding begins anew at the border.

    prepare_text(Path("input.txt"), Path("data/datasets/shakespeare_char"), tokenizer="char")
"""

import errno
import hashlib
import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nanogpt.datasets.dataset import MAX_VOCAB_SIZE, TOKEN_DTYPE, BadDataset, DatasetMeta
from nanogpt.datasets.piece_buffer import PieceBuffer
from nanogpt.datasets.text_file import ENCODINGS, decode, detect_encoding, read_bytes
from nanogpt.durable import sync_file, sync_folder
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer


def prepare_text(
    source: Path,
    folder: Path,
    *,
    tokenizer: str,
    val_ratio: float = 0.1,
    encoding: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> DatasetMeta:
    """Writes `folder` out of a text file and returns what it holds.

    `tokenizer` is `char` or `gpt2`, `val_ratio` the fraction of the characters kept for validation,
    in (0, 1), `encoding` one of `utf-8` and `cp1252`, or None to find out. `progress` gets
    fractions in [0, 1] that never fall. The folder appears complete or not at all.

    Raises BadDataset if the text cannot become a dataset, FileExistsError if the folder exists.
    """
    if folder.exists():
        raise _exists(folder)
    if tokenizer not in (CharTokenizer.kind, GPT2Tokenizer.kind):
        raise BadDataset(f"tokenizer must be char or gpt2, got {tokenizer!r}")
    if not 0 < val_ratio < 1:
        raise BadDataset(f"val_ratio must be in (0, 1), got {val_ratio}")
    if encoding is not None and encoding not in ENCODINGS:
        raise BadDataset(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}")
    report = progress if progress is not None else lambda fraction: None
    if encoding is None:
        encoding = detect_encoding(source, lambda fraction: report(0.0))

    survey = _survey(source, encoding, lambda fraction: report(fraction / 2))
    train_characters = split_point(survey.characters, val_ratio)
    if not 0 < train_characters < survey.characters:
        raise BadDataset(
            f"a text of {survey.characters} characters is too short to split: "
            f"{train_characters} to train on, {survey.characters - train_characters} to validate"
        )
    chosen = _tokenizer(tokenizer, survey.vocabulary)
    with _written_aside(folder) as aside:
        texts = decode(read_bytes(source, lambda fraction: report((1 + fraction) / 2)), encoding)
        train_tokens, val_tokens = _write_splits(texts, train_characters, chosen, aside)
        meta = DatasetMeta(
            tokenizer=chosen.to_json(),
            vocab_size=chosen.vocab_size,
            train_tokens=train_tokens,
            val_tokens=val_tokens,
            characters=survey.characters,
            val_ratio=val_ratio,
            encoding=encoding,
            source_sha256=survey.sha256,
            create_time=time.time(),
        )
        (aside / "meta.json").write_text(json.dumps(meta.to_json(), indent=2), "utf-8")
    report(1.0)
    return meta


def split_point(characters: int, val_ratio: float) -> int:
    """How many of the characters are for training: nanoGPT's `int(n * 0.9)` at a ratio of 0.1.

    Computed with the decimal number that the caller wrote, since in binary 10 * (1 - 0.9) is less
    than 1.
    """
    return math.floor(characters * (1 - Fraction(str(val_ratio))))


@dataclass(frozen=True, slots=True)
class _Survey:
    """What the first reading finds."""

    characters: int
    vocabulary: set[str]
    sha256: str


def _survey(source: Path, encoding: str, progress: Callable[[float], None]) -> _Survey:
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in read_bytes(source, progress):
            digest.update(chunk)
            yield chunk

    characters, vocabulary = 0, set[str]()
    for text in decode(hashed(), encoding):
        characters += len(text)
        vocabulary.update(text)
    return _Survey(characters, vocabulary, digest.hexdigest())


def _tokenizer(kind: str, vocabulary: set[str]) -> Tokenizer:
    if kind == GPT2Tokenizer.kind:
        return GPT2Tokenizer()
    if len(vocabulary) > MAX_VOCAB_SIZE:
        raise BadDataset(
            f"the text has {len(vocabulary):,} distinct characters, and token files hold at most "
            f"{MAX_VOCAB_SIZE:,}; use the gpt2 tokenizer"
        )
    return CharTokenizer(sorted(vocabulary))


class _TokenWriter:
    """Appends the tokens of a text that arrives in portions to a file."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file = file
        self._tokenizer = tokenizer
        # where one character is one token, every place is good to cut
        self._pieces = PieceBuffer() if tokenizer.kind == GPT2Tokenizer.kind else None
        self.num_tokens = 0

    def write(self, text: str) -> None:
        self._append(text if self._pieces is None else self._pieces.push(text))

    def finish(self) -> None:
        if self._pieces is not None:
            self._append(self._pieces.flush())

    def _append(self, text: str) -> None:
        ids = np.array(self._tokenizer.encode(text), dtype=TOKEN_DTYPE)
        self._file.write(ids.tobytes())
        self.num_tokens += len(ids)


def _write_splits(
    texts: Iterable[str], train_characters: int, tokenizer: Tokenizer, folder: Path
) -> tuple[int, int]:
    """Writes train.bin and val.bin; returns how many tokens each has."""
    with (
        (folder / "train.bin").open("wb") as train_file,
        (folder / "val.bin").open("wb") as val_file,
    ):
        train, val = _TokenWriter(train_file, tokenizer), _TokenWriter(val_file, tokenizer)
        left = train_characters
        for text in texts:
            train.write(text[:left])
            val.write(text[left:])
            left -= min(left, len(text))
        train.finish()
        val.finish()
    return train.num_tokens, val.num_tokens


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that takes its name at the end, or vanishes on an error."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.iterdir():
            sync_file(path)
        sync_folder(aside)
        try:
            aside.rename(folder)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # somebody else was faster
                raise _exists(folder) from error
            raise
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _exists(folder: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "a dataset of this name exists already", folder.name)
