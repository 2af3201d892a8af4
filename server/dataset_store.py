"""The datasets of a data folder: `datasets/NAME/{train.bin,val.bin,meta.json}`.

A dataset appears whole or not at all: text and tokens are made in a hidden folder beside the
others, which is renamed at the end and removed if anything goes wrong. Knows nothing about jobs;
whether one uses a dataset is asked of `in_use`.
"""

import asyncio
import logging
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from uuid import uuid4

from nanogpt.datasets.dataset import (
    BadDataset,
    Dataset,
    DatasetMeta,
    MissingParquet,
    TooMuchText,
)
from nanogpt.datasets.parquet_file import check_parquet
from nanogpt.datasets.prepare import Phase, prepare_documents, prepare_text
from nanogpt.datasets.shipped import DownloadFailed, ShippedDataset
from nanogpt.durable import sync_folder
from nanogpt.option import Violation
from server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from server.full_disk import full_disk_is_exhausted
from server.names import is_name
from server.uncancelled import to_its_end

logger = logging.getLogger(__name__)

MAX_PREPARED_AT_A_TIME = 2
"""Preparing takes minutes, and every request needs one of the few threads that it runs in."""

TEXT = "text"  # the format of an upload that is one text

STAGING_PREFIX = ".staging-"  # no name begins with a dot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset that jobs can use."""

    name: str
    meta: DatasetMeta
    size_bytes: int
    """Of its files."""


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What to make. `shipped` supplies the text if the caller sends none."""

    name: str
    tokenizer: str
    val_ratio: float
    encoding: str | None = None
    shipped: ShippedDataset | None = None
    format: str = TEXT
    """`text`, or one of `nanogpt.datasets.documents.FORMATS`."""
    text_field: str = "text"
    max_documents: int | None = None


@dataclass(frozen=True, slots=True)
class DatasetInProgress:
    """A dataset that is being made, and how far it is."""

    name: str
    phase: Literal["uploading"] | Phase = "uploading"
    bytes_done: int = 0
    """Received, or of text processed in this phase."""
    bytes_total: int | None = None
    """Of text to process in this phase; None while it is uploaded."""
    uploaded_bytes: int = 0


class DatasetStore:
    """Lists, makes and deletes datasets."""

    def __init__(
        self,
        data_dir: Path,
        *,
        max_upload_bytes: int,
        in_use: Callable[[], Awaitable[set[str]]],
        max_datasets_bytes: int | None = None,
    ) -> None:
        """`max_datasets_bytes` is for all datasets together, with what is being uploaded; None
        sets no limit."""
        self._folder = data_dir / "datasets"
        self._max_upload_bytes = max_upload_bytes
        self._max_datasets_bytes = max_datasets_bytes
        self._in_use = in_use
        self._being_made: dict[str, DatasetInProgress] = {}
        self._preparing = asyncio.Semaphore(MAX_PREPARED_AT_A_TIME)
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_behind in self._folder.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(left_behind)

    def list(self) -> list[DatasetInfo]:
        """Every dataset, newest first. Damaged ones are left out and logged."""
        found = []
        for folder in self._folder.iterdir():
            if is_name(folder.name) and folder.is_dir():
                try:
                    found.append(self.get(folder.name))
                except DataLoss as error:
                    logger.warning("%s", error.message)
        return sorted(found, key=lambda dataset: dataset.meta.create_time, reverse=True)

    def get(self, name: str) -> DatasetInfo:
        """The dataset of that name. Raises NotFound, DataLoss."""
        if not is_name(name) or not (self._folder / name).is_dir():
            raise NotFound("dataset", name)
        try:
            folder = self._folder / name
            return DatasetInfo(name, Dataset.open(folder).meta, _size_bytes(folder))
        except (BadDataset, OSError):
            raise DataLoss(
                "dataset", name, f"dataset {name!r} is damaged; delete it and create it again"
            ) from None

    def in_progress(self) -> tuple[DatasetInProgress, ...]:
        """The datasets that are being made, in the order in which they were begun."""
        return tuple(self._being_made.values())

    async def create(self, new: NewDataset, text: AsyncIterator[bytes]) -> DatasetInfo:
        """Makes a dataset of the text, or of the shipped text if there is none.

        Raises AlreadyExists, InvalidArgument if the text cannot be used, ResourceExhausted if it,
        or all datasets together, are too large or the disk is full, FailedPrecondition if it needs
        a library that is not there, Unavailable if a shipped text cannot be downloaded.
        """
        if new.name in self._being_made or (self._folder / new.name).exists():
            raise AlreadyExists("dataset", new.name)
        if new.format == "parquet":
            with _explained():
                check_parquet()
        self._being_made[new.name] = DatasetInProgress(new.name)
        try:
            with full_disk_is_exhausted():
                async with self._staging() as staging:
                    source = staging / ".upload"  # no name begins with a dot
                    await self._receive(new.name, text, source)
                    prepared = staging / new.name
                    async with self._preparing:
                        await _in_thread(lambda alive: self._make(new, source, prepared, alive))
                    self._being_made[new.name] = DatasetInProgress(new.name, "checking")
                    self._check_quota(self._stored_bytes() + _size_bytes(prepared))
                    prepared.rename(self._folder / new.name)
                    await to_its_end(asyncio.to_thread(sync_folder, self._folder))
        finally:
            del self._being_made[new.name]
        return self.get(new.name)

    async def delete(self, name: str) -> None:
        """Deletes a dataset. Raises NotFound, FailedPrecondition while an unfinished job uses it.

        A damaged dataset can be deleted too.
        """
        if not is_name(name) or not (self._folder / name).is_dir():
            raise NotFound("dataset", name)
        if name in await self._in_use():
            raise FailedPrecondition(
                "dataset_in_use",
                name,
                f"dataset {name!r} is used by an unfinished job; wait for it or cancel it",
            )
        # a new name needs no room on a full disk; the next start sweeps what is left under it
        deleting = self._folder / f"{STAGING_PREFIX}{uuid4().hex}"
        try:
            (self._folder / name).rename(deleting)
        except FileNotFoundError:  # another call was faster
            raise NotFound("dataset", name) from None
        await to_its_end(asyncio.to_thread(shutil.rmtree, deleting))

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self._folder))
        try:
            yield staging
        finally:
            await to_its_end(asyncio.to_thread(shutil.rmtree, staging))

    async def _receive(self, name: str, text: AsyncIterator[bytes], path: Path) -> None:
        """Writes the upload to a file."""
        size, stored = 0, self._stored_bytes()
        self._check_quota(stored)
        with path.open("wb") as file:
            async for chunk in text:
                size += len(chunk)
                if size > self._max_upload_bytes:
                    raise ResourceExhausted(
                        f"the text is larger than the {self._max_upload_bytes} bytes "
                        "this server allows",
                        limit="upload_bytes",
                    )
                self._being_made[name] = DatasetInProgress(
                    name, bytes_done=size, uploaded_bytes=size
                )
                self._check_quota(stored)
                await asyncio.to_thread(file.write, chunk)

    def _stored_bytes(self) -> int:
        """Of all datasets that are finished."""
        return sum(_size_bytes(f) for f in self._folder.iterdir() if is_name(f.name))

    def _check_quota(self, stored_bytes: int) -> None:
        """Raises ResourceExhausted if so much, and what is being uploaded, is too much."""
        if self._max_datasets_bytes is None:
            return
        uploaded = sum(dataset.uploaded_bytes for dataset in self._being_made.values())
        if stored_bytes + uploaded > self._max_datasets_bytes:
            raise ResourceExhausted(
                f"all datasets together may have {self._max_datasets_bytes} bytes on this server, "
                f"and with this one they would have {stored_bytes + uploaded} or more; "
                "delete one, or make a smaller one",
                limit="datasets_bytes",
            )

    def _make(self, new: NewDataset, source: Path, folder: Path, alive: Callable[[], bool]) -> None:
        """Prepares the upload at `source`, after fetching or checking it if it is a shipped one."""
        size = source.stat().st_size

        def progress(phase: Phase, bytes_done: int, bytes_total: int) -> None:
            if not alive():
                raise _Abandoned
            self._being_made[new.name] = DatasetInProgress(
                new.name, phase, bytes_done, bytes_total, uploaded_bytes=size
            )

        with _explained():
            if new.shipped is not None and size:
                new.shipped.check_text(source)
            elif new.shipped is not None:
                _fetch(new.shipped, source)
            if new.format == TEXT:
                prepare_text(
                    source,
                    folder,
                    tokenizer=new.tokenizer,
                    val_ratio=new.val_ratio,
                    encoding=new.encoding,
                    progress=progress,
                )
            else:
                prepare_documents(
                    source,
                    folder,
                    format=new.format,
                    tokenizer=new.tokenizer,
                    val_ratio=new.val_ratio,
                    encoding=new.encoding,
                    text_field=new.text_field,
                    max_documents=new.max_documents,
                    max_text_bytes=self._max_upload_bytes,
                    progress=progress,
                )


class _Abandoned(Exception):
    """Nobody waits for the dataset any more."""


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what is wrong with an upload into an error that its sender gets."""
    try:
        yield
    except TooMuchText as error:
        raise ResourceExhausted(str(error), limit="upload_bytes") from None
    except MissingParquet as error:
        raise FailedPrecondition("parquet_missing", "parquet", str(error)) from None
    except BadDataset as error:
        raise InvalidArgument([Violation("text", str(error))]) from None


def _size_bytes(folder: Path) -> int:
    """Of the files in a dataset's folder."""
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0


def _fetch(shipped: ShippedDataset, path: Path) -> None:
    """Writes a shipped text to `path`."""
    try:
        shipped.write_text(path)
    except (DownloadFailed, BadDataset) as error:
        logger.warning("%s", error)
        raise Unavailable(
            f"the text of {shipped.name!r} could not be downloaded; send a copy with the request "
            "(`prepare NAME --file=PATH`)",
            60,
        ) from None


async def _in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Runs `work` off the loop; it is told if nobody waits any more, and is waited for then too."""
    abandoned = threading.Event()
    running = asyncio.to_thread(work, lambda: not abandoned.is_set())
    return await to_its_end(running, on_cancel=abandoned.set)
