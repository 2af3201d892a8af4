"""Looks a dataset's tokens over before anyone trains on them, in memory that does not grow.

Overlap is measured on windows of 64 tokens. Those of the validation split that follow one another
without a gap are looked up, and if there are more than MAX_VAL_WINDOWS, that many, evenly spaced:
the share found is then a sample's, within 0.4 percentage points at 95 % confidence. They are
compared with the windows at every position of the training split, by a 64-bit hash: a false match
has odds of one in billions.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanogpt.datasets.dataset import MAX_VOCAB_SIZE

WINDOW_TOKENS = 64
MAX_VAL_WINDOWS = 1 << 16
USUAL_BLOCK_TOKENS = 256

_CHUNK_TOKENS = 1 << 16
_BATCH_WINDOWS = 1 << 10
_FILTER_BITS = 20
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing

Tokens = NDArray[np.uint16]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TokenFindings:
    """What the tokens of both splits show."""

    used_tokens: int
    unknown_val_tokens: int
    train_val_overlap: float


def look_over(train: Tokens, val: Tokens, progress: Callable[[int], None]) -> TokenFindings:
    """Findings about the ids of both splits, each (number of tokens,).

    `progress` gets the number of training tokens looked at so far.
    """
    wanted, inverse = np.unique(_val_windows(val), return_inverse=True)
    maybe = np.zeros(1 << _FILTER_BITS, dtype=bool)  # spares most windows the search
    maybe[wanted >> np.uint64(64 - _FILTER_BITS)] = True
    found = np.zeros(len(wanted), dtype=bool)
    in_train = np.zeros(MAX_VOCAB_SIZE, dtype=np.int64)
    for start in range(0, len(train), _CHUNK_TOKENS):
        in_train += np.bincount(train[start : start + _CHUNK_TOKENS], minlength=MAX_VOCAB_SIZE)
        if len(wanted):
            hashes = _hashes(train[start : start + _CHUNK_TOKENS + WINDOW_TOKENS - 1])
            hashes = hashes[maybe[hashes >> np.uint64(64 - _FILTER_BITS)]]
            places = np.searchsorted(wanted, hashes) % len(wanted)
            found[places[wanted[places] == hashes]] = True
        progress(min(start + _CHUNK_TOKENS, len(train)))
    in_val = sum(
        (np.bincount(chunk, minlength=MAX_VOCAB_SIZE) for chunk in _chunks(val)),
        np.zeros(MAX_VOCAB_SIZE, dtype=np.int64),
    )
    return TokenFindings(
        used_tokens=int(np.count_nonzero(in_train + in_val)),
        unknown_val_tokens=int(in_val[in_train == 0].sum()),
        train_val_overlap=float(found[inverse].mean()) if len(wanted) else 0.0,
    )


def warnings_about(
    findings: TokenFindings,
    *,
    train_tokens: int,
    val_tokens: int,
    empty_documents: int,
    undecodable_characters: int,
    files_left_out: int,
) -> list[str]:
    """What one should know before training, each a sentence."""
    found = []
    for split, num_tokens in (("training", train_tokens), ("validation", val_tokens)):
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


def _val_windows(val: Tokens) -> Hashes:
    """Hashes of the validation split's windows without a gap, or of a sample of them."""
    num_windows = len(val) // WINDOW_TOKENS
    if num_windows == 0:
        return np.empty(0, dtype=np.uint64)
    taken = np.linspace(0, num_windows - 1, min(num_windows, MAX_VAL_WINDOWS)).astype(np.int64)
    powers = [pow(_BASE, WINDOW_TOKENS - 1 - i, 1 << 64) for i in range(WINDOW_TOKENS)]
    place = np.arange(WINDOW_TOKENS)
    hashes = [
        (_random()[val[start[:, None] + place]] * np.array(powers, dtype=np.uint64)).sum(axis=1)
        for start in np.array_split(taken * WINDOW_TOKENS, -(-len(taken) // _BATCH_WINDOWS))
    ]
    return np.concatenate(hashes)


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


def _chunks(tokens: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        yield tokens[start : start + _CHUNK_TOKENS]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _verb(number: int, plural: str) -> str:
    if number != 1:
        return plural
    return "was" if plural == "were" else f"{plural}s"
