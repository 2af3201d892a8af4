"""Models: list, load, unload, delete, export.

    GET    /api/models
    POST   /api/models/REFERENCE/load             {"precision": "int8"}, or the server's setting
    POST   /api/models/REFERENCE/unload
    GET    /api/models/REFERENCE/export?format=   hugging_face, nanogpt or gguf, as a tar archive
    DELETE /api/models/NAME

A reference is NAME, NAME@STEP, job:ID or job:ID@STEP.
"""

import asyncio
import tarfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nanogpt.option import Violation
from server.errors import InvalidArgument
from server.gate import Gate
from server.models.exports import EXPORTERS
from server.models.runners import precision_of
from server.models.store import ModelInfo, ModelStore
from server.names import name_violations
from server.web.body import Body

PIECE_BYTES = 1 << 20

BLOCK_BYTES = tarfile.BLOCKSIZE


class ModelsApi:
    """What visitors can do with models."""

    def __init__(self, models: ModelStore, gate: Gate) -> None:
        self._models = models
        self._gate = gate

    def routes(self) -> list[Route]:
        model = "/api/models/{reference}"
        return [
            Route("/api/models", self.list),
            Route(f"{model}/load", self.load, methods=["POST"]),
            Route(f"{model}/unload", self.unload, methods=["POST"]),
            Route(f"{model}/export", self.export),
            Route(model, self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        return JSONResponse({"models": [model_json(info) for info in await self._models.list()]})

    async def load(self, request: Request) -> Response:
        body = await Body.read(request)
        wanted = body.text("precision")
        body.check()
        info = await self._models.load(_reference(request), precision=precision_of(wanted))
        return JSONResponse(model_json(info))

    async def unload(self, request: Request) -> Response:
        return JSONResponse(model_json(await self._models.unload(_reference(request))))

    async def delete(self, request: Request) -> Response:
        name = _reference(request)
        if found := name_violations("name", name):
            raise InvalidArgument(found)
        await self._models.delete(name)
        return Response(status_code=204)

    async def export(self, request: Request) -> Response:
        reference, format = _reference(request), request.query_params.get("format", "")
        if format not in EXPORTERS:
            allowed = " or ".join(EXPORTERS)
            raise InvalidArgument([Violation("format", f"must be {allowed}, got {format!r}")])
        async with AsyncExitStack() as stack:  # before the answer begins, so that errors are told
            stack.enter_context(self._gate.passing())
            paths = await stack.enter_async_context(self._models.export(reference, format))
            kept = stack.pop_all()
        name = f"{reference.replace(':', '-').replace('@', '-')}-{format}.tar"
        return StreamingResponse(
            _archive(paths, kept),
            media_type="application/x-tar",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


async def _archive(paths: Sequence[Path], kept: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """The files as an uncompressed tar archive; weights would not get smaller."""
    async with kept:
        for path in paths:
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            yield entry.tobuf()
            with path.open("rb") as file:
                while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield data
            yield bytes(-entry.size % BLOCK_BYTES)
        yield bytes(2 * BLOCK_BYTES)  # the end: two empty blocks


def model_json(info: ModelInfo) -> dict[str, Any]:
    meta, config = info.meta, info.meta.model_config
    return {
        "name": info.name,
        "state": str(info.state).upper(),
        "parameter_count": info.parameter_count,
        "arch": config.arch,
        "n_member": config.n_member,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "vocab_size": config.vocab_size,
        "tokenizer": meta.tokenizer["kind"],
        "step": meta.step,
        "val_loss": meta.val_loss,
        "size_bytes": meta.size_bytes,
        "job_id": meta.job_id,
        "create_time": meta.create_time,
        "precision": info.precision,
        "memory_bytes": info.memory_bytes,
    }


def _reference(request: Request) -> str:
    return str(request.path_params["reference"])
