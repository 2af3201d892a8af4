"""Documents out of archives, JSON lines and Parquet: what becomes text, what is said instead."""

import io
import json

import psutil
import pytest
from test_archive import tar

from nanogpt.datasets import json_lines, parquet_file, parquet_rows
from nanogpt.datasets.dataset import BadDataset, MissingParquet, TooMuchText
from nanogpt.datasets.documents import Documents
from nanogpt.datasets.parquet_rows import FRAME, Kind


@pytest.fixture
def upload(tmp_path):
    """Reads an upload: its documents, and what was counted on the way."""

    def read(data: bytes, format: str, field="text", encoding=None, max_bytes=1 << 30):
        (tmp_path / "upload").write_bytes(data)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        documents = Documents(
            format, field=field, encoding=encoding, scratch=scratch, max_bytes=max_bytes
        )
        texts, text, positions = [], "", []
        for piece in documents.read(tmp_path / "upload", positions.append):
            if piece is None:
                texts.append(text)
                text = ""
            else:
                text += piece
        assert text == "" and positions == sorted(positions)
        assert list(scratch.iterdir()) == []
        return texts, documents

    return read


def lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def parquet(columns: dict[str, list], **options) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


# JSON lines


def test_each_line_is_a_document(upload):
    data = (
        lines({"text": "a\nb", "id": 1}, {"text": ""}, {"text": None}) + b'\r\n{"text":"\xc3\xa4"}'
    )
    texts, documents = upload(data, "jsonl")
    assert texts == ["a\nb", "", "", "ä"]
    assert documents.encodings == {"utf-8"} and documents.undecodable_characters == 0


def test_another_field_can_hold_the_text(upload):
    assert upload(lines({"body": "x"}), "jsonl", field="body")[0] == ["x"]


def test_what_is_no_character_is_replaced_and_counted(upload):
    texts, documents = upload(b'{"text": "a\xff\\ud800\\ud83d\\ude00\xef\xbf\xbd"}', "jsonl")
    assert texts == ["a\ufffd\ufffd😀\ufffd"] and documents.undecodable_characters == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b"1" * 5000, "line 2 is not JSON"),
        (b'"text"', "line 2 is not a JSON object"),
        (b'{"body": "x"}', "line 2 has no field 'text'"),
        (b'{"text": 1.5}', "line 2 has a number in its field 'text', not text"),
        (b'{"text": true}', "line 2 has true or false in its field 'text', not text"),
        (b'{"text": []}', "line 2 has a list in its field 'text', not text"),
        (b'{"text": {}}', "line 2 has an object in its field 'text', not text"),
    ],
)
def test_a_wrong_line_is_named(upload, line, message):
    with pytest.raises(BadDataset) as caught:
        upload(lines({"text": "ok"}) + line, "jsonl")
    assert str(caught.value) == message
    with pytest.raises(BadDataset) as caught:
        upload(tar({"x/a.jsonl": lines({"text": "ok"}) + line}), "tar")
    assert str(caught.value) == f"'x/a.jsonl', {message}"


def test_a_line_without_end_is_refused(upload, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    with pytest.raises(BadDataset, match="line 2 is longer than 1,000 bytes"):
        upload(lines({"text": "ok"}) + b" " * 2000, "jsonl")


# Archives


def test_text_files_lines_and_rows_of_an_archive(upload):
    files = {
        "a.txt": b"one",
        "b/c.TXT": b"two",
        "d.jsonl": lines({"text": "three"}, {"text": "four"}),
        "e.parquet": parquet({"text": ["five", "six"]}),
        "f.md": b"left out",
        "._a.txt": b"hidden",
        "g": b"left out",
    }
    texts, documents = upload(tar(files), "tar")
    assert texts == ["one", "two", "three", "four", "five", "six"]
    assert documents.files_left_out == 3


def test_each_text_file_has_its_own_encoding(upload):
    files = {
        "a.txt": "\ufeffnaïve".encode(),
        "b.txt": "naïve “x”".encode("cp1252"),
        "c.txt": b"\x81\xff",
        "d.txt": b"x" * 70_000 + "é".encode("cp1252"),
    }
    texts, documents = upload(tar(files), "tar")
    assert texts == ["naïve", "naïve “x”", "\ufffd\ufffd", "x" * 70_000 + "é"]
    assert documents.encodings == {"utf-8", "cp1252"} and documents.undecodable_characters == 2


def test_a_given_encoding_is_that_of_all(upload):
    files = {"a.txt": b"a\xe9b\xef\xbf", "b.txt": "é\ufffd".encode()}
    texts, documents = upload(tar(files), "tar", encoding="utf-8")
    assert texts == ["a\ufffdb\ufffd", "é\ufffd"]
    assert documents.encodings == {"utf-8"} and documents.undecodable_characters == 2


def test_utf_16_in_an_archive_is_named(upload):
    with pytest.raises(BadDataset, match=r"'a\.txt' is UTF-16"):
        upload(tar({"a.txt": "text".encode("utf-16")}), "tar")


def test_an_archive_may_be_damaged(upload):
    with pytest.raises(BadDataset, match="damaged or breaks off"):
        upload(tar({"a.txt": b"x" * 5000})[:2000], "tar")


# Parquet


@pytest.mark.parametrize("options", [{}, {"row_group_size": 30}, {"use_dictionary": False}])
def test_each_row_is_a_document(upload, options):
    texts = ["a", None, "", "ä" * 3, "a"] * 500
    data = parquet({"n": list(range(2500)), "text": texts}, **options)
    assert upload(data, "parquet")[0] == [text or "" for text in texts]


def test_large_strings_and_other_columns(upload):
    pa = pytest.importorskip("pyarrow")
    data = parquet({"body": pa.array(["x", "y"], pa.large_string()), "text": [1, 2]})
    assert upload(data, "parquet", field="body")[0] == ["x", "y"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("text", "it has no column 'text'; its columns are 'n', 'body', 'nested'"),
        ("n", "it has int64 in its column 'n', not text"),
        ("nested", "it has struct<text: string> in its column 'nested', not text"),
    ],
)
def test_a_wrong_column_is_named(upload, field, message):
    data = parquet({"n": [1], "body": ["x"], "nested": [{"text": "x"}]})
    with pytest.raises(BadDataset) as caught:
        upload(data, "parquet", field=field)
    assert str(caught.value) == message


