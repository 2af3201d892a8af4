"""Which models are in memory: loads them when they are asked for, frees them when room is needed.

A request holds its model until it has ended, and a held model is never freed. Loading happens off
the event loop, once for all who wait for it; all bookkeeping happens on the loop. It asks the
catalog where a reference leads and knows nothing else about the disk.

A newer checkpoint of a job is loaded beside the one in memory: new requests get the new one,
running ones finish on the old, which is then freed. So is a model that PyTorch has served while
native kernels were being compiled.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch

from nanogpt.device import total_memory_bytes
from nanogpt.inference.precision import Precision
from server.errors import DataLoss, NotFound, ResourceExhausted, ServiceError, Unavailable
from server.metrics import Metrics
from server.models.catalog import ModelCatalog, ModelRef
from server.models.kernels import Kernels
from server.models.loaded import LoadedModel, build_engine
from server.models.runners import (
    arithmetic_of,
    check_precision,
    kernels_for,
    memory_bytes_of,
)
from server.serving.engine_thread import EngineThread

logger = logging.getLogger(__name__)

MAX_LOADS = 2
"""Models read into memory at a time. A load takes seconds and a thread, of which the loop has few,
and others need them for moments."""

RETRY_SECONDS = 5.0
"""When to try again if only models in use are in the way."""


class ModelState(StrEnum):
    """Places a model can be."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"


@dataclass(eq=False, slots=True)
class _Entry:
    """What is in memory, or on its way there, for one reference."""

    reference: str
    precision: Precision
    """How its model is to be held."""
    model: LoadedModel | None = None
    loading: asyncio.Task[None] | None = None
    num_waiting: int = 0
    """Callers about to hold its model, which must not make room for another before they do."""
    is_pinned: bool = False
    refused: ModelRef | None = None
    """A newer checkpoint that turned out damaged and is not tried again."""

    @property
    def state(self) -> ModelState:
        if self.model is not None:
            return ModelState.LOADED
        return ModelState.LOADING if self.loading is not None else ModelState.UNLOADED

    @property
    def memory_bytes(self) -> int:
        return 0 if self.model is None else self.model.memory_bytes

    @property
    def last_used_at(self) -> float:
        return 0.0 if self.model is None else self.model.last_used_at

    @property
    def is_held(self) -> bool:
        return self.model is not None and self.model.num_holders > 0

    def serves(self, ref: ModelRef, precision: Precision | None) -> bool:
        """Whether its model is alive, no older than the reference asks for, and held as wanted;
        None is as it is."""
        if self.model is None or self.model.engine.has_ended:
            return False
        if self.model.precision != (precision or self.precision):
            return False
        return ref == self.refused or self.model.ref.is_as_new_as(ref)


