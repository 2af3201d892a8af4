import hashlib
import json
import subprocess
import sys
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.tokenizer import (
    GPT2_RANKS,
    GPT2_RANKS_SHA256,
    CharTokenizer,
    GPT2Tokenizer,
    StreamDecoder,
    UnknownCharacters,
    UnknownTokenId,
    tokenizer_from_json,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ALPHABET = CharTokenizer.from_text("\n abcé☃語😀\U0010ffff")
MARKER_IDS = [27, 91, 437, 1659, 5239, 91, 29]


def portions(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """The ids cut at some of their positions, with empty portions where cuts coincide."""
    places = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[start:end] for start, end in pairwise(places)]


def test_char_vocabulary_is_sorted_by_code_point():
    tokenizer = CharTokenizer.from_text("hello world")
    assert tokenizer.characters == list(" dehlorw")
    assert tokenizer.vocab_size == 8
    assert tokenizer.end_of_text_id is None
    assert tokenizer.encode("hello") == [3, 2, 4, 4, 5]


@given(TEXTS)
def test_char_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters_are_named_once_in_order():
    with pytest.raises(UnknownCharacters) as caught:
        CharTokenizer.from_text("abc").encode("aéb☃éd")
    assert caught.value.characters == ["é", "☃", "d"]
    assert "'é', '☃', 'd'" in str(caught.value)


def test_message_about_many_unknown_characters_is_short():
    with pytest.raises(UnknownCharacters, match="and 80 more") as caught:
        CharTokenizer([]).encode("".join(map(chr, range(200, 300))))
    assert len(caught.value.characters) == 100


@pytest.mark.parametrize("characters", [["a", "a"], ["ab"], [""], ["\ud800"]])
def test_vocabulary_must_be_distinct_characters(characters):
    with pytest.raises(ValueError, match="vocabulary"):
        CharTokenizer(characters)


@pytest.mark.parametrize("tokenizer", [ALPHABET, GPT2Tokenizer()])
@pytest.mark.parametrize("offset", [-1, None])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, offset):
    token_id = tokenizer.vocab_size if offset is None else offset
    for use in (
        tokenizer.token_bytes,
        lambda i: tokenizer.decode([i]),
        lambda i: StreamDecoder(tokenizer).push([i]),
    ):
        with pytest.raises(UnknownTokenId) as caught:
            use(token_id)
        assert caught.value.token_id == token_id


def test_gpt2_reference_ids():
    tokenizer = GPT2Tokenizer()
    assert tokenizer.vocab_size == 50257
    assert tokenizer.end_of_text_id == 50256
    assert tokenizer.encode("") == []
    assert tokenizer.encode("Hello") == [15496]
    assert tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]


def test_end_of_text_marker_is_plain_text():
    tokenizer = GPT2Tokenizer()
    assert tokenizer.encode("<|endoftext|>") == MARKER_IDS
    assert tokenizer.decode([50256]) == "<|endoftext|>" == tokenizer.decode(MARKER_IDS)


def test_every_byte_has_a_gpt2_token():
    tokenizer = GPT2Tokenizer()
    every = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert len(every) == tokenizer.vocab_size
    assert every >= {bytes([value]) for value in range(256)}


@given(TEXTS)
def test_gpt2_round_trip(text):
    tokenizer = GPT2Tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("space", [" ", "\n", " \n\t", "\u3000"])
@pytest.mark.parametrize("end", ["", "x", " x y"])
def test_long_white_space_is_encoded_as_short_white_space_is(space, end):
    # Nothing merges more than 16 characters of these, so the middle of a run repeats itself:
    # 96 characters more are 96 characters' worth of the same ids more.
    tokenizer = GPT2Tokenizer()
    short, longer, long = (
        tokenizer.encode("a" + (space * n)[:n] + end) for n in (960, 1056, 960 + 96 * 1100)
    )
    assert len(long) == len(short) + 1100 * (len(longer) - len(short))
    assert tokenizer.decode(long) == "a" + (space * (960 + 96 * 1100))[: 960 + 96 * 1100] + end
    assert long[-4:] == short[-4:]


@pytest.mark.parametrize("end", ["", "x"])
def test_more_white_space_than_the_regex_engine_can_look_back_on(end):
    text = "a" + "\n" * 1_200_000 + end
    tokenizer = GPT2Tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [ALPHABET, GPT2Tokenizer()])
def test_json_round_trip(tokenizer):
    copy = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert copy.to_json() == tokenizer.to_json()
    assert (copy.kind, copy.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    assert copy.encode("abc é😀"[:3]) == tokenizer.encode("abc é😀"[:3])


@pytest.mark.parametrize(
    "description",
    [{}, {"kind": "word"}, {"kind": "char"}, {"kind": "char", "characters": ["a", 1]}],
)
def test_descriptions_of_no_tokenizer(description):
    with pytest.raises(ValueError, match=r"tokenizer"):
        tokenizer_from_json(description)


@given(TEXTS, st.lists(st.integers(0, 1000)))
def test_stream_of_gpt2_ids_adds_up_to_the_text(text, cuts):
    tokenizer = GPT2Tokenizer()
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push(part) for part in portions(tokenizer.encode(text), cuts)]
    assert "".join(parts) == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)
    assert decoder.flush() == ""


@given(st.text(ALPHABET.characters), st.lists(st.integers(0, 1000)))
def test_stream_of_char_ids_adds_up_to_the_text(text, cuts):
    decoder = StreamDecoder(ALPHABET)
    parts = [decoder.push(part) for part in portions(ALPHABET.encode(text), cuts)]
    assert "".join(parts) == text
    assert decoder.flush() == ""


@settings(max_examples=400)
@given(
    st.lists(st.one_of(st.integers(94, 255), st.integers(0, 50256)), max_size=30),
    st.lists(st.integers(0, 1000)),
)
def test_stream_of_invalid_bytes_equals_decoding_them_at_once(ids, cuts):
    tokenizer = GPT2Tokenizer()  # ids below 256 are single bytes, from 94 on mostly not ASCII
    decoder = StreamDecoder(tokenizer)
    streamed = "".join(decoder.push(part) for part in portions(ids, cuts)) + decoder.flush()
    assert streamed == tokenizer.decode(ids)
    assert streamed == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


def test_half_a_character_is_held_back_until_flush():
    tokenizer = GPT2Tokenizer()
    first, *rest = tokenizer.encode("😀")
    decoder = StreamDecoder(tokenizer)
    assert decoder.push([first]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push([first]) == ""
    assert decoder.push(rest) == "😀"


def test_ranks_are_the_published_ones():
    data = resources.files("nanogpt").joinpath("data", GPT2_RANKS).read_bytes()
    assert hashlib.sha256(data).hexdigest() == GPT2_RANKS_SHA256
    assert GPT2_RANKS_SHA256 in resources.files("nanogpt").joinpath("data/ORIGIN.md").read_text()


def test_nothing_is_read_until_the_encoding_is_used():
    program = (
        "import sys; opened = [];"
        "sys.addaudithook(lambda event, args: opened.append(args[0]) if event == 'open' else None);"
        "from nanogpt.tokenizer import GPT2Tokenizer; tokenizer = GPT2Tokenizer();"
        "lazy = not any('tiktoken' in str(p) and str(p).endswith('.tiktoken') for p in opened);"
        "tokenizer.encode('x');"
        "assert lazy and any(str(p).endswith('.tiktoken') for p in opened);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
