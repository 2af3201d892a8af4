"""Datasets: list, upload, make a shipped one, delete.

    GET    /api/datasets
    GET    /api/datasets/live                 the same, as it changes (server-sent events)
    POST   /api/datasets/NAME?tokenizer=      the text as the body; also format, val_ratio,
                                              encoding, text_field, max_documents
    POST   /api/datasets/NAME?shipped=NAME    no body, or a copy of the text
    DELETE /api/datasets/NAME

An upload has Content-Type application/octet-stream and the header X-Nanogpt-Upload. One of which
nothing comes for a minute ends with DEADLINE_EXCEEDED.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanogpt.datasets.shipped import SHIPPED
from nanogpt.option import Violation, unknown_key
from server.dataset_request import DatasetRequest, new_dataset
from server.dataset_store import DatasetInfo, DatasetStore, NewDataset
from server.errors import DeadlineExceeded, ServiceError
from server.gate import Gate
from server.health import Health
from server.web.event_stream import EventStream, snapshots
from server.web.guard import UPLOAD_HEADER

MAX_IGNORED_BYTES = 8 << 20
"""What is read of a refused upload: a browser that is still sending hears the answer only then."""

STALLED_SECONDS = 60.0
"""How long an upload may bring nothing: meanwhile its name is taken."""


class DatasetsApi:
    """What visitors can do with datasets."""

    def __init__(
        self, datasets: DatasetStore, gate: Gate, health: Health, max_upload_bytes: int
    ) -> None:
        self._datasets = datasets
        self._gate = gate
        self._health = health
        self._max_upload_bytes = max_upload_bytes

    def routes(self) -> list[Route]:
        return [
            Route("/api/datasets", self.list),
            Route("/api/datasets/live", self.live),
            Route("/api/datasets/{name}", self.create, methods=["POST"]),
            Route("/api/datasets/{name}", self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        return JSONResponse(await self._all())

    async def live(self, request: Request) -> Response:
        return EventStream(snapshots(self._all, self._health))

    async def create(self, request: Request) -> Response:
        body = _unless_stalled(request.stream())
        try:
            new = _new_dataset(request.path_params["name"], request.query_params)
            # a call that is no upload has a JSON object for its body, which is no text
            text = body if UPLOAD_HEADER in request.headers else _nothing()
            with self._gate.passing():
                info = await self._datasets.create(new, text)
        except ServiceError:
            with suppress(DeadlineExceeded):
                await _ignore(body)
            raise
        return JSONResponse(_dataset(info), 201)

    async def delete(self, request: Request) -> Response:
        await self._datasets.delete(request.path_params["name"])
        return Response(status_code=204)

    async def _all(self) -> dict[str, Any]:
        # first: one that is done meanwhile is in both lists rather than in none
        in_progress = self._datasets.in_progress()
        found = await asyncio.to_thread(self._datasets.list)
        made = {info.name for info in found}
        return {
            "datasets": [_dataset(info) for info in found],
            "in_progress": [asdict(dataset) for dataset in in_progress],
            "shipped": [
                {
                    "name": shipped.name,
                    "description": shipped.description,
                    "needs_download": shipped.url is not None,
                    "exists": shipped.name in made,
                }
                for shipped in SHIPPED.values()
            ],
            "max_upload_bytes": self._max_upload_bytes,
        }


async def _nothing() -> AsyncIterator[bytes]:
    """What is received of a dataset that the server has itself."""
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


async def _unless_stalled(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body. Raises DeadlineExceeded once nothing has come for STALLED_SECONDS."""
    while True:
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                chunk = await anext(body, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"nothing of the text came for {STALLED_SECONDS:g} s; send it again"
            ) from None
        if chunk is None:
            return
        yield chunk


async def _ignore(body: AsyncIterator[bytes]) -> None:
    ignored = 0
    async for chunk in body:
        ignored += len(chunk)
        if ignored > MAX_IGNORED_BYTES:
            return


def _new_dataset(name: str, params: QueryParams) -> NewDataset:
    """What is to be made. Raises InvalidArgument naming all faults."""
    known = [spec.name for spec in fields(DatasetRequest) if spec.name != "name"]
    values: dict[str, Any] = {key: value for key, value in params.items() if value}
    found = [unknown_key(key, known) for key in values if key not in known]
    for key, kind, allowed in (
        ("val_ratio", float, "a number"),
        ("max_documents", int, "a whole number"),
    ):
        try:
            values[key] = kind(values[key]) if key in values else None
        except ValueError:
            found.append(Violation(key, f"must be {allowed}, got {values.pop(key)!r}"))
    wanted = DatasetRequest(name, **{key: values[key] for key in values if key in known})
    return new_dataset(wanted, found=found)


def _dataset(info: DatasetInfo) -> dict[str, Any]:
    meta = info.meta
    return {
        "name": info.name,
        "tokenizer": meta.tokenizer["kind"],
        "train_tokens": meta.train_tokens,
        "val_tokens": meta.val_tokens,
        "vocab_size": meta.vocab_size,
        "characters": meta.characters,
        "encoding": meta.encoding,
        "source_sha256": meta.source_sha256,
        "create_time": meta.create_time,
        "size_bytes": info.size_bytes,
        "report": asdict(meta.report) if meta.report else None,
    }