class ModelMemory:
    """The models in memory, and those on their way there or out of it."""

    def __init__(
        self,
        catalog: ModelCatalog,
        metrics: Metrics,
        *,
        memory_bytes: int | None,
        num_slots: int,
        max_waiting: int,
        max_waiting_tokens: int,
        device: torch.device,
        precision: Precision,
        kernels: Kernels,
        batch_invariant: bool,
    ) -> None:
        """Models take at most `memory_bytes` together; None is half of what the device has.
        They are held in `precision` unless `pin` says otherwise."""
        self._catalog = catalog
        self._metrics = metrics
        self._memory_bytes = memory_bytes or total_memory_bytes(device) // 2
        self._num_slots = num_slots
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._device = device
        self._precision = precision
        self._kernels = kernels
        self._batch_invariant = batch_invariant
        self._entries: dict[str, _Entry] = {}  # by canonical reference
        self._in_memory: list[LoadedModel] = []  # those of entries, and retired ones still held
        self._used_bytes = 0  # by these, and by loads under way
        self._making_room = asyncio.Lock()
        self._building = asyncio.Semaphore(MAX_LOADS)
        self._freeing: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    @property
    def heartbeat_age_seconds(self) -> float:
        """Age of the oldest heartbeat of all engine threads; 0 if there are none.

        One that has died does not count: the next request for its model replaces it.
        """
        engines = [model.engine for model in self._in_memory]
        return max(
            (engine.heartbeat_age_seconds for engine in engines if not engine.has_ended),
            default=0.0,
        )

    def state(self, reference: str) -> ModelState:
        """Where the model of a canonical reference is."""
        entry = self._entries.get(reference)
        return ModelState.UNLOADED if entry is None else entry.state

    def loaded(self, reference: str) -> LoadedModel | None:
        """The model of a canonical reference, if it is in memory."""
        entry = self._entries.get(reference)
        return None if entry is None else entry.model

    def loaded_references(self, name: str) -> list[str]:
        """References to the files of a model, NAME and NAME@STEP, that are loaded or loading."""
        return [
            entry.reference
            for entry in self._entries.values()
            if entry.reference.partition("@")[0] == name and entry.state is not ModelState.UNLOADED
        ]

    @property
    def in_memory(self) -> list[LoadedModel]:
        """The models in memory, those included that only finish their last requests."""
        return list(self._in_memory)

    @asynccontextmanager
    async def acquire(self, reference: str, field: str) -> AsyncIterator[LoadedModel]:
        """The model, in memory meanwhile; it is loaded if it was not.

        Raises as `ModelCatalog.resolve`, ResourceExhausted if it does not fit, Unavailable while
        stopping.
        """
        with (await self._ready(reference, field)).held() as model:
            yield model

    async def pin(self, reference: str, field: str, precision: Precision | None) -> None:
        """Loads a model that stays until it is released, held as `precision` says; None is the
        server's setting. One that is held otherwise is loaded anew, and stays if that fails.

        Raises as `acquire`, FailedPrecondition if the precision cannot be had here.
        """
        precision = precision or self._precision
        check_precision(precision, self._device, self._kernels)
        with (await self._ready(reference, field, precision)).held() as model:
            self._entries[model.ref.reference].is_pinned = True

    async def adopt_kernels(self) -> None:
        """Waits for native kernels, then loads anew what PyTorch has served until then.

        A model that does not fit beside the one in use follows once that is held no more.
        """
        if await self._kernels.made() is None:
            return
        entries = list(self._entries.values())
        while entries := [entry for entry in entries if not await self._adopt_kernels(entry)]:
            await self._any_room()

    async def _adopt_kernels(self, entry: _Entry) -> bool:
        """Whether that has come to its end, good or bad; if not, models in use are in the way."""
        if entry.loading is not None:
            await asyncio.wait([entry.loading])
        if entry.model is None or entry.model.is_native:
            return True
        try:
            await self._load_once(entry, entry.model.ref, entry.model.precision)
        except ServiceError as error:
            if isinstance(error, ResourceExhausted) and error.retry_seconds is not None:
                return False
            logger.warning("%s goes on with PyTorch: %s", entry.reference, error.message)
        except Exception:  # a bug of ours must not keep the kernels from other models
            logger.exception("%s goes on with PyTorch", entry.reference)
        return True

    async def _any_room(self) -> None:
        """Returns once nobody holds one of the models that are held now, or one is freed."""
        held = [model for model in self._in_memory if model.num_holders]
        waits = [asyncio.create_task(model.unheld.wait()) for model in held]
        try:
            if pending := [*waits, *self._freeing]:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def release(self, reference: str) -> None:
        """Frees the model of a canonical reference, once it is loaded and nobody holds it."""
        entry = self._entries.get(reference)
        if entry is not None and entry.loading is not None:
            await asyncio.wait([entry.loading])
        if entry is not None and entry.model is not None:
            entry.is_pinned = False
            await asyncio.shield(self._retire(entry))

    async def end_requests(self) -> None:
        """Loads nothing more; whoever waits for a model or reads from one gets Unavailable."""
        self._is_stopping = True
        loads = [entry.loading for entry in self._entries.values() if entry.loading is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await asyncio.gather(*(model.engine.stop(0.0) for model in self._in_memory))

    async def stop(self) -> None:
        """Frees everything, once nobody holds it. Requests that still run end with Unavailable."""
        await self.end_requests()
        for entry in list(self._entries.values()):
            if entry.model is not None:
                self._retire(entry)
        await asyncio.gather(*self._freeing)

    # --- loading ---------------------------------------------------------------------------------

    async def _ready(
        self, reference: str, field: str, precision: Precision | None = None
    ) -> LoadedModel:
        """The model to use now; whoever awaits it can hold it before anything else happens."""
        entry = self._entries.get(reference)
        if entry is not None and entry.model is not None and entry.model.ref.is_final:
            if entry.serves(entry.model.ref, precision):
                return entry.model  # spares a look at the disk
        while True:
            ref = await asyncio.to_thread(self._catalog.resolve, reference, field)
            try:
                return await self._ready_for(ref, precision)
            except NotFound:
                if ref == await asyncio.to_thread(self._catalog.resolve, reference, field):
                    raise
                # pruned meanwhile in favour of a newer checkpoint

    async def _ready_for(self, ref: ModelRef, precision: Precision | None) -> LoadedModel:
        entry = self._entries.setdefault(ref.reference, _Entry(ref.reference, self._precision))
        entry.num_waiting += 1
        try:
            while not entry.serves(ref, precision):
                await self._load_once(entry, ref, precision or entry.precision)
        except Exception as error:
            if entry.model is None or entry.model.engine.has_ended:
                raise
            if precision is not None and entry.model.precision != precision:
                raise  # it was asked for: an older answer is none
            if isinstance(error, (DataLoss, NotFound)):
                entry.refused = ref
            step = entry.model.weight_version
            logger.warning("%s goes on with step %d", ref.reference, step, exc_info=error)
        finally:
            entry.num_waiting -= 1
            self._forget_if_empty(entry)
        assert entry.model is not None
        return entry.model

    async def _load_once(self, entry: _Entry, ref: ModelRef, precision: Precision) -> None:
        """Waits for the load under way, or for a new one. Going away does not stop it."""
        if not self._is_stopping:
            if entry.loading is None:
                entry.loading = asyncio.create_task(self._load(entry, ref, precision))
                entry.loading.add_done_callback(lambda load: self._end_load(entry, load))
            load = entry.loading
            await asyncio.wait([load])
            if not load.cancelled():
                return load.result()
        raise Unavailable("the server is stopping; try another one, or later")

    def _end_load(self, entry: _Entry, load: asyncio.Task[None]) -> None:
        entry.loading = None
        if not load.cancelled():
            load.exception()  # seen, also if nobody waits any more
        self._forget_if_empty(entry)

    async def _load(self, entry: _Entry, ref: ModelRef, precision: Precision) -> None:
        """Puts a model into its entry, whose files are kept as long as it is in memory."""
        files = ExitStack()
        try:
            await asyncio.to_thread(files.enter_context, self._catalog.kept(ref))
            await self._load_kept(entry, ref, precision, files)
        except BaseException:
            await asyncio.to_thread(files.close)
            raise

    async def _load_kept(
        self, entry: _Entry, ref: ModelRef, precision: Precision, files: ExitStack
    ) -> None:
        """Puts a model into its entry, in place of an older or a dead one."""
        start = time.monotonic()
        meta = await asyncio.to_thread(self._catalog.read, ref)
        library = await asyncio.to_thread(kernels_for, precision, self._kernels)
        memory_bytes = memory_bytes_of(meta.model_config, self._num_slots, precision, library)
        await self._make_room(memory_bytes, entry)
        try:
            async with self._building:
                engine, tokenizer = await asyncio.to_thread(
                    build_engine,
                    ref,
                    meta,
                    self._device,
                    self._num_slots,
                    precision,
                    library,
                    self._batch_invariant,
                )
        except BaseException:
            self._used_bytes -= memory_bytes
            raise
        thread = EngineThread(
            engine,
            model=ref.name,
            metrics=self._metrics,
            num_slots=self._num_slots,
            max_waiting=self._max_waiting,
            max_waiting_tokens=self._max_waiting_tokens,
            loop=asyncio.get_running_loop(),
        )
        thread.start()
        if entry.model is not None:
            self._retire(entry)
        entry.precision = precision
        entry.model = LoadedModel(
            ref=ref,
            weight_version=meta.step,
            tokenizer=tokenizer,
            model_config=meta.model_config,
            device=self._device,
            precision=precision,
            is_native=library is not None,
            arithmetic=arithmetic_of(precision, library),
            num_slots=self._num_slots,
            engine=thread,
            memory_bytes=memory_bytes,
            files=files,
            last_used_at=time.monotonic(),
        )
        self._in_memory.append(entry.model)
        seconds = time.monotonic() - start
        self._metrics.weight_load_duration_seconds.labels(model=ref.name).set(seconds)
        self._metrics.weight_version_info.labels(model=ref.name, version=str(meta.step)).set(1)
        logger.info(
            "loaded %s, step %d, in %s on %s, in %.2f s",
            ref.reference,
            meta.step,
            precision,
            "PyTorch" if library is None else "native kernels",
            seconds,
        )

    # --- making room -----------------------------------------------------------------------------

    async def _make_room(self, needed_bytes: int, entry: _Entry) -> None:
        """Reserves memory, retiring idle models if need be, the one longest unused first.

        An entry's own older version goes last, since it is what serves if the load fails. Raises
        ResourceExhausted, with nothing retired, if all that is not enough.
        """
        async with self._making_room:  # or two loads would count on the same bytes
            kept_bytes = self._used_bytes - sum(other.memory_bytes for other in self._idle(entry))
            if kept_bytes + needed_bytes > self._memory_bytes:
                raise self._does_not_fit(needed_bytes, kept_bytes, entry)
            while self._used_bytes + needed_bytes > self._memory_bytes:
                idle = self._idle(entry)  # anew each time: models come into use meanwhile
                if not idle:
                    raise self._does_not_fit(needed_bytes, self._used_bytes, entry)
                await asyncio.shield(self._retire(idle[0]))
            self._used_bytes += needed_bytes

    def _idle(self, entry: _Entry) -> list[_Entry]:
        """Entries whose models may make room for that of `entry`, in the order of going."""
        idle = [
            other
            for other in self._entries.values()
            if other is not entry
            and other.model is not None
            and not (other.is_held or other.num_waiting or other.is_pinned)
        ]
        idle.sort(key=lambda other: other.last_used_at)
        return [*idle, entry] if entry.model and not entry.is_held else idle

    def _does_not_fit(self, needed: int, kept: int, entry: _Entry) -> ResourceExhausted:
        is_leaving = bool(self._freeing) or any(model.num_holders for model in self._in_memory)
        may_end = needed <= self._memory_bytes and is_leaving
        return ResourceExhausted(
            f"model {entry.reference} needs {_megabytes(needed)}; of the "
            f"{_megabytes(self._memory_bytes)} that models may take together "
            f"{_megabytes(kept)} are in use or kept by LoadModel",
            RETRY_SECONDS if may_end else None,
            limit="model_memory",
        )

    def _retire(self, entry: _Entry) -> asyncio.Task[None]:
        """Takes the model out of its entry; it is freed once nobody holds it."""
        model, entry.model = entry.model, None
        assert model is not None
        self._forget_if_empty(entry)
        task = asyncio.create_task(self._free(model))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)
        return task

    async def _free(self, model: LoadedModel) -> None:
        await model.unheld.wait()
        await model.engine.stop(None)
        await asyncio.to_thread(model.files.close)
        self._in_memory.remove(model)
        self._used_bytes -= model.memory_bytes
        versions = {other.weight_version for other in self._in_memory if other.name == model.name}
        if not versions:
            self._metrics.forget_model(model.name)
        elif model.weight_version not in versions:
            self._metrics.weight_version_info.remove(model.name, str(model.weight_version))
        logger.info("freed %s, step %d", model.ref.reference, model.weight_version)

    def _forget_if_empty(self, entry: _Entry) -> None:
        is_empty = entry.state is ModelState.UNLOADED and not entry.num_waiting
        if is_empty and self._entries.get(entry.reference) is entry:
            del self._entries[entry.reference]


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
