"""A text, or many documents, into a dataset folder, in memory that does not grow with them.

One text is read twice (three times if it is not UTF-8): for its length, hash and vocabulary, then
for its tokens. The first characters are the training split, the rest is for validation, as nanoGPT
has it; GPT-2's encoding begins anew at the border. Documents are gathered into one file, then
become tokens one after another, and the last tokens are for validation, as openwebtext has it.

    prepare_text(Path("input.txt"), Path("data/datasets/shakespeare_char"), tokenizer="char")
    prepare_documents(Path("a.jsonl"), Path("data/datasets/web"), format="jsonl", tokenizer="gpt2")
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
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from nanogpt.datasets.dataset import (
    MAX_VOCAB_SIZE,
    TOKEN_DTYPE,
    BadDataset,
    DatasetMeta,
    DatasetReport,
)
from nanogpt.datasets.documents import FORMATS, Documents
from nanogpt.datasets.report import look_over, warnings_about
from nanogpt.datasets.spool import Spool, read_spool
from nanogpt.datasets.text_file import ENCODINGS, decode, in_its_encoding, read_bytes
from nanogpt.datasets.token_file import TokenWriter, move_tail
from nanogpt.durable import sync_file, sync_folder
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer

Phase = Literal["reading", "tokenizing", "checking"]
Progress = Callable[[Phase, int, int], None]
"""Gets the part of the work, the bytes done in it, which hardly ever fall, and those to do."""


def prepare_text(
    source: Path,
    folder: Path,
    *,
    tokenizer: str,
    val_ratio: float = 0.1,
    encoding: str | None = None,
    progress: Progress | None = None,
) -> DatasetMeta:
    """Writes `folder` out of a text file and returns what it holds.

    `tokenizer` is `char` or `gpt2`, `val_ratio` the fraction of the characters kept for validation,
    in (0, 1), `encoding` one of `utf-8` and `cp1252`, or None to find out. The folder appears
    complete or not at all.

    Raises BadDataset if the text cannot become a dataset, FileExistsError if the folder exists.
    """
    _check(folder, tokenizer, val_ratio, encoding)
    progress = progress or _nobody
    size_bytes = source.stat().st_size
    reading = partial(progress, "reading")

    def survey_as(encoding: str) -> _Survey:
        return _survey(source, encoding, lambda done: reading(done, size_bytes))

    survey = survey_as(encoding) if encoding is not None else in_its_encoding(source, survey_as)
    train_characters = split_point(survey.characters, val_ratio)
    if not 0 < train_characters < survey.characters:
        raise BadDataset(
            f"a text of {survey.characters} characters is too short to split: "
            f"{train_characters} to train on, {survey.characters - train_characters} to validate"
        )
    chosen = _tokenizer(tokenizer, survey.vocabulary)
    with _written_aside(folder) as aside:
        tokenizing = partial(progress, "tokenizing")
        chunks = read_bytes(source, lambda done: tokenizing(done, size_bytes))
        _write_splits(decode(chunks, survey.encoding), train_characters, chosen, aside)
        return _describe(
            aside,
            chosen,
            progress,
            characters=survey.characters,
            val_ratio=val_ratio,
            encoding=survey.encoding,
            source_sha256=survey.sha256,
        )


def prepare_documents(
    source: Path,
    folder: Path,
    *,
    format: str,
    tokenizer: str,
    val_ratio: float = 0.1,
    encoding: str | None = None,
    text_field: str = "text",
    max_documents: int | None = None,
    max_text_bytes: int = 1 << 40,
    progress: Progress | None = None,
) -> DatasetMeta:
    """Writes `folder` out of an upload of several documents and returns what it holds.

    `format` is one of `nanogpt.datasets.documents.FORMATS`, `text_field` holds the text of a JSON
    line or a Parquet row. `val_ratio` is a fraction of the tokens, at least one. An archive and the
    text in it may have `max_text_bytes` each. See `prepare_text` for the rest.

    Raises TooMuchText and MissingParquet beside what `prepare_text` raises.
    """
    _check(folder, tokenizer, val_ratio, encoding)
    if format not in FORMATS:
        raise BadDataset(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    progress = progress or _nobody
    size_bytes = source.stat().st_size
    reading, tokenizing = partial(progress, "reading"), partial(progress, "tokenizing")
    with TemporaryDirectory(prefix=".documents-", dir=folder.parent) as scratch:
        documents = Documents(
            format,
            field=text_field,
            encoding=encoding,
            scratch=Path(scratch),
            max_bytes=max_text_bytes,
        )
        path = Path(scratch) / "spool"
        with path.open("wb") as file:
            spool = Spool(file, max_text_bytes)
            for piece in documents.read(source, lambda done: reading(done, size_bytes)):
                if piece is not None:
                    spool.write(piece)
                    continue
                spool.end_document()
                if spool.documents == max_documents:
                    break
        if spool.joined_by_newline:
            spool.vocabulary.add("\n")
        chosen = _tokenizer(tokenizer, spool.vocabulary)
        with _written_aside(folder) as aside:
            pieces = read_spool(path, lambda done: tokenizing(done, spool.size_bytes))
            num_tokens = _write_documents(pieces, chosen, aside / "train.bin")
            if num_tokens < 2:
                raise BadDataset(
                    f"{spool.documents} documents of {spool.characters} characters together are "
                    "too short to split"
                )
            train_tokens = min(split_point(num_tokens, val_ratio), num_tokens - 1)
            move_tail(aside / "train.bin", aside / "val.bin", num_tokens - max(train_tokens, 1))
            with source.open("rb") as upload:
                sha256 = hashlib.file_digest(upload, "sha256").hexdigest()
            encodings = list(documents.encodings)
            return _describe(
                aside,
                chosen,
                progress,
                characters=spool.characters,
                val_ratio=val_ratio,
                encoding=encodings[0] if len(encodings) == 1 else None,
                source_sha256=sha256,
                documents=spool.documents,
                empty_documents=spool.empty_documents,
                undecodable_characters=documents.undecodable_characters,
                files_left_out=documents.files_left_out,
            )


def _nobody(phase: Phase, bytes_done: int, bytes_total: int) -> None:
    """Nobody watches."""


def _check(folder: Path, tokenizer: str, val_ratio: float, encoding: str | None) -> None:
    if folder.exists():
        raise _exists(folder)
    if tokenizer not in (CharTokenizer.kind, GPT2Tokenizer.kind):
        raise BadDataset(f"tokenizer must be char or gpt2, got {tokenizer!r}")
    if not 0 < val_ratio < 1:
        raise BadDataset(f"val_ratio must be in (0, 1), got {val_ratio}")
    if encoding is not None and encoding not in ENCODINGS:
        raise BadDataset(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}")


def _describe(
    folder: Path,
    tokenizer: Tokenizer,
    progress: Progress,
    *,
    characters: int,
    val_ratio: float,
    encoding: str | None,
    source_sha256: str,
    documents: int = 1,
    empty_documents: int = 0,
    undecodable_characters: int = 0,
    files_left_out: int = 0,
) -> DatasetMeta:
    """Looks the token files over and writes meta.json beside them."""
    train, val = folder / "train.bin", folder / "val.bin"
    train_bytes = train.stat().st_size

    def checking(tokens_done: int) -> None:
        progress("checking", TOKEN_DTYPE.itemsize * tokens_done, train_bytes)

    findings = look_over(train, val, checking)
    warnings = warnings_about(
        findings,
        empty_documents=empty_documents,
        undecodable_characters=undecodable_characters,
        files_left_out=files_left_out,
    )
    report = DatasetReport(
        documents=documents,
        empty_documents=empty_documents,
        undecodable_characters=undecodable_characters,
        used_tokens=findings.used_tokens,
        unknown_val_tokens=findings.unknown_val_tokens,
        train_val_overlap=findings.train_val_overlap,
        warnings=warnings,
    )
    meta = DatasetMeta(
        tokenizer=tokenizer.to_json(),
        vocab_size=tokenizer.vocab_size,
        train_tokens=findings.train_tokens,
        val_tokens=findings.val_tokens,
        characters=characters,
        val_ratio=val_ratio,
        encoding=encoding,
        source_sha256=source_sha256,
        create_time=time.time(),
        report=report,
    )
    (folder / "meta.json").write_text(json.dumps(meta.to_json(), indent=2), "utf-8")
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

    encoding: str
    characters: int
    vocabulary: set[str]
    sha256: str


def _survey(source: Path, encoding: str, progress: Callable[[int], None]) -> _Survey:
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in read_bytes(source, progress):
            digest.update(chunk)
            yield chunk

    characters, vocabulary = 0, set[str]()
    for text in decode(hashed(), encoding):
        characters += len(text)
        vocabulary.update(text)
    return _Survey(encoding, characters, vocabulary, digest.hexdigest())


def _tokenizer(kind: str, vocabulary: set[str]) -> Tokenizer:
    if kind == GPT2Tokenizer.kind:
        return GPT2Tokenizer()
    if len(vocabulary) > MAX_VOCAB_SIZE:
        raise BadDataset(
            f"the text has {len(vocabulary):,} distinct characters, and token files hold at most "
            f"{MAX_VOCAB_SIZE:,}; use the gpt2 tokenizer"
        )
    return CharTokenizer(sorted(vocabulary))


def _write_splits(
    texts: Iterable[str], train_characters: int, tokenizer: Tokenizer, folder: Path
) -> None:
    """Writes train.bin and val.bin out of one text, split by characters."""
    with (
        (folder / "train.bin").open("wb") as train_file,
        (folder / "val.bin").open("wb") as val_file,
    ):
        train, val = TokenWriter(train_file, tokenizer), TokenWriter(val_file, tokenizer)
        left = train_characters
        for text in texts:
            train.write(text[:left])
            val.write(text[left:])
            left -= min(left, len(text))
        train.finish()
        val.finish()


def _write_documents(pieces: Iterable[str | None], tokenizer: Tokenizer, path: Path) -> int:
    """Writes the tokens of all documents to one file and returns how many there are."""
    documents = 1
    with path.open("wb") as file:
        writer = TokenWriter(file, tokenizer)
        try:
            for piece in pieces:
                if piece is None:
                    writer.end_document()
                    documents += 1
                else:
                    writer.write(piece)
        except BadDataset as error:
            raise BadDataset(f"document {documents}: {error}") from error
    return writer.num_tokens


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
