"""Archives of strangers: whole ones are read, and no other costs memory or touches a file."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc

import pytest

from nanogpt.datasets import archive
from nanogpt.datasets.archive import MAX_HEADER_BYTES, members
from nanogpt.datasets.dataset import BadDataset, TooMuchText

FILES = {"a.txt": b"first", "folder/b.txt": b"x" * 100_000, "empty.txt": b"", "c.bin": b"\0" * 512}


def ignore(position: int) -> None:
    """Nobody watches."""


def tar(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return data.getvalue()


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as out:
        for info in infos:
            out.addfile(info)
    return data.getvalue()


def read(data: bytes, max_bytes: int = 1 << 30) -> dict[str, bytes | None]:
    found = members(io.BytesIO(data), max_bytes=max_bytes, progress=ignore)
    return {name: None if member is None else member.read() for name, member in found}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_every_kind_of_archive_is_read(format, compress):
    assert read(compress(tar(FILES, format))) == FILES


@pytest.mark.parametrize("name", ["ä" * 200, "folder/" * 40 + "a.txt"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(name, format):
    assert read(tar({name: b"text"}, format)) == {name: b"text"}


def test_members_need_not_be_read_to_their_end():
    found = members(io.BytesIO(tar(FILES)), max_bytes=1 << 30, progress=ignore)
    assert [name for name, _ in found] == list(FILES)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_streams_of_a_compressed_archive_follow_one_another(compress):
    data = tar(FILES)
    assert read(compress(data[:1000]) + compress(data[1000:])) == FILES


def test_only_regular_files_have_content():
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "disk": tarfile.BLKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "folder": tarfile.DIRTYPE,
    }
    infos = []
    for name, kind in kinds.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append(info)
    assert read(tar_of(*infos)) == dict.fromkeys(["link", "hard", "device", "disk", "pipe"])


@pytest.mark.parametrize("name", ["/etc/passwd", "../../escaped.txt", "a/../../b.txt", "\\x.txt"])
def test_names_that_lead_elsewhere_are_only_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read(tar({name: b"text"})) == {name: b"text"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_that_breaks_off_is_refused(compress):
    whole = compress(tar(FILES))
    for size in (len(whole) // 2, len(whole) // 4 * 3, 600):
        if size < len(whole):
            with pytest.raises(BadDataset, match="damaged or breaks off"):
                read(whole[:size])


def test_an_archive_without_its_end_is_refused():
    data = tar({"a.txt": b"first"})
    with pytest.raises(BadDataset, match=r"breaks off after 'a\.txt'"):
        read(data[: 2 * tarfile.BLOCKSIZE])


@pytest.mark.parametrize("data", [b"", b"text" * 1000, b"\x1f\x8bnothing", b"BZh", b"\xfd7zXZ\x00"])
def test_what_is_no_archive(data):
    with pytest.raises(BadDataset, match="damaged or breaks off"):
        read(data)


def test_any_flipped_byte_is_harmless():
    data = bytearray(gzip.compress(tar({"a.txt": b"first" * 50, "b.jsonl": b"{}"})))
    plain = bytearray(tar({"a.txt": b"first" * 50, "b.jsonl": b"{}"}))
    for damaged in (data, plain):
        for i in range(0, min(len(damaged), 2048), 7):
            damaged[i] ^= 0xFF
            try:
                read(bytes(damaged), max_bytes=1 << 20)
            except BadDataset:
                pass
            damaged[i] ^= 0xFF


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_stops_at_the_limit(compress):
    bomb = compress(tar({"zeros.bin": bytes(20 << 20)}))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(TooMuchText, match="unpacks to more than 1,048,576 bytes"):
        read(bomb, max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 12 << 20, "xz has a dictionary of 8 MiB"
    tracemalloc.stop()


def test_a_name_as_large_as_the_archive_is_refused():
    with pytest.raises(BadDataset, match=f"header of more than {MAX_HEADER_BYTES:,} bytes"):
        read(tar({"a" * (2 << 20): b"text"}))


def test_attributes_after_attributes_are_refused():
    header = tarfile.TarInfo("pax").create_pax_global_header({"comment": "x"})
    header = header[:156] + tarfile.XHDTYPE + header[157:]  # now the next file's attributes
    header = header[:148] + b"%06o\0 " % tarfile.calc_chksums(header[:512])[0] + header[156:]
    with pytest.raises(BadDataset):
        read(header * 5000)


def test_a_size_below_zero_is_refused():
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": "-1000000"}
    with pytest.raises(BadDataset):
        read(tar_of(info))


def test_a_size_beyond_the_end_is_refused():
    data = bytearray(tar({"a.txt": b"first"}))
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data[:512]))[0]
    with pytest.raises(BadDataset):
        read(bytes(data))


def test_a_sparse_file_is_left_out():
    """It could claim to hold petabytes of zeros."""
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"GNU.sparse.map": "0,5", "GNU.sparse.size": str(1 << 50)}
    assert read(tar_of(info)) == {"a.txt": None}


def test_memory_does_not_grow_with_the_files():
    peaks = []
    for count in (200, 800):
        data = io.BytesIO(tar({f"{i}.txt": b"text" for i in range(count)}))
        tracemalloc.start()
        for _, member in members(data, max_bytes=1 << 30, progress=ignore):
            assert member is not None and member.read() == b"text"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_xz_that_asks_for_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(archive, "MAX_XZ_MEMORY_BYTES", 1 << 20)
    with pytest.raises(BadDataset, match="damaged"):
        read(lzma.compress(tar(FILES), preset=9))
