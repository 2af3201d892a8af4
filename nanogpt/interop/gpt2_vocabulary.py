"""GPT-2's tokens and merges as text, in the notation that vocab.json, merges.txt and GGUF share.

Made of the ranks that ship with the package, and exact: the merges are byte for byte those of
https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe. Knows no file of a model.
"""

import functools
from itertools import pairwise

from nanogpt.tokenizer import GPT2Tokenizer

END_OF_TEXT = "<|endoftext|>"


@functools.cache
def _letters() -> list[str]:
    """The character that stands for each byte, so that no token has a blank or control character.

    Bytes that Latin-1 prints are themselves, the others are the characters from 256 on.
    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)}
    printed |= set(range(ord("®"), ord("ÿ") + 1))
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def _text(token: bytes) -> str:
    letters = _letters()
    return "".join(letters[byte] for byte in token)


@functools.cache
def _tokens() -> list[bytes]:
    """Bytes of each token but the end of text, in the order of their ids."""
    tokenizer = GPT2Tokenizer()
    return [tokenizer.token_bytes(i) for i in range(tokenizer.end_of_text_id)]


def vocabulary() -> list[str]:
    """Each token, in the order of their ids; the end of text is the last."""
    return [*map(_text, _tokens()), END_OF_TEXT]


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The two halves that each merge joins, in the order in which they were learned.

    A token's id is the order in which its merge was learned, so the halves of a token are what the
    merges before it make of its bytes. Takes half a second, once a process.
    """
    ids = {token: i for i, token in enumerate(_tokens())}
    return tuple(_halves(token, ids) for token in _tokens() if len(token) > 1)


def _halves(token: bytes, ids: dict[bytes, int]) -> tuple[str, str]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [left + right for left, right in pairwise(parts)]
        first = min(range(len(joined)), key=lambda i: ids.get(joined[i], len(ids)))
        parts[first : first + 2] = [joined[first]]
    left, right = parts
    return _text(left), _text(right)
