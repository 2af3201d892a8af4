"""DatasetService: wire <-> DatasetStore, and nothing else.

Contract: protos/nanogpt/v1/datasets.proto.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import grpc

from nanogpt.datasets.shipped import SHIPPED, ShippedDataset
from nanogpt.option import Violation
from protos.nanogpt.v1 import datasets_pb2 as pb
from protos.nanogpt.v1 import datasets_pb2_grpc as pb_grpc
from server.dataset_request import DatasetRequest, new_dataset
from server.dataset_store import TEXT, DatasetInfo, DatasetInProgress, DatasetStore, NewDataset
from server.errors import InvalidArgument
from server.services.scalars import timestamp

Context = grpc.aio.ServicerContext[Any, Any]

TOKENIZERS = {pb.TOKENIZER_CHAR: "char", pb.TOKENIZER_GPT2: "gpt2"}
TOKENIZER_NUMBERS = {name: number for number, name in TOKENIZERS.items()}
FORMATS = {
    pb.DatasetSpec.FORMAT_TEXT: TEXT,
    pb.DatasetSpec.FORMAT_TAR: "tar",
    pb.DatasetSpec.FORMAT_JSONL: "jsonl",
    pb.DatasetSpec.FORMAT_PARQUET: "parquet",
}
PHASES = {
    "uploading": pb.DatasetInProgress.PHASE_UPLOADING,
    "reading": pb.DatasetInProgress.PHASE_READING,
    "tokenizing": pb.DatasetInProgress.PHASE_TOKENIZING,
    "checking": pb.DatasetInProgress.PHASE_CHECKING,
}


class DatasetService(pb_grpc.DatasetServiceServicer):
    """Uploads, lists and deletes datasets."""

    def __init__(self, datasets: DatasetStore) -> None:
        self._datasets = datasets

    async def CreateDataset(
        self, requests: AsyncIterator[pb.CreateDatasetRequest], context: Context
    ) -> pb.CreateDatasetResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "spec":
            raise InvalidArgument([Violation("spec", "must be in the first message")])
        info = await self._datasets.create(_new_dataset(first.spec), _texts(requests))
        return pb.CreateDatasetResponse(dataset=_dataset(info))

    async def GetDataset(
        self, request: pb.GetDatasetRequest, context: Context
    ) -> pb.GetDatasetResponse:
        info = await asyncio.to_thread(self._datasets.get, request.name)
        return pb.GetDatasetResponse(dataset=_dataset(info))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        # first: one that is done meanwhile is in both lists rather than in none
        in_progress = self._datasets.in_progress()
        found = await asyncio.to_thread(self._datasets.list)
        return pb.ListDatasetsResponse(
            datasets=[_dataset(info) for info in found],
            shipped=[_shipped(shipped) for shipped in SHIPPED.values()],
            in_progress=[_in_progress(dataset) for dataset in in_progress],
        )

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: Context
    ) -> pb.DeleteDatasetResponse:
        await self._datasets.delete(request.name)
        return pb.DeleteDatasetResponse()


async def _texts(requests: AsyncIterator[pb.CreateDatasetRequest]) -> AsyncIterator[bytes]:
    """The text of every message after the first."""
    async for request in requests:
        if request.WhichOneof("part") != "text":
            raise InvalidArgument([Violation("text", "must be in every message after the first")])
        yield request.text


def _new_dataset(spec: pb.DatasetSpec) -> NewDataset:
    """What the spec asks for. Raises InvalidArgument naming all faults."""
    found = []
    if spec.tokenizer not in (pb.TOKENIZER_UNSPECIFIED, *TOKENIZERS):
        found.append(Violation("spec.tokenizer", f"has no value {spec.tokenizer}"))
    if spec.format not in (pb.DatasetSpec.FORMAT_UNSPECIFIED, *FORMATS):
        found.append(Violation("spec.format", f"has no value {spec.format}"))
    wanted = DatasetRequest(
        name=spec.name,
        shipped=spec.shipped,
        tokenizer=TOKENIZERS.get(spec.tokenizer, ""),
        val_ratio=spec.val_ratio if spec.HasField("val_ratio") else None,
        encoding=spec.encoding,
        format=FORMATS.get(spec.format, ""),
        text_field=spec.text_field,
        max_documents=spec.max_documents if spec.HasField("max_documents") else None,
    )
    return new_dataset(wanted, prefix="spec.", found=found)


def _dataset(info: DatasetInfo) -> pb.Dataset:
    meta = info.meta
    return pb.Dataset(
        name=info.name,
        tokenizer=TOKENIZER_NUMBERS[meta.tokenizer["kind"]],
        train_tokens=meta.train_tokens,
        val_tokens=meta.val_tokens,
        vocab_size=meta.vocab_size,
        characters=meta.characters or 0,
        encoding=meta.encoding or "",
        source_sha256=meta.source_sha256 or "",
        create_time=timestamp(meta.create_time),
        report=None if meta.report is None else pb.DatasetReport(**asdict(meta.report)),
        size_bytes=info.size_bytes,
    )


def _in_progress(dataset: DatasetInProgress) -> pb.DatasetInProgress:
    return pb.DatasetInProgress(
        name=dataset.name,
        phase=PHASES[dataset.phase],
        bytes_done=dataset.bytes_done,
        bytes_total=dataset.bytes_total,
    )


def _shipped(shipped: ShippedDataset) -> pb.ShippedDataset:
    return pb.ShippedDataset(
        name=shipped.name,
        description=shipped.description,
        needs_download=shipped.url is not None,
    )