def test_bytes_that_are_no_text_are_replaced(upload):
    pa = pytest.importorskip("pyarrow")
    column = pa.array([b"a\xff"], pa.binary()).view(pa.string())
    texts, documents = upload(parquet({"text": column}), "parquet")
    assert texts == ["a\ufffd"] and documents.undecodable_characters == 1


def test_a_damaged_parquet_file(upload):
    data = bytearray(parquet({"text": ["some text"] * 1000}, use_dictionary=False))
    damages = [
        b"",
        b"text",
        bytes(data[: len(data) // 2]),
        bytes(data[:-20] + b"\xff" * 16 + data[-4:]),
    ]
    for damaged in damages:
        with pytest.raises(BadDataset, match="whole Parquet file"):
            upload(damaged, "parquet")


def frames(data: bytes) -> list[Kind]:
    """The kinds of the frames, of which none is cut off."""
    kinds = []
    while data:
        kind, size = FRAME.unpack_from(data)
        kinds.append(Kind(kind))
        assert len(data) >= FRAME.size + size
        data = data[FRAME.size + size :]
    return kinds


def test_any_flipped_byte_of_a_parquet_file_is_harmless(tmp_path):
    """As the process that reads it sees it, here in this one, since there are many."""
    data = bytearray(parquet({"text": ["some text"] * 100}, use_dictionary=False))
    for i in range(0, len(data), 7):
        data[i] ^= 0xFF
        (tmp_path / "a").write_bytes(data)
        data[i] ^= 0xFF
        out = io.BytesIO()
        parquet_rows.main(tmp_path / "a", "text", 1 << 30, out)
        *rows, last = frames(out.getvalue())
        assert last in (Kind.END, Kind.BAD) and {Kind.END, Kind.BAD}.isdisjoint(rows)


def test_a_reader_that_dies_is_an_error(upload, monkeypatch):
    data = parquet({"text": ["x"]})
    monkeypatch.setattr(parquet_file.sys, "executable", "/bin/false")
    with pytest.raises(BadDataset, match="it is not a whole Parquet file, or takes too much"):
        upload(data, "parquet")


def test_a_row_may_be_too_long(upload, monkeypatch):
    monkeypatch.setattr(parquet_file, "MAX_ROW_BYTES", 100)
    with pytest.raises(BadDataset, match="more than 100 bytes in row 2"):
        upload(parquet({"text": ["x" * 100, "x" * 101]}), "parquet")


def test_the_reader_ends_when_nobody_reads_on(tmp_path):
    (tmp_path / "a").write_bytes(parquet({"text": ["text" * 1000] * 1000}))
    rows = parquet_file.read_parquet(
        tmp_path / "a", "text", "", max_bytes=1 << 30, progress=lambda done: None
    )
    assert next(rows) == ("text" * 1000, 0)
    rows.close()  # waits for the process
    assert not psutil.Process().children()


def test_a_column_larger_than_allowed_is_refused_before_it_is_read(upload):
    data = parquet({"text": [f"{i:01000}" for i in range(1000)]}, compression="zstd")
    assert len(data) < 100_000
    with pytest.raises(TooMuchText, match="more than 500,000 bytes in its column 'text'"):
        upload(data, "parquet", max_bytes=500_000)


def test_without_pyarrow_it_is_said_how_to_install_it(upload, monkeypatch):
    monkeypatch.setattr(parquet_file, "find_spec", lambda name: None)
    with pytest.raises(MissingParquet, match=r"install nanogpt-service\[server,parquet\]"):
        upload(tar({"a.parquet": b"x"}), "tar")
