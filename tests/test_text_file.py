import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.datasets.dataset import BadDataset
from nanogpt.datasets.text_file import (
    CHUNK_BYTES,
    decode,
    decode_with_replacement,
    in_its_encoding,
    read_bytes,
)


def ignore(position: int) -> None:
    """Nobody watches."""


def detect_encoding(path, progress):
    def read(encoding: str) -> str:
        assert list(decode(read_bytes(path, progress), encoding))
        return encoding

    return in_its_encoding(path, read)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 5))
def test_any_chunks_decode_to_the_text(text, size):
    data = text.encode()
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(decode(chunks, "utf-8")) == text.removeprefix("\ufeff")


@given(st.binary(max_size=40), st.integers(1, 5), st.booleans())
def test_offset_is_that_of_the_first_wrong_byte(data, size, marked):
    data = codecs.BOM_UTF8 * marked + data
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    try:
        data.decode()
    except UnicodeDecodeError as error:
        message = f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
        with pytest.raises(BadDataset, match=f"^{message}$"):
            list(decode(chunks, "utf-8"))
    else:
        assert "".join(decode(chunks, "utf-8")) == data.decode("utf-8-sig")


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "utf-8"),
        (b"plain", "utf-8"),
        ("naïve ☃".encode(), "utf-8"),
        (codecs.BOM_UTF8 + b"text", "utf-8"),
        ("naïve “quotes” €".encode("cp1252"), "cp1252"),
        (b"x" * (3 * CHUNK_BYTES) + b"\xe9", "cp1252"),
    ],
)
def test_encoding_is_found_out(tmp_path, data, encoding):
    (tmp_path / "text").write_bytes(data)
    assert detect_encoding(tmp_path / "text", ignore) == encoding


def test_character_across_a_chunk_border_is_utf_8(tmp_path):
    text = "x" * (CHUNK_BYTES - 1) + "😀"
    (tmp_path / "text").write_text(text, "utf-8")
    assert detect_encoding(tmp_path / "text", ignore) == "utf-8"
    assert "".join(decode(read_bytes(tmp_path / "text", ignore), "utf-8")) == text


def test_bytes_of_neither_encoding_are_named_with_both_offsets(tmp_path):
    (tmp_path / "text").write_bytes(b"ab\xffcd\x81")
    with pytest.raises(BadDataset) as caught:
        detect_encoding(tmp_path / "text", ignore)
    assert "byte 0xff at offset 2 is not UTF-8" in str(caught.value)
    assert "byte 0x81 at offset 5 is not Windows-1252" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_named(tmp_path, encoding):
    (tmp_path / "text").write_bytes("\ufefftext".encode(encoding))
    with pytest.raises(BadDataset, match="UTF-16"):
        detect_encoding(tmp_path / "text", ignore)


def test_progress_ends_at_the_files_size(tmp_path):
    size = 2 * CHUNK_BYTES + 1
    (tmp_path / "text").write_bytes(b"x" * size)
    positions: list[int] = []
    assert len(b"".join(read_bytes(tmp_path / "text", positions.append))) == size
    assert positions == [CHUNK_BYTES, 2 * CHUNK_BYTES, size]


@pytest.mark.parametrize(
    ("data", "encoding", "text", "undecodable"),
    [
        ("naïve \ufffd".encode(), "utf-8", "naïve \ufffd", 0),
        (b"a\xffb\xe2\x82", "utf-8", "a\ufffdb\ufffd", 2),
        (b"\xe2\xef\xbf\xbd", "utf-8", "\ufffd\ufffd", 1),
        (b"\xe9\x81", "cp1252", "é\ufffd", 1),
    ],
)
def test_replaced_bytes_are_counted_apart_from_what_was_there(data, encoding, text, undecodable):
    assert decode_with_replacement(data, encoding) == (text, undecodable)
