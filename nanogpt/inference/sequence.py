"""One sample of a request, from its prompt to its last character. No torch.

The model sees a window of at most block_size tokens, at positions counted from the window's start.
The KV cache holds the first `num_cached` tokens of the window; the others are still to compute,
and the last one's logits choose the next token.
"""

from nanogpt.inference.events import Finished, FinishReason
from nanogpt.inference.logprobs import TokenLogprob
from nanogpt.inference.output_text import OutputText
from nanogpt.inference.prompt_lookup import PromptLookup
from nanogpt.inference.request import Request, ending_ids
from nanogpt.inference.sampler import Row
from nanogpt.tokenizer import Tokenizer


class Sequence:
    """Tokens, the window on them, and the rules by which they end.

    Between steps: 0 <= num_cached < window length <= block_size. Only a text that is scored is
    longer than its window, which then moves on by its whole length.
    """

    def __init__(
        self, request: Request, sample_index: int, block_size: int, tokenizer: Tokenizer
    ) -> None:
        self.request = request
        self.sample_index = sample_index
        self.slot: int | None = None
        """Where the KV cache keeps this sequence; None while waiting and once it is over."""
        self.tokens = request.prompt_ids[-block_size:]
        """The part of the prompt that the model sees, and what was sampled."""
        if request.scores_only:
            self.tokens = request.prompt_ids[:-1]  # nothing is asked about what follows the last
        self.window_start = 0
        self.num_cached = 0
        self.num_reused = 0
        """Tokens of the prompt that others had computed."""
        self.has_begun = False
        """Whether any of its tokens was computed."""
        self.prompt_logprobs: list[TokenLogprob] = []
        """Those computed so far, if the request asked for them."""
        self.num_drafted = 0
        """Tokens that were guessed."""
        self.num_accepted = 0
        """Guesses that were right."""
        stopping = request.stopping
        self.row = Row(
            request.sampling,
            sample_index,
            request.distinct_prompt_ids if request.sampling.repetition_penalty != 1 else (),
            ending_ids(stopping, tokenizer),
            stopping.min_new_tokens,
        )
        self._text = OutputText(tokenizer, stopping.stop_strings, stopping.include_stop_string)
        self._block_size = block_size
        self._end_of_text_id = None if stopping.ignore_end_of_text else tokenizer.end_of_text_id
        self._lookup = PromptLookup() if request.max_draft_tokens else None

    @property
    def num_sampled(self) -> int:
        return self.row.position

    @property
    def num_uncached(self) -> int:
        """Tokens still to compute."""
        return len(self.tokens) - self.window_start - self.num_cached

    @property
    def num_computable(self) -> int:
        """Tokens that can be computed next: those to compute as far as the window has room."""
        return min(self.num_uncached, self._block_size - self.num_cached)

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are wanted, which it now computes."""
        wanted = self.request.prompt_logprobs is not None
        return wanted and self.sample_index == 0 and not self.num_sampled

    @property
    def cached_tokens(self) -> list[int]:
        """The tokens whose keys and values the slot holds."""
        return self.tokens[self.window_start : self.window_start + self.num_cached]

    def next_tokens(self, count: int) -> list[int]:
        """The first `count` of the tokens still to compute."""
        start = self.window_start + self.num_cached
        return self.tokens[start : start + count]

    def draft(self, most: int) -> list[int]:
        """Guesses of what follows, at most this many; none that could not be kept, were it right.

        The window must have no other token to compute than the last. While the prompt is scored
        there are none: its chunks have logits of their own tokens only.
        """
        if self._lookup is None or self.scores_prompt:
            return []
        room = self._block_size - len(self.tokens) + self.window_start
        left = self.request.stopping.max_new_tokens - self.num_sampled - 1
        most = min(most, self.request.max_draft_tokens, room, left)
        return self._lookup.guess(self.tokens, most) if most > 0 else []

    def checked(self, drafted: int, accepted: int) -> None:
        """Of the tokens guessed, this many were right."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        if self._lookup is not None and drafted:
            self._lookup.learn(drafted, accepted)

    def computed(self, num_tokens: int) -> None:
        """Records that the slot now holds the next `num_tokens` tokens."""
        self.has_begun = True
        self.num_cached += num_tokens
        if self.num_cached == self._block_size and self.num_uncached:
            self.window_start += self._block_size
            self.num_cached = 0

    def append(self, token_id: int) -> tuple[str, Finished | None]:
        """Takes a sampled token: the text that became certain, and the end if this is it."""
        stopping = self.request.stopping
        self.tokens.append(token_id)
        self.row.push(token_id)
        if token_id == self._end_of_text_id:
            return self._text.finish(), self._finished("end_of_text")
        if token_id in stopping.stop_token_ids:
            return self._text.finish(), self._finished("stop", stop_token_id=token_id)
        text = self._text.push(token_id, may_stop=self.num_sampled >= stopping.min_new_tokens)
        if self._text.stop_string is not None:
            return text, self._finished("stop", stop_string=self._text.stop_string)
        full = stopping.context_overflow == "stop" and len(self.tokens) >= self._block_size
        if full or self.num_sampled == stopping.max_new_tokens:
            return text + self._text.finish(), self._finished("length")
        self._slide()
        return text, None

    def _slide(self) -> None:
        """Moves the window if the newest token is beyond it.

        Positions are absolute, so nothing cached survives a move.
        """
        if len(self.tokens) - self.window_start <= self._block_size:
            return
        exact = self.request.stopping.context_overflow == "exact"
        keep = self._block_size if exact else max(1, self._block_size // 2)
        self.window_start = len(self.tokens) - keep
        self.num_cached = 0

    def _finished(
        self,
        reason: FinishReason,
        stop_string: str | None = None,
        stop_token_id: int | None = None,
    ) -> Finished:
        return Finished(self.request.id, self.sample_index, reason, stop_string, stop_token_id)
