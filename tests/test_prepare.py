import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt.datasets.dataset import BadDataset, Dataset, TooMuchText
from nanogpt.datasets.prepare import prepare_documents, prepare_text, split_point
from nanogpt.datasets.text_file import CHUNK_BYTES
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

PROSE = "First line, it's 1 of 2.\r\n\r\n\tNaïve “quotes”   and spaces  \n" * 5000


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(PROSE.encode())
    assert path.stat().st_size > 4 * CHUNK_BYTES
    return path


def test_char_tokens_are_those_of_the_whole_text(source, tmp_path):
    meta = prepare_text(source, tmp_path / "made", tokenizer="char")
    tokenizer = CharTokenizer.from_text(PROSE)
    border = int(len(PROSE) * 0.9)
    train = np.fromfile(tmp_path / "made/train.bin", dtype="<u2").tolist()
    val = np.fromfile(tmp_path / "made/val.bin", dtype="<u2").tolist()
    assert train == tokenizer.encode(PROSE[:border])
    assert val == tokenizer.encode(PROSE[border:])
    assert (meta.train_tokens, meta.val_tokens) == (border, len(PROSE) - border)
    assert meta.tokenizer == tokenizer.to_json()
    assert meta.vocab_size == tokenizer.vocab_size


def test_gpt2_tokens_are_those_of_each_split(source, tmp_path):
    meta = prepare_text(source, tmp_path / "made", tokenizer="gpt2", val_ratio=0.25)
    dataset = Dataset.open(tmp_path / "made")
    border = len(PROSE) * 3 // 4
    assert dataset.tokens("train").tolist() == GPT2Tokenizer().encode(PROSE[:border])
    assert dataset.tokens("val").tolist() == GPT2Tokenizer().encode(PROSE[border:])
    assert meta.tokenizer == {"kind": "gpt2"}
    assert meta.vocab_size == 50257


def test_description_says_where_the_tokens_come_from(source, tmp_path):
    meta = prepare_text(source, tmp_path / "made", tokenizer="char", val_ratio=0.2)
    assert Dataset.open(tmp_path / "made").meta == meta
    assert meta.characters == len(PROSE)
    assert (meta.val_ratio, meta.encoding) == (0.2, "utf-8")
    assert meta.source_sha256 == hashlib.sha256(PROSE.encode()).hexdigest()
    content = json.loads((tmp_path / "made/meta.json").read_text("utf-8"))
    assert content["tokenizer"]["kind"] == "char"
    assert [content["itos"][str(i)] for i in range(meta.vocab_size)] == sorted(set(PROSE))
    assert content["stoi"] == {c: int(i) for i, c in content["itos"].items()}


@given(st.integers(2, 1 << 50))
def test_split_is_nanogpts(n):
    assert split_point(n, 0.1) == int(n * 0.9)


def test_split_of_decimal_ratios_is_exact():
    assert split_point(1_115_394, 0.1) == 1_003_854
    assert split_point(10, 0.9) == 1  # 10 * (1 - 0.9) is 0.9999999999999998
    assert split_point(8_013_769, 0.0005) == 8_009_762


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_windows_1252_is_found_out(tmp_path, tokenizer):
    (tmp_path / "text").write_bytes(PROSE.encode("cp1252"))
    meta = prepare_text(tmp_path / "text", tmp_path / "made", tokenizer=tokenizer)
    assert (meta.encoding, meta.characters) == ("cp1252", len(PROSE))
    dataset = Dataset.open(tmp_path / "made")
    ids = [*dataset.tokens("train").tolist(), *dataset.tokens("val").tolist()]
    assert dataset.tokenizer.decode(ids) == PROSE


def test_encoding_can_be_overridden(tmp_path):
    (tmp_path / "text").write_bytes("naïve".encode())
    meta = prepare_text(tmp_path / "text", tmp_path / "made", tokenizer="char", encoding="cp1252")
    assert (meta.encoding, meta.characters) == ("cp1252", 6)


def test_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfabcdefghij")
    meta = prepare_text(tmp_path / "text", tmp_path / "made", tokenizer="char")
    assert (meta.characters, meta.vocab_size, meta.encoding) == (10, 10, "utf-8")


def test_undecodable_byte_is_named_with_its_offset(source, tmp_path):
    data = bytearray(source.read_bytes())
    data[2 * CHUNK_BYTES + 5 : 2 * CHUNK_BYTES + 5] = b"\xff"
    source.write_bytes(data)
    with pytest.raises(BadDataset, match=f"byte 0xff at offset {2 * CHUNK_BYTES + 5} is not UTF-8"):
        prepare_text(source, tmp_path / "made", tokenizer="char", encoding="utf-8")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("text", ["", "a"])
