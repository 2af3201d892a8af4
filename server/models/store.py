"""All that can be done with models: find, load, use, unload, import, export and delete them.

Brings together what is on disk (ModelCatalog, off the event loop) and what is in memory
(ModelMemory). Knows nothing about protobuf.

    async with models.acquire("job:0123") as model:
        with model.engine.submitted(request, received_at) as stream:
            ...
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.device import pick_device
from nanogpt.flops import parameter_count
from nanogpt.inference.precision import Precision
from nanogpt.tokenizer import GPT2Tokenizer, Tokenizer, tokenizer_from_json
from server.dataset_store import DatasetStore
from server.errors import AlreadyExists, FailedPrecondition
from server.full_disk import full_disk_is_exhausted
from server.metrics import Metrics
from server.models.catalog import ModelCatalog, ModelRef, tokenizer_of
from server.models.exports import ModelExports
from server.models.kernels import Kernels
from server.models.loaded import LoadedModel
from server.models.memory import ModelMemory, ModelState
from server.models.runners import check_precision

MAX_IMPORTS = 2
"""Models imported at a time: each takes a thread, and its weights' memory, for seconds or more."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """All there is to know about a model."""

    name: str
    state: ModelState
    meta: CheckpointMeta
    parameter_count: int
    precision: Precision | None
    """How its weights are held, None unless it is loaded."""
    memory_bytes: int | None
    """What weights and caches take, None unless it is loaded."""
    weight_version: int | None
    """Optimizer steps behind the weights in memory, None unless it is loaded. A job may have a
    newer checkpoint, which `meta` describes."""


