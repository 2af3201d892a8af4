"""The window on a sequence and the rules by which it ends."""

from typing import Any

import pytest

from nanogpt.inference.events import Finished
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.sequence import Sequence
from nanogpt.tokenizer import CharTokenizer

BLOCK_SIZE = 16
CHARACTERS = CharTokenizer("abcdefgh|")


class Tokenizer(CharTokenizer):
    """One whose last token ends a text."""

    @property
    def end_of_text_id(self) -> int:  # type: ignore[override]
        return self.vocab_size - 1


def sequence(
    prompt_tokens: int = 1, tokenizer: CharTokenizer = CHARACTERS, **stopping: Any
) -> Sequence:
    """A sequence whose prompt is all `a`."""
    request = Request("r", [0] * prompt_tokens, SamplingParams(), StoppingParams(**stopping))
    return Sequence(request, 0, BLOCK_SIZE, tokenizer)


def generate(sequence: Sequence, text: str) -> tuple[str, Finished | None, int]:
    """Feeds the tokens of `text` until the end: (text returned, end, tokens sampled)."""
    returned = ""
    for token_id in CHARACTERS.encode(text):
        piece, finished = sequence.append(token_id)
        returned += piece
        if finished is not None:
            return returned, finished, sequence.num_sampled
    return returned, None, sequence.num_sampled


def ended(reason: str, **stop: Any) -> Finished:
    return Finished("r", 0, reason, **stop)  # type: ignore[arg-type]


def test_length() -> None:
    assert generate(sequence(max_new_tokens=3), "bcde") == ("bcd", ended("length"), 3)


def test_a_stop_string_on_the_last_token_is_a_stop() -> None:
    stopped = generate(sequence(max_new_tokens=3, stop_strings=("cd",)), "bcde")
    assert stopped == ("b", ended("stop", stop_string="cd"), 3)


def test_what_was_held_back_is_returned_at_the_end() -> None:
    stopping = {"stop_strings": ("cdx",), "stop_token_ids": (7,)}
    assert generate(sequence(max_new_tokens=3, **stopping), "bcd") == ("bcd", ended("length"), 3)
    stopped = generate(sequence(**stopping), "bcdh")
    assert stopped == ("bcd", ended("stop", stop_token_id=7), 4)


def test_include_stop_string() -> None:
    stopped = generate(sequence(stop_strings=("cd",), include_stop_string=True), "bcde")
    assert stopped == ("bcd", ended("stop", stop_string="cd"), 3)


def test_stop_strings_are_ignored_until_the_minimum() -> None:
    stopping = {"stop_strings": ("bc",), "min_new_tokens": 3}
    stopped = generate(sequence(**stopping), "bcabcd")
    assert stopped == ("bca", ended("stop", stop_string="bc"), 5)
    # complete with the token that reaches the minimum
    stopped = generate(sequence(**stopping), "abcd")
    assert stopped == ("a", ended("stop", stop_string="bc"), 3)


def test_the_prompt_is_no_part_of_a_stop_string() -> None:
    assert generate(sequence(stop_strings=("ab",)), "bc")[1] is None


def test_end_of_text() -> None:
    tokenizer = Tokenizer("abcdefgh|")
    assert generate(sequence(tokenizer=tokenizer), "b|c") == ("b", ended("end_of_text"), 2)
    ignoring = sequence(tokenizer=tokenizer, ignore_end_of_text=True)
    assert generate(ignoring, "b|c") == ("b|c", None, 3)
    banned = sequence(tokenizer=tokenizer, min_new_tokens=2, stop_token_ids=(3,)).row
    assert banned.banned_ids == (3, 8)
    assert ignoring.row.banned_ids == ()


@pytest.mark.parametrize(("prompt_tokens", "sampled"), [(14, 2), (15, 1), (16, 1)])
def test_stop_ends_when_prompt_and_output_fill_the_window(prompt_tokens: int, sampled: int) -> None:
    """A prompt that fills it alone still gets a token."""
    stopped = generate(sequence(prompt_tokens, context_overflow="stop"), "bcd")
    assert stopped == ("bcd"[:sampled], ended("length"), sampled)


@pytest.mark.parametrize(
    ("overflow", "starts"), [("roll", [0, 0, 9, 9, 9]), ("exact", [0, 0, 1, 2, 3])]
)
def test_the_window_moves_when_it_is_full(overflow: str, starts: list[int]) -> None:
    """Roll keeps the newest half of the window, exact the newest block_size tokens."""
    moving = sequence(14, context_overflow=overflow)
    for start in starts:
        moving.num_cached += moving.num_uncached
        moving.append(1)
        assert moving.window_start == start
        moved = start > 0 and (overflow == "exact" or moving.num_sampled == 3)
        assert (moving.num_cached == 0) == moved
        assert moving.num_uncached == (len(moving.tokens) - start if moved else 1)


@pytest.mark.parametrize("overflow", ["roll", "exact"])
def test_a_long_prompt_keeps_its_newest_block_size_tokens(overflow: str) -> None:
    long = sequence(BLOCK_SIZE + 5, context_overflow=overflow)
    assert long.num_uncached == BLOCK_SIZE == len(long.tokens)  # nothing before the window is kept


@pytest.mark.parametrize("overflow", ["roll", "exact"])
def test_a_window_of_one_token(overflow: str) -> None:
    request = Request("r", [0], SamplingParams(), StoppingParams(context_overflow=overflow))
    one = Sequence(request, 0, 1, CHARACTERS)
    for token_id in (5, 6):
        one.num_cached = 1
        one.append(token_id)
        assert one.num_uncached == 1 and one.next_tokens(1) == [token_id]
