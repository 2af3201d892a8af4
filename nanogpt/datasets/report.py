"""Looks a dataset's tokens over before anyone trains on them, in memory that does not grow.

Overlap is measured on windows of 64 tokens. Those of the validation split that follow one another
without a gap are looked up, and if there are more than MAX_VAL_WINDOWS, that many, evenly spaced:
the share found is then a sample's, within 0.4 percentage points at 95 % confidence. They are
compared with the windows at every position of the training split, by a 64-bit hash: a false match
has odds of one in billions.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanogpt.datasets.dataset import MAX_VOCAB_SIZE
from nanogpt.datasets.token_file import TokenReader

WINDOW_TOKENS = 64
MAX_VAL_WINDOWS = 1 << 16
USUAL_BLOCK_TOKENS = 256

_CHUNK_TOKENS = 1 << 16
_FILTER_BITS = 20
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing

Tokens = NDArray[np.uint16]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TokenFindings:
    """What the tokens of both splits show."""

    train_tokens: int
    val_tokens: int
    used_tokens: int
    unknown_val_tokens: int
    train_val_overlap: float


def look_over(train: Path, val: Path, progress: Callable[[int], None]) -> TokenFindings:
    """Findings about the token files of both splits.

    `progress` gets the number of training tokens looked at so far.
    """
    in_train, in_val = TokenReader(train), TokenReader(val)
    wanted, inverse = np.unique(_val_windows(in_val), return_inverse=True)
    maybe = np.zeros(1 << _FILTER_BITS, dtype=bool)  # spares most windows the search
    maybe[wanted >> np.uint64(64 - _FILTER_BITS)] = True
    found = np.zeros(len(wanted), dtype=bool)
    train_counts = np.zeros(MAX_VOCAB_SIZE, dtype=np.int64)
    for start in range(0, in_train.num_tokens, _CHUNK_TOKENS):
        tokens = in_train.part(start, _CHUNK_TOKENS + WINDOW_TOKENS - 1)
        train_counts += np.bincount(tokens[:_CHUNK_TOKENS], minlength=MAX_VOCAB_SIZE)
        if len(wanted):
            hashes = _hashes(tokens)
            hashes = hashes[maybe[hashes >> np.uint64(64 - _FILTER_BITS)]]
            places = np.searchsorted(wanted, hashes) % len(wanted)
            found[places[wanted[places] == hashes]] = True
        progress(min(start + _CHUNK_TOKENS, in_train.num_tokens))
    val_counts = np.zeros(MAX_VOCAB_SIZE, dtype=np.int64)
    for tokens in in_val.parts(_CHUNK_TOKENS):
        val_counts += np.bincount(tokens, minlength=MAX_VOCAB_SIZE)
    return TokenFindings(
        train_tokens=in_train.num_tokens,
        val_tokens=in_val.num_tokens,
        used_tokens=int(np.count_nonzero(train_counts + val_counts)),
        unknown_val_tokens=int(val_counts[train_counts == 0].sum()),
        train_val_overlap=float(found[inverse].mean()) if len(wanted) else 0.0,
    )


def warnings_about(
    findings: TokenFindings,
    *,
    empty_documents: int,
    undecodable_characters: int,
    files_left_out: int,
) -> list[str]:
    """What one should know before training, each a sentence."""
    found = []
    splits = {"training": findings.train_tokens, "validation": findings.val_tokens}
    for split, num_tokens in splits.items():
        if num_tokens <= USUAL_BLOCK_TOKENS:
            found.append(
                f"The {split} split has {_counted(num_tokens, 'token')}, too few for blocks of "
                f"{USUAL_BLOCK_TOKENS}: take a smaller block_size, or more text."
            )
    if findings.train_val_overlap:
        found.append(
            f"{findings.train_val_overlap:.2%} of the validation split also stands in the training "
            "split: its loss will be better than on new text."
        )
    if findings.unknown_val_tokens:
        found.append(
            f"{_counted(findings.unknown_val_tokens, 'token')} of the validation split never "
            f"{_verb(findings.unknown_val_tokens, 'occur')} in the training split."
        )
    if undecodable_characters:
        found.append(
            f"{_counted(undecodable_characters, 'character')} could not be decoded and "
            f"{_verb(undecodable_characters, 'stand')} as U+FFFD."
        )
    if empty_documents:
        were = _verb(empty_documents, "were")
        found.append(f"{_counted(empty_documents, 'document')} without text {were} left out.")
    if files_left_out:
        were = _verb(files_left_out, "were")
        found.append(
            f"{_counted(files_left_out, 'file')} {were} left out: only .txt, .jsonl and .parquet "
            "files are read."
        )
    return found


def _val_windows(val: TokenReader) -> Hashes:
    """Hashes of the validation split's windows without a gap, or of a sample of them."""
    num_windows = val.num_tokens // WINDOW_TOKENS
    taken = np.linspace(0, num_windows - 1, min(num_windows, MAX_VAL_WINDOWS)).astype(np.int64)
    hashes = [_hashes(val.part(WINDOW_TOKENS * int(i), WINDOW_TOKENS)) for i in taken]
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])


def _hashes(tokens: Tokens) -> Hashes:
    """Hash of the window at each position, (len(tokens) - WINDOW_TOKENS + 1,).

    A polynomial in _BASE modulo 2**64 over a random number for each token id. Hashes of windows of
    length 2w are made of those of length w: https://en.wikipedia.org/wiki/Rolling_hash
    """
    hashes = _random()[tokens]
    width, power = 1, _BASE
    while width < WINDOW_TOKENS and len(hashes) > width:
        hashes = hashes[:-width] * np.uint64(power) + hashes[width:]
        width, power = 2 * width, power * power % (1 << 64)
    return hashes if width == WINDOW_TOKENS else np.empty(0, dtype=np.uint64)


@functools.cache
def _random() -> Hashes:
    """A number for each token id, (MAX_VOCAB_SIZE,), the same in every process."""
    return np.random.default_rng(0).integers(1 << 64, size=MAX_VOCAB_SIZE, dtype=np.uint64)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _verb(number: int, plural: str) -> str:
    if number != 1:
        return plural
    return "was" if plural == "were" else f"{plural}s"
