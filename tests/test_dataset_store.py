"""The dataset store: whole datasets or none, whatever goes wrong on the way."""

import asyncio
import errno
import gzip
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_archive import tar

from nanogpt.datasets import parquet_file, shipped
from nanogpt.datasets.dataset import BadDataset
from nanogpt.datasets.shipped import SHIPPED, DownloadFailed
from server import dataset_store
from server.dataset_store import DatasetStore, NewDataset
from server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

TEXT = b"to be, or not to be: that is the question. " * 20
CHAR = NewDataset("tiny", "char", 0.1)


class Store(DatasetStore):
    """A store in a temporary folder whose datasets in use the test decides."""

    def __init__(self, data_dir, max_upload_bytes=1 << 20, max_datasets_bytes=None):
        self.used = set()

        async def in_use():
            return self.used

        super().__init__(
            data_dir,
            max_upload_bytes=max_upload_bytes,
            in_use=in_use,
            max_datasets_bytes=max_datasets_bytes,
        )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def files(tmp_path) -> list[str]:
    """All that is in the datasets folder."""
    return sorted(path.name for path in (tmp_path / "datasets").iterdir())


async def test_an_upload_becomes_a_dataset(store, tmp_path):
    made = await store.create(CHAR, chunks(TEXT[:7], TEXT[7:]))
    assert made.meta.characters == len(TEXT)
    assert made.meta.train_tokens + made.meta.val_tokens == len(TEXT)
    assert store.get("tiny") == made and store.list() == [made]
    assert files(tmp_path) == ["tiny"]


@pytest.mark.parametrize("name", ["text", "upload", "meta"])
async def test_every_name_is_free_to_begin_with(store, name):
    await store.create(NewDataset(name, "char", 0.1), chunks(TEXT))
    assert store.get(name).meta.characters == len(TEXT)


async def test_chunks_may_split_characters(store):
    text = ("äöü€😀 " * 50).encode()
    made = await store.create(CHAR, chunks(*(text[i : i + 1] for i in range(len(text)))))
    assert made.meta.encoding == "utf-8" and made.meta.characters == 300


async def test_the_newest_is_first(store):
    for name in ("b", "a", "c"):
        await store.create(NewDataset(name, "char", 0.1), chunks(TEXT))
    assert [dataset.name for dataset in store.list()] == ["c", "a", "b"]


async def test_a_name_is_taken_once(store, tmp_path):
    await store.create(CHAR, chunks(TEXT))
    with pytest.raises(AlreadyExists):
        await store.create(CHAR, chunks(TEXT))
    assert files(tmp_path) == ["tiny"]


async def test_a_name_is_taken_from_the_first_byte_on(store):
    gate = asyncio.Event()

    async def slow():
        yield TEXT
        await gate.wait()

    first = asyncio.create_task(store.create(CHAR, slow()))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists):
        await store.create(CHAR, chunks(TEXT))
    gate.set()
    assert (await first).name == "tiny"


async def test_a_broken_upload_leaves_nothing(store, tmp_path):
    async def broken():
        yield TEXT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.create(CHAR, broken())
    assert files(tmp_path) == []
    assert (await store.create(CHAR, chunks(TEXT))).name == "tiny", "the name is free again"


async def test_a_cancelled_upload_leaves_nothing(store, tmp_path):
    received = asyncio.Event()

    async def endless():
        yield TEXT
        received.set()
        await asyncio.Event().wait()

    creating = asyncio.create_task(store.create(CHAR, endless()))
    await received.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert files(tmp_path) == []


async def test_cancelling_stops_the_preparation_and_waits_for_it(store, tmp_path, monkeypatch):
    loop, preparing = asyncio.get_running_loop(), asyncio.Event()
    cancelled, ended = threading.Event(), threading.Event()

    def prepare(source, folder, *, progress, **options):
        folder.mkdir()
        loop.call_soon_threadsafe(preparing.set)
        cancelled.wait(10)
        try:
            progress("reading", 1, 2)
        finally:
            ended.set()

    monkeypatch.setattr(dataset_store, "prepare_text", prepare)
    creating = asyncio.create_task(store.create(CHAR, chunks(TEXT)))
    await preparing.wait()
    creating.cancel()
    await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert ended.is_set() and files(tmp_path) == []


async def test_what_a_killed_server_left_is_swept(tmp_path):
    left = tmp_path / "datasets" / ".staging-x"
    left.mkdir(parents=True)
    (left / "text").write_bytes(TEXT)
    Store(tmp_path)
    assert files(tmp_path) == []


async def test_uploads_are_limited(tmp_path):
    store = Store(tmp_path, max_upload_bytes=len(TEXT))
    await store.create(CHAR, chunks(TEXT))
    with pytest.raises(ResourceExhausted, match=str(len(TEXT))):
        await store.create(NewDataset("more", "char", 0.1), chunks(TEXT, b"!"))
    assert files(tmp_path) == ["tiny"]


