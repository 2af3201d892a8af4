"""Models in other systems' formats: written to a folder of their own, which lives as long as it is
read.

It does not know who reads the files, or how.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from torch import Tensor

from nanogpt.checkpoint import CheckpointDamaged, CheckpointMeta, load_model_state
from nanogpt.flops import parameter_count
from nanogpt.interop.gguf import export_gguf
from nanogpt.interop.hugging_face import export_hugging_face
from nanogpt.interop.nanogpt_checkpoint import export_nanogpt
from server.errors import FailedPrecondition, NotFound, ResourceExhausted
from server.models.catalog import ModelCatalog, damaged, tokenizer_of
from server.uncancelled import to_its_end

Exporter = Callable[[Path, str, CheckpointMeta, dict[str, Tensor]], None]

EXPORTERS: dict[str, Exporter] = {
    "hugging_face": export_hugging_face,
    "nanogpt": export_nanogpt,
    "gguf": export_gguf,
}
GPT2_ONLY = ("nanogpt", "gguf")
"""Formats of programs that know no modern network."""

BESIDE_WEIGHTS_BYTES = 16 << 20
"""Room for tokenizers, headers and biases that a format asks for: a few MB."""


class ModelExports:
    """The exports that are being read now, below `exports/` of a data folder."""

    def __init__(self, catalog: ModelCatalog, data_dir: Path) -> None:
        self._catalog = catalog
        self._folder = data_dir / "exports"
        shutil.rmtree(self._folder, ignore_errors=True)  # what a killed server left behind
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writing = asyncio.Lock()  # weights of one model at a time are in memory

    @asynccontextmanager
    async def export(
        self, reference: str, format: str, field: str
    ) -> AsyncIterator[Sequence[Path]]:
        """The files of a model in a format of EXPORTERS, by name; deleted after the block.

        Raises InvalidArgument naming the request's `field`, NotFound, DataLoss, FailedPrecondition
        if the format has no place for the architecture, ResourceExhausted if the disk is full.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            async with self._writing:
                await to_its_end(asyncio.to_thread(self._write, reference, format, field, folder))
            yield sorted(folder.iterdir())
        finally:  # also if whoever reads is cancelled again and again while it goes
            await asyncio.shield(asyncio.create_task(asyncio.to_thread(shutil.rmtree, folder)))

    def _write(self, reference: str, format: str, field: str, folder: Path) -> None:
        ref, meta = self._catalog.find(reference, field)
        tokenizer_of(ref, meta)  # raises DataLoss if it is unknown
        if meta.model_config.n_member > 1:
            raise FailedPrecondition(
                "format_not_supported",
                ref.reference,
                f"model {ref.reference} is an ensemble, which no other system's format can hold",
            )
        if format in GPT2_ONLY and meta.model_config.is_modern:
            raise FailedPrecondition(
                "format_not_supported",
                ref.reference,
                f"model {ref.reference} is a modern network, which the format {format} cannot "
                f"hold; export it as hugging_face",
            )
        needed_bytes = 4 * parameter_count(meta.model_config) + BESIDE_WEIGHTS_BYTES
        if shutil.disk_usage(folder).free < needed_bytes:
            raise ResourceExhausted("the server's disk is full", limit="disk")
        try:
            with self._catalog.kept(ref):
                state = load_model_state(ref.folder)
            EXPORTERS[format](folder, ref.name, meta, state)
        except FileNotFoundError:  # deleted meanwhile, or pruned in favour of a newer checkpoint
            raise NotFound("model", ref.reference) from None
        except CheckpointDamaged as error:
            raise damaged(ref, error) from None
