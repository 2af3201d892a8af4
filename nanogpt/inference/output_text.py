"""Sampled token ids to text that is certain: whole characters, and no possible stop string.

A stop string counts where it is complete first, wherever the borders of tokens are; of several
complete at the same character the longest counts. No torch.
"""

from nanogpt.tokenizer import StreamDecoder, Tokenizer


class OutputText:
    """The text of one sample, released piece by piece."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: tuple[str, ...] = (),
        include_stop_string: bool = False,
    ) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop_strings = stop_strings
        self._include_stop_string = include_stop_string
        self._held = ""  # a suffix of the text so far that may begin a stop string
        self.stop_string: str | None = None
        """The stop string that ended the text, once there is one."""

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """The text that became certain with this token.

        Stop strings that are complete while `may_stop` is false are ordinary text. After one that
        counts (`stop_string` is set) there must be no more pushes.
        """
        if not self._stop_strings:
            return self._decoder.push([token_id])
        seen = len(self._held)
        text = self._held + self._decoder.push([token_id])
        if may_stop and (match := self._first_match(text, seen)):
            start, self.stop_string = match
            self._held = ""
            return text[:start] + (self.stop_string if self._include_stop_string else "")
        certain = len(text) - self._possible_start(text)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The rest of the text: nothing more will come.

        A character whose bytes are incomplete becomes U+FFFD and is never part of a stop string.
        """
        text, self._held = self._held + self._decoder.flush(), ""
        return text

    def _first_match(self, text: str, seen: int) -> tuple[int, str] | None:
        """(start, stop string) of the match in `text` that ends first, after `seen` characters."""
        matches = []
        for stop in self._stop_strings:
            start = text.find(stop, max(0, seen + 1 - len(stop)))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string without being one."""
        longest = 0
        for stop in self._stop_strings:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
