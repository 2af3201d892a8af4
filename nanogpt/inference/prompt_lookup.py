"""Guesses the next tokens of a text by looking its newest ones up earlier in it. No torch.

Speculation without a second model, https://github.com/apoorvumang/prompt-lookup-decoding: where the
text repeats itself, the tokens that followed the last time are likely to follow again. The engine
computes them in one forward pass and keeps those that it would have sampled anyway: a guess costs
time and never changes an answer. Text that does not repeat itself is soon left alone.
"""

NGRAM_SIZES = (3, 2)
"""Newest tokens to look up: a longer match is tried first, since it is right more often."""

MIN_ACCEPTANCE = 0.2
"""Share of guesses below which guessing costs more than it spares."""

SMOOTHING = 0.2  # of the newest guess in the running acceptance
REST_STEPS = 64  # without guesses, before it is tried again


class PromptLookup:
    """The guesses for one sample."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}  # position after the latest such n-gram
        self._num_indexed = 0
        self._acceptance = 1.0
        self._rest = 0

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow; none if nothing is known. `tokens` are those of the
        last call and what came since."""
        self._index(tokens)
        if self._rest > 0:
            self._rest -= 1
            return []
        for size in NGRAM_SIZES:
            start = self._followers.get(tuple(tokens[-size:]))
            if start is not None:
                known = tokens[start : start + most]
                while len(known) < most:  # the text repeats what has just begun
                    known += known[: most - len(known)]
                return known
        return []

    def learn(self, guessed: int, right: int) -> None:
        """How many of the tokens guessed last were right."""
        self._acceptance += SMOOTHING * (right / guessed - self._acceptance)
        if self._acceptance < MIN_ACCEPTANCE:
            self._rest = REST_STEPS
            self._acceptance = 2 * MIN_ACCEPTANCE

    def _index(self, tokens: list[int]) -> None:
        """Remembers every n-gram that something follows."""
        for end in range(max(self._num_indexed, 1), len(tokens)):
            for size in NGRAM_SIZES:
                if end >= size:
                    self._followers[tuple(tokens[end - size : end])] = end
        self._num_indexed = len(tokens)
