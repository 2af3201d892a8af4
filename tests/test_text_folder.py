"""Folders on their way to a server."""

import io
import os
import tarfile
import tracemalloc

import pytest

from client.requests import CHUNK_BYTES
from client.text_folder import folder_archive, folder_files


def write(folder, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}


def test_texts_are_sent_in_the_order_of_their_names(tmp_path):
    files = {
        "b.txt": b"two",
        "a.txt": b"",
        "deep/er/c.jsonl": b"{}",
        "d.PARQUET": b"x" * 3000,
        "ä" * 60 + "/" + "ö" * 100 + ".txt": b"long",
    }
    write(tmp_path, {**files, "e.md": b"", ".hidden.txt": b"", ".git/f.txt": b"", "g.tar": b""})
    found = read(b"".join(folder_archive(tmp_path)))
    assert found == files
    assert list(found) == [p.relative_to(tmp_path).as_posix() for p in folder_files(tmp_path)]


def test_archives_in_the_folder_are_opened(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name in ("x/1.txt", "x/2.xz", "../3.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    write(tmp_path, {"owt.tar": inner.getvalue(), "z.txt": b"last"})
    assert read(b"".join(folder_archive(tmp_path, (".txt", ".tar")))) == {
        "owt.tar/x/1.txt": b"text",
        "owt.tar/../3.txt": b"text",
        "z.txt": b"last",
    }


def test_what_only_looks_like_an_archive_is_named(tmp_path):
    write(tmp_path, {"owt.tar": b"text" * 1000})
    with pytest.raises(OSError, match=r"owt\.tar is not a whole tar archive"):
        b"".join(folder_archive(tmp_path, (".tar",)))


def test_many_small_files_travel_together_and_a_large_one_in_pieces(tmp_path):
    write(tmp_path, {f"{i}.txt": b"small" for i in range(100)})
    assert len(list(folder_archive(tmp_path))) == 1
    write(tmp_path, {"large.txt": bytes(5 * CHUNK_BYTES)})
    pieces = list(folder_archive(tmp_path))
    assert len(pieces) == 6 and max(map(len, pieces)) <= 2 * CHUNK_BYTES


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    write(tmp_path, {"a.txt": bytes(3 * CHUNK_BYTES)})
    pieces = folder_archive(tmp_path)
    next(pieces)
    os.truncate(tmp_path / "a.txt", CHUNK_BYTES)
    with pytest.raises(OSError, match=r"a\.txt became shorter"):
        list(pieces)


def test_memory_does_not_grow_with_a_file(tmp_path):
    write(tmp_path, {"a.txt": bytes(30 * CHUNK_BYTES)})
    tracemalloc.start()
    for _ in folder_archive(tmp_path):
        pass
    assert tracemalloc.get_traced_memory()[1] < 6 * CHUNK_BYTES
    tracemalloc.stop()
