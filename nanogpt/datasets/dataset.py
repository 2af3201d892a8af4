"""A folder of token files, opened for reading: `train.bin`, `val.bin` and what describes them.

The token files are nanoGPT's: ids as little-endian uint16, no header. The description is one of
    meta.json   ours: `DatasetMeta`, with the vocabulary also as `itos` and `stoi`
    meta.json   the nanogpt gem's: `vocab_size`, `itos`, `stoi`
    meta.pkl    nanoGPT's: the same three, pickled
    none        GPT-2's byte-pair encoding
It neither writes nor prepares anything, and knows nothing about where folders are kept.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from nanogpt.datasets.plain_pickle import read_plain_pickle
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer, tokenizer_from_json

Split = Literal["train", "val"]
TOKEN_DTYPE = np.dtype("<u2")
MAX_VOCAB_SIZE = 1 << 16


class BadDataset(ValueError):
    """A text that cannot become a dataset, or a dataset that is damaged; says what is wrong."""


class TooMuchText(BadDataset):
    """A text, or what an upload unpacks to, is larger than allowed; says how large that is."""


class MissingParquet(BadDataset):
    """Parquet cannot be read here; says what to install."""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What was found while a dataset was made."""

    documents: int
    """Texts it was made of."""
    empty_documents: int
    """Documents without text, which were left out."""
    undecodable_characters: int
    """Characters that could not be decoded and stand as U+FFFD."""
    used_tokens: int
    """Distinct tokens that occur."""
    unknown_val_tokens: int
    """Tokens of the validation split that do not occur in the training split."""
    train_val_overlap: float
    """Share of the validation split's windows that also stand in the training split, in [0, 1]."""
    warnings: list[str]
    """Things to know before training, each a sentence."""


@dataclass(frozen=True, slots=True)
class DatasetMeta:
    """What is known about a dataset. None where the folder of another program does not say."""

    tokenizer: dict[str, Any]
    """What `tokenizer_from_json` takes."""
    vocab_size: int
    train_tokens: int
    val_tokens: int
    characters: int | None
    """Characters in the text, both splits together."""
    val_ratio: float
    """Fraction kept for validation: of the characters of a single text, else of the tokens."""
    encoding: str | None
    """How the text was read: `utf-8` or `cp1252`; None if its documents differ."""
    source_sha256: str | None
    """SHA-256 of the bytes that it was made of, in hexadecimal."""
    create_time: float
    """Unix seconds."""
    report: DatasetReport | None = None
    """None for a dataset that was made elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """The content of meta.json, with the keys by which the gem finds a char vocabulary."""
        content = asdict(self)
        if self.tokenizer["kind"] == CharTokenizer.kind:
            characters = self.tokenizer["characters"]
            content["itos"] = {str(i): character for i, character in enumerate(characters)}
            content["stoi"] = {character: i for i, character in enumerate(characters)}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError naming what is missing or of a wrong type."""
        values = _typed(content, _META_TYPES)
        report = content.get("report")
        if report is not None:
            if not isinstance(report, dict):
                raise ValueError(f"report is {report!r}")
            values["report"] = DatasetReport(**_typed(report, _REPORT_TYPES))
        return cls(**values)