@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_too_short_a_text(tmp_path, text, tokenizer):
    (tmp_path / "text").write_text(text)
    with pytest.raises(BadDataset, match="too short to split"):
        prepare_text(tmp_path / "text", tmp_path / "made", tokenizer=tokenizer)


def test_two_characters_can_be_split(tmp_path):
    (tmp_path / "text").write_text("ab")
    meta = prepare_text(tmp_path / "text", tmp_path / "made", tokenizer="char")
    assert (meta.train_tokens, meta.val_tokens) == (1, 1)


@pytest.mark.parametrize("distinct", [65_536, 65_537])
def test_vocabulary_must_fit_into_uint16(tmp_path, distinct):
    text = "".join(map(chr, range(0x10000, 0x10000 + distinct)))
    (tmp_path / "text").write_text(text, "utf-8")
    if distinct == 65_536:
        prepare_text(tmp_path / "text", tmp_path / "made", tokenizer="char")
        assert Dataset.open(tmp_path / "made").tokens("val")[-1] == 65_535
    else:
        with pytest.raises(BadDataset, match="65,537 distinct characters"):
            prepare_text(tmp_path / "text", tmp_path / "made", tokenizer="char")


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_ratio": 0.0},
        {"val_ratio": 1.0},
        {"val_ratio": float("nan")},
        {"encoding": "utf-7"},
        {"tokenizer": "word"},
    ],
)
def test_wrong_arguments_are_named(source, tmp_path, wrong):
    with pytest.raises(BadDataset, match=next(iter(wrong))):
        prepare_text(source, tmp_path / "made", **{"tokenizer": "char", **wrong})


def test_existing_folder_is_left_alone(source, tmp_path):
    prepare_text(source, tmp_path / "made", tokenizer="char")
    before = (tmp_path / "made/meta.json").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        prepare_text(source, tmp_path / "made", tokenizer="gpt2")
    assert (tmp_path / "made/meta.json").read_bytes() == before


def test_a_slower_preparation_does_not_replace_a_faster_one(source, tmp_path):
    def other_finishes(phase: str, done: int, total: int) -> None:
        if phase == "tokenizing" and not (tmp_path / "made").exists():
            prepare_text(source, tmp_path / "made", tokenizer="gpt2")

    with pytest.raises(FileExistsError, match="exists already"):
        prepare_text(source, tmp_path / "made", tokenizer="char", progress=other_finishes)
    assert Dataset.open(tmp_path / "made").meta.tokenizer == {"kind": "gpt2"}
    assert {path.name for path in tmp_path.iterdir()} == {"input.txt", "made"}


@pytest.mark.parametrize("last_phase", ["reading", "tokenizing", "checking"])
def test_an_interrupted_preparation_leaves_nothing(source, tmp_path, last_phase):
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == last_phase and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_text(source, tmp_path / "made", tokenizer="char", progress=interrupt)
    assert list(tmp_path.iterdir()) == [source]


def test_progress_goes_through_each_phase_to_its_end(source, tmp_path):
    calls: list[tuple[str, int, int]] = []
    prepare_text(
        source, tmp_path / "made", tokenizer="char", progress=lambda *call: calls.append(call)
    )
    for phase in ("reading", "tokenizing", "checking"):
        done = [done for name, done, _ in calls if name == phase]
        [total] = {total for name, _, total in calls if name == phase}
        assert done == sorted(done) and done[-1] == total
    assert [phase for phase, _, _ in calls] == sorted(
        [phase for phase, _, _ in calls], key=["reading", "tokenizing", "checking"].index
    )


def test_a_text_gets_a_report(source, tmp_path):
    report = prepare_text(source, tmp_path / "made", tokenizer="char").report
    assert report is not None
    assert (report.documents, report.empty_documents, report.undecodable_characters) == (1, 0, 0)
    assert report.used_tokens == len(set(PROSE)) and report.unknown_val_tokens == 0
    assert report.train_val_overlap == 1.0  # one line, over and over
    assert [w for w in report.warnings if w.startswith("100.00% of the validation split")]


# Several documents

DOCUMENTS = ["One.\n", "Two, it's 2.", "", "Drei äöü", "last\n"]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def all_tokens(folder) -> list[int]:
    dataset = Dataset.open(folder)
    return [*dataset.tokens("train").tolist(), *dataset.tokens("val").tolist()]


