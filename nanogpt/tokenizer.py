"""Text to token ids and back: one token a character, or GPT-2's byte-pair encoding. No torch.

It knows nothing about models, datasets or files other than the ranks that ship with the package,
which are read when GPT-2's encoding is first used, never at import.

    tokenizer = CharTokenizer.from_text("to be or not to be")
    tokenizer.decode(tokenizer.encode("robot"))
    GPT2Tokenizer().encode("Hello, world!")  # [15496, 11, 995, 0]
"""

import base64
import codecs
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Protocol, Self

import tiktoken


class UnknownCharacters(ValueError):
    """The text has characters that the vocabulary lacks; `characters` names each once, in order."""

    def __init__(self, characters: list[str]) -> None:
        self.characters = characters
        shown = ", ".join(repr(character) for character in characters[:20])
        more = f" and {len(characters) - 20} more" if len(characters) > 20 else ""
        super().__init__(f"characters that the vocabulary does not have: {shown}{more}")


class UnknownTokenId(ValueError):
    """An id that no token has."""

    def __init__(self, token_id: int, vocab_size: int) -> None:
        self.token_id = token_id
        super().__init__(f"token id {token_id} is not in [0, {vocab_size})")


class Tokenizer(Protocol):
    """What the engine, the trainer and the datasets ask of either tokenizer."""

    @property
    def kind(self) -> str:
        """`char` or `gpt2`."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are in [0, vocab_size)."""

    @property
    def end_of_text_id(self) -> int | None:
        """The token that ends a document, or None if there is none."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text. Raises UnknownCharacters."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, U+FFFD in place of bytes that are not UTF-8. Raises UnknownTokenId."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, perhaps of a part of a character. Raises UnknownTokenId."""

    def to_json(self) -> dict[str, Any]:
        """All that `tokenizer_from_json` needs to make an equal tokenizer."""


class CharTokenizer:
    """One token for each character of a vocabulary, in the order of their ids."""

    kind = "char"
    end_of_text_id = None

    def __init__(self, characters: Iterable[str]) -> None:
        """Raises ValueError unless these are distinct single characters, none a lone surrogate."""
        self.characters = list(characters)
        self._ids = {character: i for i, character in enumerate(self.characters)}
        if len(self._ids) != len(self.characters):
            raise ValueError("a character is in the vocabulary twice")
        for character in self.characters:
            if len(character) != 1 or "\ud800" <= character <= "\udfff":
                raise ValueError(f"the vocabulary has {character!r}, which is not one character")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The distinct characters of the text, sorted by code point, as nanoGPT does it."""
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = dict.fromkeys(c for c in text if c not in self._ids)
            raise UnknownCharacters(list(unknown)) from None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(self._character, ids))

    def token_bytes(self, token_id: int) -> bytes:
        return self._character(token_id).encode()

    def _character(self, token_id: int) -> str:
        if not 0 <= token_id < self.vocab_size:
            raise UnknownTokenId(token_id, self.vocab_size)
        return self.characters[token_id]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


# https://github.com/openai/gpt-2/blob/master/src/encoder.py in the form that tiktoken runs fastest:
# possessive quantifiers, and whitespace up to the end of the text as a case of its own.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_RANKS = "r50k_base.tiktoken"
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

# Whitespace as `\s` means it in GPT2_PATTERN: Unicode's White_Space. Python's `\s` has four more.
_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# tiktoken's regex engine overflows its stack, and panics, on a million of them before a word.
_LONG_WHITE_SPACE = re.compile(f"(?<![{_WHITE_SPACE}])[{_WHITE_SPACE}]{{100000,}}+(?!\\Z)")


@functools.cache
def _gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's encoding out of the ranks that ship with the package: 0.2 s, once a process."""
    data = resources.files("nanogpt").joinpath("data", GPT2_RANKS).read_bytes()
    if hashlib.sha256(data).hexdigest() != GPT2_RANKS_SHA256:
        raise RuntimeError(f"{GPT2_RANKS} is damaged: its SHA-256 differs; install nanogpt again")
    lines = (line.split() for line in data.splitlines())
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={"<|endoftext|>": GPT2Tokenizer.end_of_text_id},
    )


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding. In a text, the end-of-text marker is text like any other."""

    kind = "gpt2"
    vocab_size = 50257
    end_of_text_id = 50256

    def encode(self, text: str) -> list[int]:
        encoding = _gpt2_encoding()
        ids: list[int] = []
        start = 0
        for run in _LONG_WHITE_SPACE.finditer(text):
            # All but the last are one piece, and the last begins the next: a cut between the two
            # changes no piece, and spares tiktoken the look ahead.
            ids += encoding.encode_ordinary(text[start : run.end() - 1])
            start = run.end() - 1
        return ids + encoding.encode_ordinary(text[start:])

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise UnknownTokenId(token_id, self.vocab_size)
        return _gpt2_encoding().decode_single_token_bytes(token_id)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


def tokenizer_from_json(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose `to_json` this is. Raises ValueError if it describes none."""
    match description:
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "char", "characters": [*characters]}:
            if not all(isinstance(character, str) for character in characters):
                raise ValueError("the vocabulary of the char tokenizer must be text")
            return CharTokenizer(characters)
        case {"kind": "char"}:
            raise ValueError("the char tokenizer needs its list of characters")
    raise ValueError(f"unknown tokenizer kind {description.get('kind')!r}: must be char or gpt2")


class StreamDecoder:
    """Turns ids that arrive in any portions into text, never cutting a character.

    What `push` and a final `flush` return adds up to `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_whole = isinstance(tokenizer, CharTokenizer)
        """Whether no token is a part of a character."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that are complete by now. Raises UnknownTokenId."""
        if self._is_whole:
            return self._tokenizer.decode(ids)
        return self._utf8.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        """U+FFFD for a character that has begun and will not be completed, else nothing."""
        return self._utf8.decode(b"", final=True)
