import string
from itertools import product

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.datasets.dataset import BadDataset
from nanogpt.datasets.piece_buffer import MAX_HELD_CHARACTERS, PieceBuffer, certainly_splits
from nanogpt.tokenizer import GPT2_PATTERN, GPT2Tokenizer

EVERY_CHARACTER = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
SINGLE_BYTES = {bytes([value]): value for value in range(256)}
UNRULY = st.sampled_from(
    [
        *" \t\n\r\f\x0b\x1c\x85\xa0\u2028\u3000",
        *"'\u2019.,!-_\"、。\uff01😀\u0301\u200d\ufeff",
        *"slreASé中文あ한19½٣",
        *["'s", "'ll", "'re", "a" * 30, "中" * 10],
        *["  ", "\n\n", " \n", " " * 20, "\n" * 15, "\t" * 9],
    ]
)


def matches(pattern: str, characters: list[str]) -> str:
    """The characters that match, as tiktoken's own regex engine sees it."""
    engine = tiktoken.Encoding(
        "engine", pat_str=pattern, mergeable_ranks=SINGLE_BYTES, special_tokens={}
    )
    return engine.decode(engine.encode_ordinary("".join(characters)))


def pushed(parts: list[str]) -> list[str]:
    buffer = PieceBuffer()
    return [*(buffer.push(part) for part in parts), buffer.flush()]


def test_no_certain_cut_changes_the_pieces_of_any_short_text():
    """All texts of up to five characters, with an encoding where each piece is one token."""
    alphabet = " \nasl'1!"
    texts = ["".join(t) for n in range(1, 6) for t in product(alphabet, repeat=n)]
    pieces = tiktoken.Encoding(
        "pieces",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={text.encode(): rank for rank, text in enumerate(texts)},
        special_tokens={},
    )
    ids = {text: pieces.encode_ordinary(text) for text in texts}
    num_cuts = 0
    for text in texts:
        for cut in range(1, len(text)):
            if certainly_splits(text[cut - 1], text[cut]):
                assert ids[text[:cut]] + ids[text[cut:]] == ids[text], (text, cut)
                num_cuts += 1
    assert num_cuts > 10_000


def test_letters_marks_and_spaces_are_what_the_pattern_takes_them_for():
    marks = [c for c in EVERY_CHARACTER if certainly_splits("a", c) and not c.isspace()]
    assert set(marks) >= set(string.punctuation + string.digits)
    assert matches(r"[\p{L}\s]", marks) == ""
    spaces = [c for c in EVERY_CHARACTER if certainly_splits("!", c)]
    assert " " in spaces and matches(r"\s", spaces) == "".join(spaces)
    letters = [c for c in EVERY_CHARACTER if certainly_splits(c, "!")]
    assert set(letters) >= {*string.ascii_letters, "中", "あ"}
    assert matches(r"\p{L}", letters) == "".join(letters)
    before_spaces = [c for c in EVERY_CHARACTER if certainly_splits(c, " ")]
    assert matches(r"\s", before_spaces) == ""


@settings(max_examples=400)
@given(st.lists(st.lists(UNRULY, max_size=12).map("".join), max_size=12))
def test_any_portions_are_encoded_as_the_whole_text(parts):
    tokenizer = GPT2Tokenizer()
    handed_on = pushed(parts)
    assert "".join(handed_on) == "".join(parts)
    assert [i for text in handed_on for i in tokenizer.encode(text)] == tokenizer.encode(
        "".join(parts)
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_single_characters_are_encoded_as_the_whole_text(text):
    tokenizer = GPT2Tokenizer()
    ids = [i for part in pushed(list(text)) for i in tokenizer.encode(part)]
    assert ids == tokenizer.encode(text)


@pytest.mark.parametrize("line", ["word " * 100, '{"key":123,"other":[1,2]}' * 10, "中文。" * 50])
def test_little_is_held_of_ordinary_text(line):
    buffer = PieceBuffer()
    handed_on = sum(len(buffer.push(line)) for _ in range(100))
    assert handed_on > 99 * len(line)


@pytest.mark.parametrize("character", ["a", " ", "\n", "7", "!", "中"])
def test_an_endless_run_is_refused_instead_of_held(character):
    buffer = PieceBuffer()
    portion = character * (MAX_HELD_CHARACTERS // 4)
    for _ in range(4):
        assert buffer.push(portion) == ""
    with pytest.raises(BadDataset, match="use the char tokenizer"):
        buffer.push(portion)
