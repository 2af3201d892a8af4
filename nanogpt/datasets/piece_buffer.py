"""Cuts a stream of text where GPT-2's encoding of the parts is that of the whole.

GPT-2 first splits text into pieces by a pattern (`nanogpt.tokenizer.GPT2_PATTERN`), then encodes
each piece by itself. So a cut changes nothing if a piece always ends there, and if the pattern does
not look across it. Both hold between
    anything but whitespace, and whitespace: whitespace stands only at the beginning of a piece;
    a letter, and a digit or a mark: letters stand only at the end of a piece, also in `'ll`;
because no piece that ends in either way looked beyond its end: only the last characters of a run of
whitespace do. The opposite order is no place to cut: `' x'` and `"'s"` are one piece.
"""

import string

from nanogpt.datasets.dataset import BadDataset

MAX_HELD_CHARACTERS = 1 << 20

_SPACES = frozenset(" \t\r\n\u3000")
_CHINESE_MARKS = "\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # , . ! , : ; ?
_MARKS = frozenset(string.digits + string.punctuation + _CHINESE_MARKS)


def certainly_splits(left: str, right: str) -> bool:
    """Whether a piece ends between these two characters whatever surrounds them."""
    if right in _SPACES:
        return not left.isspace()
    # Alphabets in Unicode from its first versions: no table of letters differs about them.
    old_letter = left.isalpha() and (left.isascii() or "\u3040" <= left <= "\u9fa5")
    return old_letter and right in _MARKS


class PieceBuffer:
    """Takes text in any portions and hands it on in whole pieces."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """All that is held, up to the last certain cut; the rest stays.

        Raises BadDataset if more than `MAX_HELD_CHARACTERS` stay: the memory that a piece needs
        grows with its length.
        """
        first_unseen = max(len(self._held), 1)
        self._held += text
        for cut in range(len(self._held) - 1, first_unseen - 1, -1):
            if certainly_splits(self._held[cut - 1], self._held[cut]):
                whole, self._held = self._held[:cut], self._held[cut:]
                return whole
        if len(self._held) > MAX_HELD_CHARACTERS:
            raise BadDataset(
                f"the text goes on for more than {MAX_HELD_CHARACTERS:,} characters without a "
                "place where GPT-2's encoding can be cut; break its lines, "
                "or use the char tokenizer"
            )
        return ""

    def flush(self) -> str:
        """What is left at the end of the text."""
        whole, self._held = self._held, ""
        return whole
