"""ModelService: wire <-> ModelStore, and nothing else.

Contract: protos/nanogpt/v1/models.proto.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from nanogpt.config import ModelConfig
from nanogpt.option import Violation
from protos.nanogpt.v1 import models_pb2 as pb
from protos.nanogpt.v1 import models_pb2_grpc as pb_grpc
from server.errors import InvalidArgument
from server.models.memory import ModelState
from server.models.reference import FORMS
from server.models.runners import precision_of
from server.models.store import ModelInfo, ModelStore
from server.names import name_violations
from server.services.scalars import timestamp

Context = grpc.aio.ServicerContext[Any, Any]

STATES = {
    ModelState.UNLOADED: pb.Model.STATE_UNLOADED,
    ModelState.LOADING: pb.Model.STATE_LOADING,
    ModelState.LOADED: pb.Model.STATE_LOADED,
}
IMPORT_FORMATS = {
    pb.MODEL_FORMAT_HUGGING_FACE: "hugging_face",
    pb.MODEL_FORMAT_NANOGPT: "nanogpt",
}
EXPORT_FORMATS = {**IMPORT_FORMATS, pb.MODEL_FORMAT_GGUF: "gguf"}

PIECE_BYTES = 1 << 20
"""Most data in one ExportModelResponse."""


class ModelService(pb_grpc.ModelServiceServicer):
    """Lists, loads, unloads, deletes, imports and exports models."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=map(model_to_pb, await self._models.list()))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        _require_name(request.name)
        info = await self._models.get(request.name, field="name")
        return pb.GetModelResponse(model=model_to_pb(info))

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        _require_name(request.name)
        info = await self._models.load(
            request.name, field="name", precision=precision_of(request.precision)
        )
        return pb.LoadModelResponse(model=model_to_pb(info))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        _require_name(request.name)
        info = await self._models.unload(request.name, field="name")
        return pb.UnloadModelResponse(model=model_to_pb(info))

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        if found := name_violations("name", request.name):
            raise InvalidArgument(found)
        await self._models.delete(request.name)
        return pb.DeleteModelResponse()

    async def ImportModel(
        self, request: pb.ImportModelRequest, context: Context
    ) -> pb.ImportModelResponse:
        found = name_violations("name", request.name) + name_violations("source", request.source)
        if request.dataset:
            found += name_violations("dataset", request.dataset)
        found += _format_violations(request.format, IMPORT_FORMATS)
        if found:
            raise InvalidArgument(found)
        info = await self._models.import_model(
            request.name, request.source, IMPORT_FORMATS[request.format], request.dataset
        )
        return pb.ImportModelResponse(model=model_to_pb(info))

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        _require_name(request.name)
        if found := _format_violations(request.format, EXPORT_FORMATS):
            raise InvalidArgument(found)
        format = EXPORT_FORMATS[request.format]
        async with self._models.export(request.name, format, field="name") as paths:
            for path in paths:
                with path.open("rb") as file:
                    while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                        yield pb.ExportModelResponse(file=path.name, data=data)


def model_to_pb(info: ModelInfo) -> pb.Model:
    meta = info.meta
    return pb.Model(
        name=info.name,
        config=model_config_to_pb(meta.model_config),
        parameter_count=info.parameter_count,
        state=STATES[info.state],
        job_id=meta.job_id,
        create_time=timestamp(meta.create_time),
        step=meta.step,
        val_loss=meta.val_loss,
        tokenizer=meta.tokenizer["kind"],
        size_bytes=meta.size_bytes,
        precision=info.precision,
        memory_bytes=info.memory_bytes,
        weight_version=info.weight_version,
    )


def model_config_to_pb(config: ModelConfig) -> pb.ModelConfig:
    return pb.ModelConfig(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        block_size=config.block_size,
        vocab_size=config.vocab_size,
        bias=config.bias,
        arch=config.arch,
        n_member=config.n_member,
    )


def _format_violations(format: int, known: dict[pb.ModelFormat, str]) -> list[Violation]:
    if format in known:
        return []
    allowed = " or ".join(map(pb.ModelFormat.Name, known))
    return [Violation("format", f"must be {allowed}, got {format}")]


def _require_name(name: str) -> None:
    if not name:
        raise InvalidArgument([Violation("name", f"must be set: {FORMS}")])
