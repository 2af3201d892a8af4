from pathlib import Path

import pytest

from server.jobs import log_reader
from server.jobs.log_reader import LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def test_a_log_is_read_from_any_byte(log: Path) -> None:
    assert LogReader(log, 0).read(True) == ""
    log.write_text("one\ntwo\n")
    for offset, text in [(0, "one\ntwo\n"), (4, "two\n"), (-4, "two\n"), (-100, "one\ntwo\n")]:
        reader = LogReader(log, offset)
        assert reader.read(True) == text
        assert reader.offset == 8
        assert reader.read(True) == ""
    for offset in (20, 2**63 - 1):  # the largest that callers may ask for; files end far before
        beyond = LogReader(log, offset)
        assert (beyond.read(True), beyond.offset) == ("", offset)


def test_what_comes_later_is_read_later(log: Path) -> None:
    reader = LogReader(log, 0)
    said = []
    for text in ("a", "", "bc\n"):
        with log.open("a") as file:
            file.write(text)
        said.append(reader.read(False))
    assert said == ["a", "", "bc\n"]


@pytest.mark.parametrize("piece_bytes", [5, 6, 7, 64])
def test_no_character_is_cut(log: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(log_reader, "PIECE_BYTES", piece_bytes)
    text = "añ漢🙂" * 7
    whole = text.encode()
    reader, said = LogReader(log, 0), ""
    for end in range(len(whole) + 1):  # as a trainer is stopped after any byte
        log.write_bytes(whole[:end])
        said += reader.read(False)
        assert reader.offset == len(said.encode())
    while piece := reader.read(True):
        said += piece
    assert said == text


def test_bytes_that_are_no_text_are_shown_as_such(log: Path) -> None:
    log.write_bytes(b"a\xff\xfeb\xe6\xbc")  # the last character will never be whole
    reader = LogReader(log, 0)
    assert reader.read(False) == "a��b"
    assert reader.offset == 4
    assert reader.read(True) == "�"
    assert reader.offset == 6
