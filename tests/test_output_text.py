"""Text is whole, in order, and independent of where tokens end."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.inference.output_text import OutputText
from nanogpt.tokenizer import CharTokenizer

many_examples = settings(max_examples=300)


class PieceTokenizer:
    """Each token is one of the given byte strings, whatever its length."""

    kind = "pieces"
    end_of_text_id = None

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = list(pieces)
        self.vocab_size = len(self._pieces)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self._pieces[id] for id in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """(start, stop) of the match that is complete first, the longest of those: an oracle."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return end - len(stop), stop
    return None


def read(
    pieces: list[bytes], stops: tuple[str, ...] = (), include: bool = False
) -> tuple[list[str], str | None]:
    """What each push and the final finish released, and the stop string."""
    text = OutputText(PieceTokenizer(pieces), stops, include)
    released = []
    for token_id in range(len(pieces)):
        released.append(text.push(token_id))
        if text.stop_string is not None:
            return released, text.stop_string
    return [*released, text.finish()], None


# few letters, so that matches and near-matches are common; one takes 2 bytes, one takes 4
texts = st.text(alphabet="abé🙂", max_size=24)
stop_lists = st.lists(
    st.text(alphabet="abé🙂", min_size=1, max_size=5), max_size=4, unique=True
).map(tuple)


@st.composite
def pieces_of_text(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text and its bytes cut anywhere, also inside characters."""
    text = draw(texts)
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    return text, [data[a:b] for a, b in pairwise(cuts)]


@many_examples
@given(pieces_of_text(), stop_lists, st.booleans())
def test_stops_where_the_oracle_does_wherever_tokens_end(
    text_and_pieces: tuple[str, list[bytes]], stops: tuple[str, ...], include: bool
) -> None:
    text, pieces = text_and_pieces
    released, stop_string = read(pieces, stops, include)
    expected = first_stop(text, stops)
    if expected is None:
        assert stop_string is None and "".join(released) == text
    else:
        start, stop = expected
        assert stop_string == stop
        assert "".join(released) == text[:start] + (stop if include else "")


@many_examples
@given(pieces_of_text(), stop_lists)
def test_holds_back_no_more_than_what_may_begin_a_stop(
    text_and_pieces: tuple[str, list[bytes]], stops: tuple[str, ...]
) -> None:
    _, pieces = text_and_pieces
    released, stop_string = read(pieces, stops)
    for count in range(1, len(pieces) if stop_string is None else len(released)):
        so_far = b"".join(pieces[:count]).decode("utf-8", "ignore")
        out = "".join(released[:count])
        held = so_far.removeprefix(out)
        assert so_far == out + held
        possible = [
            stop[:size]
            for stop in stops
            for size in range(1, len(stop))
            if so_far.endswith(stop[:size])
        ]
        assert held == max(possible, key=len, default="")


@many_examples
@given(pieces_of_text(), stop_lists, st.integers(0, 10))
def test_stops_before_the_minimum_are_text(
    text_and_pieces: tuple[str, list[bytes]], stops: tuple[str, ...], minimum: int
) -> None:
    """A stop counts if it is complete with a token from the minimum on."""
    text, pieces = text_and_pieces
    output = OutputText(PieceTokenizer(pieces), stops)
    released = ""
    for token_id in range(len(pieces)):
        released += output.push(token_id, may_stop=token_id + 1 >= minimum)
        if output.stop_string is not None:
            break
    else:
        released += output.finish()
    ignored = len(b"".join(pieces[: max(0, minimum - 1)]).decode("utf-8", "ignore"))
    matches = [
        (end, -len(stop), stop)
        for stop in stops
        for end in range(ignored + 1, len(text) + 1)
        if text[:end].endswith(stop)
    ]
    if matches:
        end, _, stop = min(matches)
        assert output.stop_string == stop and released == text[: end - len(stop)]
    else:
        assert output.stop_string is None and released == text


@many_examples
@given(st.binary(max_size=24), st.data())
def test_any_bytes_become_valid_text(data: bytes, draws: st.DataObject) -> None:
    cuts = sorted(draws.draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    pieces = [data[a:b] for a, b in pairwise(cuts)]
    released, _ = read(pieces)
    assert "".join(released) == data.decode("utf-8", "replace")
    for text in released:
        text.encode()  # no lone surrogates


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    released, _ = read(["é".encode()[:1]], stops=("\ufffd",))
    assert released == ["", "\ufffd"]


def test_characters_of_a_char_tokenizer() -> None:
    tokenizer = CharTokenizer("abc")
    text = OutputText(tokenizer, ("bc",))
    assert [text.push(id) for id in tokenizer.encode("abac")] == ["a", "", "ba", "c"]
    assert text.push(1) == "" and text.finish() == "b"


def test_an_ignored_stop_is_text_at_once_and_for_good() -> None:
    tokenizer = CharTokenizer("abxy")
    text = OutputText(tokenizer, ("ab",))
    assert [text.push(id, may_stop=False) for id in tokenizer.encode("ab")] == ["", "ab"]
    # held back as the beginning of the longer one, the shorter one is still over
    text = OutputText(tokenizer, ("ab", "xaby"))
    assert [text.push(id, may_stop=False) for id in tokenizer.encode("xab")] == ["", "", ""]
    assert text.push(tokenizer.encode("x")[0]) == "xab" and text.stop_string is None
