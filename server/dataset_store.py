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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nanogpt.config import Violation
from nanogpt.datasets.dataset import BadDataset, Dataset, DatasetMeta
from nanogpt.datasets.prepare import prepare_text
from nanogpt.datasets.shipped import DownloadFailed, ShippedDataset
from nanogpt.durable import sync_folder
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

logger = logging.getLogger(__name__)

MAX_PREPARED_AT_A_TIME = 2
"""Preparing takes minutes, and every request needs one of the few threads that it runs in."""

STAGING_PREFIX = ".staging-"  # no name begins with a dot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset that jobs can use."""

    name: str
    meta: DatasetMeta


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What to make. `shipped` supplies the text if the caller sends none."""

    name: str
    tokenizer: str
    val_ratio: float
    encoding: str | None = None
    shipped: ShippedDataset | None = None


class DatasetStore:
    """Lists, makes and deletes datasets."""

    def __init__(
        self, data_dir: Path, *, max_upload_bytes: int, in_use: Callable[[], Awaitable[set[str]]]
    ) -> None:
        self._folder = data_dir / "datasets"
        self._max_upload_bytes = max_upload_bytes
        self._in_use = in_use
        self._being_made: set[str] = set()
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
            return DatasetInfo(name, Dataset.open(self._folder / name).meta)
        except (BadDataset, OSError):
            raise DataLoss(
                "dataset", name, f"dataset {name!r} is damaged; delete it and create it again"
            ) from None

    async def create(self, new: NewDataset, text: AsyncIterator[bytes]) -> DatasetInfo:
        """Makes a dataset of the text, or of the shipped text if there is none.

        Raises AlreadyExists, InvalidArgument if the text cannot be used, ResourceExhausted if it
        is too large or the disk is full, Unavailable if a shipped text cannot be downloaded.
        """
        if new.name in self._being_made or (self._folder / new.name).exists():
            raise AlreadyExists("dataset", new.name)
        self._being_made.add(new.name)
        try:
            with full_disk_is_exhausted(), self._staging() as staging:
                source = staging / "text"
                size = await self._receive(text, source)
                prepared = staging / new.name
                async with self._preparing:
                    await _in_thread(lambda alive: _make(new, source, size, prepared, alive))
                prepared.rename(self._folder / new.name)
                sync_folder(self._folder)
        finally:
            self._being_made.discard(new.name)
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
        with self._staging() as staging:
            try:
                (self._folder / name).rename(staging / name)
            except FileNotFoundError:  # another call was faster
                raise NotFound("dataset", name) from None

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self._folder))
        try:
            yield staging
        finally:
            shutil.rmtree(staging)

    async def _receive(self, text: AsyncIterator[bytes], path: Path) -> int:
        """Writes the upload to a file and returns its size in bytes."""
        size = 0
        with path.open("wb") as file:
            async for chunk in text:
                size += len(chunk)
                if size > self._max_upload_bytes:
                    raise ResourceExhausted(
                        f"the text is larger than the {self._max_upload_bytes} bytes "
                        "this server allows",
                        limit="upload_bytes",
                    )
                await asyncio.to_thread(file.write, chunk)
        return size


class _Abandoned(Exception):
    """Nobody waits for the dataset any more."""


def _make(
    new: NewDataset, source: Path, size: int, folder: Path, alive: Callable[[], bool]
) -> None:
    """Prepares the text at `source`, after fetching or checking it if it is a shipped one."""

    def check_alive(_: float) -> None:
        if not alive():
            raise _Abandoned

    try:
        if new.shipped is not None:
            if size:
                new.shipped.check_text(source)
            else:
                _fetch(new.shipped, source)
        prepare_text(
            source,
            folder,
            tokenizer=new.tokenizer,
            val_ratio=new.val_ratio,
            encoding=new.encoding,
            progress=check_alive,
        )
    except BadDataset as error:
        raise InvalidArgument([Violation("text", str(error))]) from None


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
    running = asyncio.ensure_future(asyncio.to_thread(work, lambda: not abandoned.is_set()))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        abandoned.set()
        await asyncio.wait([running])
        running.exception()  # _Abandoned, or what went wrong meanwhile: nobody asks any more
        raise