@pytest.mark.parametrize("text", [b"", b"x", "ab".encode("utf-16")])
async def test_unusable_text_is_the_callers_fault(store, tmp_path, text):
    with pytest.raises(InvalidArgument) as caught:
        await store.create(CHAR, chunks(text))
    assert [violation.field for violation in caught.value.violations] == ["text"]
    assert str(tmp_path) not in caught.value.message
    assert files(tmp_path) == []


async def test_a_full_disk_is_said(store, tmp_path, monkeypatch):
    def prepare(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(dataset_store, "prepare_text", prepare)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        await store.create(CHAR, chunks(TEXT))
    assert files(tmp_path) == []


async def test_a_dataset_of_the_standard_library_needs_no_text(store):
    reference = SHIPPED["python_reference"]
    new = NewDataset("python_reference", "char", 0.1, "utf-8", reference)
    assert (await store.create(new, chunks())).meta.characters > 300_000


async def test_a_shipped_text_may_be_sent_but_not_another(store, monkeypatch):
    monkeypatch.setattr(shipped, "_python_reference", lambda: TEXT)
    new = NewDataset("mine", "char", 0.1, "utf-8", SHIPPED["python_reference"])
    with pytest.raises(InvalidArgument, match="SHA-256"):
        await store.create(new, chunks(TEXT, b"!"))
    assert (await store.create(new, chunks(TEXT))).meta.characters == len(TEXT)


@pytest.mark.parametrize("error", [DownloadFailed("no route"), BadDataset("other text")])
async def test_a_failed_download_can_be_tried_again(store, monkeypatch, error):
    def write_text(self, path):
        raise error

    monkeypatch.setattr(shipped.ShippedDataset, "write_text", write_text)
    new = NewDataset("shakespeare", "gpt2", 0.1, "utf-8", SHIPPED["shakespeare"])
    with pytest.raises(Unavailable, match="send a copy"):
        await store.create(new, chunks())


@pytest.mark.parametrize(
    "name", ["nope", "", "..", "../datasets/tiny", ".staging-x", "TINY", "a/b"]
)
async def test_other_names_do_not_exist(store, name):
    await store.create(CHAR, chunks(TEXT))
    with pytest.raises(NotFound):
        store.get(name)
    with pytest.raises(NotFound):
        await store.delete(name)


async def test_a_deleted_dataset_is_gone(store, tmp_path):
    await store.create(CHAR, chunks(TEXT))
    await store.delete("tiny")
    assert files(tmp_path) == [] and store.list() == []
    with pytest.raises(NotFound):
        await store.delete("tiny")


async def test_deleting_needs_no_room_on_the_disk(store, tmp_path, monkeypatch):
    await store.create(CHAR, chunks(TEXT))

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(dataset_store.tempfile, "mkdtemp", full)
    monkeypatch.setattr(Path, "mkdir", full)
    await store.delete("tiny")
    assert files(tmp_path) == []


async def test_the_loop_waits_for_no_flush_and_no_removal(store, tmp_path, monkeypatch):
    off_the_loop = {}

    def watch(owner, name):
        work = getattr(owner, name)

        def watched(*arguments):
            off_the_loop[name] = threading.current_thread() is not threading.main_thread()
            work(*arguments)

        monkeypatch.setattr(owner, name, watched)

    watch(dataset_store, "sync_folder")
    watch(dataset_store.shutil, "rmtree")
    await store.create(CHAR, chunks(TEXT))
    assert off_the_loop == {"sync_folder": True, "rmtree": True}
    off_the_loop.clear()
    await store.delete("tiny")
    assert off_the_loop == {"rmtree": True}
    monkeypatch.undo()
    assert files(tmp_path) == []


async def test_a_dataset_in_use_stays(store):
    await store.create(CHAR, chunks(TEXT))
    store.used = {"tiny"}
    with pytest.raises(FailedPrecondition, match="unfinished job"):
        await store.delete("tiny")
    assert store.get("tiny")


@pytest.mark.parametrize("damage", ["meta.json", "train.bin"])
async def test_a_damaged_dataset_is_named_and_left_out(store, tmp_path, caplog, damage):
    await store.create(CHAR, chunks(TEXT))
    await store.create(NewDataset("whole", "char", 0.1), chunks(TEXT))
    (tmp_path / "datasets" / "tiny" / damage).write_bytes(b"x")
    with pytest.raises(DataLoss, match="'tiny' is damaged") as caught:
        store.get("tiny")
    assert str(tmp_path) not in caught.value.message
    assert [dataset.name for dataset in store.list()] == ["whole"]
    await store.delete("tiny")
    assert files(tmp_path) == ["whole"]


async def test_a_file_beside_the_datasets_is_none(store, tmp_path):
    await store.create(CHAR, chunks(TEXT))
    (tmp_path / "datasets" / "notes").write_text("by whoever keeps the folder")
    assert [dataset.name for dataset in store.list()] == ["tiny"]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


async def test_documents_become_a_dataset(store, tmp_path):
    new = NewDataset("web", "gpt2", 0.1, format="jsonl", max_documents=2)
    made = await store.create(new, chunks(lines("one", "two", "three")))
    assert made.meta.report is not None and made.meta.report.documents == 2
    assert made.size_bytes == sum(f.stat().st_size for f in (tmp_path / "datasets/web").iterdir())
    assert store.get("web") == made and files(tmp_path) == ["web"]


@pytest.mark.parametrize("format", ["tar", "jsonl"])
async def test_unusable_documents_are_the_callers_fault(store, tmp_path, format):
    with pytest.raises(InvalidArgument) as caught:
        await store.create(NewDataset("web", "gpt2", 0.1, format=format), chunks(b"text"))
    assert [violation.field for violation in caught.value.violations] == ["text"]
    assert files(tmp_path) == []


async def test_what_an_upload_unpacks_to_is_limited(tmp_path):
    store = Store(tmp_path, max_upload_bytes=10_000)
    bomb = gzip.compress(tar({"a.txt": b"text" * 5000}))
    with pytest.raises(ResourceExhausted, match="10,000 bytes") as caught:
        await store.create(NewDataset("bomb", "char", 0.1, format="tar"), chunks(bomb))
    assert caught.value.limit == "upload_bytes" and files(tmp_path) == []


async def test_parquet_without_its_library_is_refused_before_the_upload(store, monkeypatch):
    monkeypatch.setattr(parquet_file, "find_spec", lambda name: None)

    async def unread():
        raise AssertionError("read")
        yield b""

    with pytest.raises(FailedPrecondition, match="install"):
        await store.create(NewDataset("web", "gpt2", 0.1, format="parquet"), unread())
    assert store.in_progress() == ()


async def test_all_datasets_together_are_limited(tmp_path):
    store = Store(tmp_path)
    size = (await store.create(CHAR, chunks(TEXT))).size_bytes
    limited = Store(tmp_path, max_datasets_bytes=2 * size + 100)
    await limited.create(NewDataset("second", "char", 0.1), chunks(TEXT))
    with pytest.raises(ResourceExhausted, match=f"together may have {2 * size + 100} ") as caught:
        await limited.create(NewDataset("third", "char", 0.1), chunks(TEXT))
    assert caught.value.limit == "datasets_bytes"
    assert files(tmp_path) == ["second", "tiny"] and limited.in_progress() == ()
    await limited.delete("second")
    await limited.create(NewDataset("third", "char", 0.1), chunks(TEXT))


async def test_tokens_count_when_they_are_made(tmp_path):
    """Two bytes a character: the upload fits, what is made of it does not."""
    store = Store(tmp_path, max_datasets_bytes=len(TEXT) + 10)
    with pytest.raises(ResourceExhausted, match="together"):
        await store.create(CHAR, chunks(TEXT))
    assert files(tmp_path) == []


async def test_uploads_that_run_count_together(tmp_path):
    store = Store(tmp_path, max_datasets_bytes=2 * len(TEXT) - 1)
    waiting, gate = asyncio.Event(), asyncio.Event()

    async def slow():
        yield TEXT
        waiting.set()
        await gate.wait()
        raise ConnectionResetError

    first = asyncio.create_task(store.create(CHAR, slow()))
    await waiting.wait()
    with pytest.raises(ResourceExhausted, match="together"):
        await store.create(NewDataset("second", "char", 0.1), chunks(TEXT))
    gate.set()
    with pytest.raises(ConnectionResetError):
        await first


async def test_progress_can_be_followed(store, monkeypatch):
    seen = []
    prepare = dataset_store.prepare_text

    def watched(source, folder, *, progress, **options):
        def both(*call):
            progress(*call)
            seen.append(store.in_progress())

        return prepare(source, folder, progress=both, **options)

    monkeypatch.setattr(dataset_store, "prepare_text", watched)

    async def text():
        seen.append(store.in_progress())
        yield TEXT
        seen.append(store.in_progress())

    await store.create(CHAR, text())
    found = [dataset for [dataset] in seen]
    assert {dataset.name for dataset in found} == {"tiny"}
    size = len(TEXT)
    assert [(d.phase, d.bytes_done, d.bytes_total) for d in found] == [
        ("uploading", 0, None),
        ("uploading", size, None),
        ("reading", size, size),
        ("tokenizing", size, size),
        ("checking", 2 * int(size * 0.9), 2 * int(size * 0.9)),
    ]
    assert store.in_progress() == ()