def _typed(content: Mapping[str, Any], types: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """The named values of a mapping. Raises ValueError if one is missing or of a wrong type."""
    for name, kinds in types.items():
        if name not in content:
            raise ValueError(f"{name} is missing")
        if not isinstance(content[name], kinds):
            raise ValueError(f"{name} is {content[name]!r}")
    return {name: content[name] for name in types}


_META_TYPES: dict[str, type | UnionType] = {
    "tokenizer": dict,
    "vocab_size": int,
    "train_tokens": int,
    "val_tokens": int,
    "characters": int | None,
    "val_ratio": int | float,
    "encoding": str | None,
    "source_sha256": str | None,
    "create_time": int | float,
}
_REPORT_TYPES: dict[str, type | UnionType] = {
    "documents": int,
    "empty_documents": int,
    "undecodable_characters": int,
    "used_tokens": int,
    "unknown_val_tokens": int,
    "train_val_overlap": int | float,
    "warnings": list,
}


class Dataset:
    """The tokens of both splits, mapped into memory once, and how to turn them into text."""

    def __init__(
        self, meta: DatasetMeta, tokenizer: Tokenizer, tokens: Mapping[Split, NDArray[np.uint16]]
    ) -> None:
        self.meta = meta
        self.tokenizer = tokenizer
        self._tokens = tokens

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens any of the layouts above. Raises BadDataset naming the file that is wrong."""
        tokens: dict[Split, NDArray[np.uint16]] = {
            "train": _map_tokens(folder / "train.bin"),
            "val": _map_tokens(folder / "val.bin"),
        }
        name = "meta.pkl" if (folder / "meta.pkl").exists() else None
        name = "meta.json" if (folder / "meta.json").exists() else name
        try:
            content = _read_description(folder / name) if name is not None else None
            if content is not None and "tokenizer" in content:
                meta = DatasetMeta.from_json(content)
                tokenizer = tokenizer_from_json(meta.tokenizer)
            else:
                tokenizer = GPT2Tokenizer() if content is None else _tokenizer_of_itos(content)
                meta = _derived_meta(tokenizer, tokens, (folder / "train.bin").stat().st_mtime)
            if meta.vocab_size != tokenizer.vocab_size:
                raise ValueError(
                    f"vocab_size is {meta.vocab_size}, "
                    f"but the vocabulary has {tokenizer.vocab_size} tokens"
                )
        except ValueError as error:
            raise BadDataset(f"{name} is damaged: {error}") from error
        declared: dict[Split, int] = {"train": meta.train_tokens, "val": meta.val_tokens}
        for split, num_tokens in declared.items():
            if len(tokens[split]) != num_tokens:
                raise BadDataset(
                    f"{split}.bin has {len(tokens[split])} tokens, "
                    f"but meta.json says that it has {num_tokens}"
                )
        return cls(meta, tokenizer, tokens)

    def tokens(self, split: Split) -> NDArray[np.uint16]:
        """Ids of a split, (number of tokens,), uint16; a read-only view of its file."""
        return self._tokens[split]

    def check_vocabulary(self) -> None:
        """Raises BadDataset if a token is not in the vocabulary. Tokens that `prepare` wrote are;
        those of another program are all read, which takes seconds for a billion."""
        if self.meta.source_sha256 is not None:
            return
        size = self.tokenizer.vocab_size
        for split, tokens in self._tokens.items():
            if (largest := int(tokens.max())) >= size:
                raise BadDataset(
                    f"{split}.bin has the token {largest}, "
                    f"but the vocabulary ({self.tokenizer.kind}) has {size}: ids below that"
                )


def _map_tokens(path: Path) -> NDArray[np.uint16]:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise BadDataset(f"{path.name} is missing") from None
    if size_bytes == 0:
        raise BadDataset(f"{path.name} is empty")
    if size_bytes % TOKEN_DTYPE.itemsize:
        raise BadDataset(f"{path.name} has {size_bytes} bytes, but tokens take two bytes each")
    return np.memmap(path, dtype=TOKEN_DTYPE, mode="r")


def _read_description(path: Path) -> dict[Any, Any]:
    """The mapping in a meta.json or meta.pkl. Raises ValueError if it holds anything else."""
    data = path.read_bytes()
    content = json.loads(data) if path.suffix == ".json" else read_plain_pickle(data)
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping")
    return content


def _tokenizer_of_itos(content: Mapping[Any, Any]) -> CharTokenizer:
    """The vocabulary as the gem (text keys) and nanoGPT (integer keys) describe it."""
    itos = content.get("itos")
    if not isinstance(itos, dict):
        raise ValueError("itos is missing")
    by_id = {str(i): character for i, character in itos.items()}
    size = content.get("vocab_size")
    if size != len(itos) or by_id.keys() != {str(i) for i in range(len(itos))}:
        raise ValueError(f"itos does not name a character for each id below vocab_size, {size}")
    if not all(isinstance(character, str) for character in by_id.values()):
        raise ValueError("itos has values that are not text")
    return CharTokenizer(by_id[str(i)] for i in range(len(by_id)))


def _derived_meta(
    tokenizer: Tokenizer, tokens: Mapping[Split, NDArray[np.uint16]], create_time: float
) -> DatasetMeta:
    """What can be known about a folder that another program wrote."""
    num_train, num_val = len(tokens["train"]), len(tokens["val"])
    return DatasetMeta(
        tokenizer=tokenizer.to_json(),
        vocab_size=tokenizer.vocab_size,
        train_tokens=num_train,
        val_tokens=num_val,
        characters=num_train + num_val if tokenizer.kind == CharTokenizer.kind else None,
        val_ratio=num_val / (num_train + num_val),
        encoding=None,
        source_sha256=None,
        create_time=create_time,
    )