def test_end_of_text_stands_after_each_document(lines, tmp_path):
    meta = prepare_documents(lines, tmp_path / "made", format="jsonl", tokenizer="gpt2")
    tokenizer = GPT2Tokenizer()
    expected = []
    for text in filter(None, DOCUMENTS):
        expected += [*tokenizer.encode(text), 50256]
    assert all_tokens(tmp_path / "made") == expected
    assert meta.train_tokens == int(len(expected) * 0.9)
    assert meta.source_sha256 == hashlib.sha256(lines.read_bytes()).hexdigest()
    assert meta.characters == sum(map(len, DOCUMENTS))
    assert meta.report is not None
    assert (meta.report.documents, meta.report.empty_documents) == (4, 1)
    assert "1 document without text was left out." in meta.report.warnings
    assert {path.name for path in tmp_path.iterdir()} == {"input.jsonl", "made"}


def test_characters_of_documents_stand_on_lines_of_their_own(lines, tmp_path):
    prepare_documents(lines, tmp_path / "made", format="jsonl", tokenizer="char")
    dataset = Dataset.open(tmp_path / "made")
    assert dataset.tokenizer.decode(all_tokens(tmp_path / "made")) == (
        "One.\nTwo, it's 2.\nDrei äöü\nlast\n"
    )


def test_a_newline_between_documents_is_in_the_vocabulary_only_if_it_stands_there(tmp_path):
    (tmp_path / "a").write_text('{"text": "ab"}\n{"text": "c"}')
    prepare_documents(tmp_path / "a", tmp_path / "two", format="jsonl", tokenizer="char")
    assert Dataset.open(tmp_path / "two").meta.tokenizer["characters"] == ["\n", "a", "b", "c"]
    prepare_documents(
        tmp_path / "a", tmp_path / "one", format="jsonl", tokenizer="char", max_documents=1
    )
    assert Dataset.open(tmp_path / "one").meta.tokenizer["characters"] == ["a", "b"]


def test_at_least_one_token_validates(lines, tmp_path):
    meta = prepare_documents(
        lines, tmp_path / "made", format="jsonl", tokenizer="gpt2", val_ratio=0.0005
    )
    assert meta.val_tokens == 1


def test_documents_can_be_capped(lines, tmp_path):
    meta = prepare_documents(
        lines, tmp_path / "made", format="jsonl", tokenizer="gpt2", max_documents=2
    )
    assert meta.report is not None and meta.report.documents == 2
    assert GPT2Tokenizer().decode(all_tokens(tmp_path / "made")) == (
        "One.\n<|endoftext|>Two, it's 2.<|endoftext|>"
    )


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": ""}\n{"text": null}'])
@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_no_documents_are_too_few(tmp_path, content, tokenizer):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadDataset, match="too short to split"):
        prepare_documents(tmp_path / "a", tmp_path / "made", format="jsonl", tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_text_is_bounded(lines, tmp_path):
    size = sum(len(text.encode()) for text in DOCUMENTS) + 4
    for allowed in (size, size - 1):
        try:
            prepare_documents(
                lines,
                tmp_path / f"made-{allowed}",
                format="jsonl",
                tokenizer="char",
                max_text_bytes=allowed,
            )
        except TooMuchText as error:
            assert allowed == size - 1 and f"more than {allowed} bytes" in str(error)
    assert {path.name for path in tmp_path.iterdir()} == {"input.jsonl", f"made-{size}"}


def test_a_document_that_cannot_be_cut_is_numbered(tmp_path):
    with (tmp_path / "a").open("w") as file:
        file.write('{"text": "ok"}\n' + json.dumps({"text": "x" * (1 << 21)}))
    with pytest.raises(BadDataset, match=r"^document 2: the text goes on"):
        prepare_documents(tmp_path / "a", tmp_path / "made", format="jsonl", tokenizer="gpt2")


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_memory_does_not_grow_with_the_documents(tmp_path, tokenizer):
    GPT2Tokenizer().encode("x")
    peaks = []
    for copies in (100, 400):
        source = tmp_path / f"{copies}.jsonl"
        with source.open("w") as file:
            for _ in range(copies):
                file.write(json.dumps({"text": PROSE[:3000]}) + "\n")
        tracemalloc.start()
        prepare_documents(source, tmp_path / f"made-{copies}", format="jsonl", tokenizer=tokenizer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8_000_000


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer):
    GPT2Tokenizer().encode("x")  # its ranks stay in memory, whatever the text
    peaks = []
    for copies in (4, 16):
        source = tmp_path / f"{copies}.txt"
        source.write_bytes(PROSE.encode() * copies)
        tracemalloc.start()
        prepare_text(source, tmp_path / f"made-{copies}", tokenizer=tokenizer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert source.stat().st_size > 5_000_000
    # the windows that the report looks for are some more in a longer text, up to a bound
    assert peaks[1] < 1.3 * peaks[0] < 8_000_000