class ModelStore:
    """The models of a data folder."""

    def __init__(
        self,
        data_dir: Path,
        *,
        datasets: DatasetStore,
        models_in_training: Callable[[], Awaitable[set[str]]],
        metrics: Metrics,
        memory_bytes: int | None = None,
        num_slots: int = 32,
        max_waiting: int = 64,
        max_waiting_tokens: int = 1 << 17,
        device: str = "auto",
        precision: Precision = "float32",
        kernels: Kernels | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """Loaded models take at most `memory_bytes` together; None is half of what the device has.

        Each generates `num_slots` sequences at a time and lets `max_waiting` more requests wait,
        whose prompts have about `max_waiting_tokens` tokens at most. `models_in_training` tells the
        names that jobs will give to their models. Without `kernels`, models run on PyTorch. Raises
        ValueError if there is no such device, FailedPrecondition if models cannot be held in
        `precision` on it.
        """
        picked_device = pick_device(device)
        kernels = kernels or Kernels(None)
        check_precision(precision, picked_device, kernels)
        self._catalog = ModelCatalog(data_dir)
        self._exports = ModelExports(self._catalog, data_dir)
        self._memory = ModelMemory(
            self._catalog,
            metrics,
            memory_bytes=memory_bytes,
            num_slots=num_slots,
            max_waiting=max_waiting,
            max_waiting_tokens=max_waiting_tokens,
            device=picked_device,
            precision=precision,
            kernels=kernels,
            batch_invariant=batch_invariant,
        )
        self._datasets = datasets
        self._models_in_training = models_in_training
        self._importing: dict[str, asyncio.Task[None]] = {}  # by the name that each will take
        self._import_turns = asyncio.Semaphore(MAX_IMPORTS)
        self._is_stopping = threading.Event()

    @property
    def heartbeat_age_seconds(self) -> float:
        """Age of the oldest heartbeat of all engine threads; 0 if no model is loaded."""
        return self._memory.heartbeat_age_seconds

    def resolve(self, reference: str, field: str = "model") -> ModelRef:
        """Where a reference leads now. Reads the disk. Raises InvalidArgument naming the request's
        `field`, NotFound, DataLoss."""
        return self._catalog.resolve(reference, field)

    def has(self, name: str) -> bool:
        """Whether the name of a model is taken, on disk or by an import under way."""
        return name in self._importing or self._catalog.has(name)

    def loaded_folders(self) -> set[Path]:
        """Folders whose weights are in memory: of models, and of checkpoints used as models."""
        return {model.ref.folder for model in self._memory.in_memory}

    @property
    def in_memory(self) -> list[LoadedModel]:
        """The models in memory."""
        return self._memory.in_memory

    async def list(self) -> list[ModelInfo]:
        """Every model on disk, newest first."""
        return [self._info(*found) for found in await asyncio.to_thread(self._catalog.list)]

    async def get(self, reference: str, field: str = "model") -> ModelInfo:
        """One model. Raises as `resolve`."""
        return self._info(*await asyncio.to_thread(self._catalog.find, reference, field))

    async def tokenizer(self, reference: str) -> Tokenizer:
        """The tokenizer of a model, which is not loaded for that. Raises as `resolve`."""
        return tokenizer_of(*await asyncio.to_thread(self._catalog.find, reference))

    def acquire(
        self, reference: str, field: str = "model"
    ) -> AbstractAsyncContextManager[LoadedModel]:
        """The model, in memory meanwhile; it is loaded if it was not.

        Raises as `resolve`, ResourceExhausted if it does not fit, Unavailable while stopping.
        """
        return self._memory.acquire(reference, field)

    async def load(
        self, reference: str, field: str = "model", precision: Precision | None = None
    ) -> ModelInfo:
        """Loads a model and keeps it until `unload`, its weights held as `precision` says; None is
        the server's setting. Raises as `acquire`, FailedPrecondition if that cannot be had here."""
        await self._memory.pin(reference, field, precision)
        return await self.get(reference, field)

    async def unload(self, reference: str, field: str = "model") -> ModelInfo:
        """Frees a model once nobody holds it. New requests load it again. Raises as `resolve`."""
        ref = await asyncio.to_thread(self.resolve, reference, field)
        await self._memory.release(ref.reference)
        return await self.get(reference, field)

    async def delete(self, name: str) -> None:
        """Deletes a model's files. Raises NotFound, FailedPrecondition while it is loaded."""
        if loaded := self._memory.loaded_references(name):
            raise FailedPrecondition(
                "model_loaded", name, f"model {loaded[0]!r} is loaded; unload it first"
            )
        await asyncio.to_thread(self._catalog.delete, name)

    async def import_model(self, name: str, source: str, format: str, dataset: str) -> ModelInfo:
        """Makes model `name` of the files in imports/`source`, see ModelCatalog.import_model.

        It gets the tokenizer of `dataset`, or GPT-2's if that is empty. Waits while MAX_IMPORTS
        others are imported. Raises NotFound, AlreadyExists, InvalidArgument, ResourceExhausted if
        the disk is full, Unavailable if the server stops before the model is written. A caller who
        goes away does not stop it.
        """
        tokenizer: Tokenizer = GPT2Tokenizer()
        if dataset:
            info = await asyncio.to_thread(self._datasets.get, dataset)
            tokenizer = tokenizer_from_json(info.meta.tokenizer)
        if name in self._importing:
            raise AlreadyExists("model", name)
        self._importing[name] = asyncio.create_task(self._import(name, source, format, tokenizer))
        self._importing[name].add_done_callback(lambda done: self._end_import(name, done))
        await asyncio.shield(self._importing[name])
        return await self.get(name)

    def export(
        self, reference: str, format: str, field: str = "model"
    ) -> AbstractAsyncContextManager[Sequence[Path]]:
        """A model's files in another format, on disk meanwhile, see ModelExports.export."""
        return self._exports.export(reference, format, field)

    async def adopt_kernels(self) -> None:
        """Waits for native kernels, then loads anew what PyTorch has served until then."""
        await self._memory.adopt_kernels()

    async def end_requests(self) -> None:
        """Loads and imports nothing more; whoever waits for a model or reads from one gets
        Unavailable."""
        self._is_stopping.set()
        await self._memory.end_requests()

    async def stop(self) -> None:
        """Frees everything, once nobody holds it. Requests that still run end with Unavailable.

        Afterwards no import writes to the data folder: one that has begun to write is finished.
        """
        self._is_stopping.set()
        await self._memory.stop()
        if self._importing:
            await asyncio.wait(self._importing.values())

    async def _import(self, name: str, source: str, format: str, tokenizer: Tokenizer) -> None:
        if name in await self._models_in_training():
            raise AlreadyExists("model", name)
        async with self._import_turns:
            with full_disk_is_exhausted():
                await asyncio.to_thread(
                    self._catalog.import_model,
                    name,
                    source,
                    format,
                    tokenizer,
                    alive=lambda: not self._is_stopping.is_set(),
                )

    def _end_import(self, name: str, done: asyncio.Task[None]) -> None:
        del self._importing[name]
        if not done.cancelled():
            done.exception()  # seen, also if nobody waits any more

    def _info(self, ref: ModelRef, meta: CheckpointMeta) -> ModelInfo:
        loaded = self._memory.loaded(ref.reference)
        return ModelInfo(
            name=ref.name,
            state=self._memory.state(ref.reference),
            meta=meta,
            parameter_count=parameter_count(meta.model_config),
            precision=loaded.precision if loaded else None,
            memory_bytes=loaded.memory_bytes if loaded else None,
            weight_version=loaded.weight_version if loaded else None,
        )
