"""Datasets: list, upload, make a shipped one, delete.

    GET    /api/datasets
    GET    /api/datasets/live                 the same, as it changes (server-sent events)
    POST   /api/datasets/NAME?tokenizer=      the text as the body; also format, val_ratio,
                                              encoding, text_field, max_documents
    POST   /api/datasets/NAME?shipped=NAME    no body
    DELETE /api/datasets/NAME

An upload has Content-Type application/octet-stream and the header X-Nanogpt-Upload.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanogpt.config import Violation, unknown_key
from nanogpt.datasets.documents import FORMATS
from nanogpt.datasets.shipped import SHIPPED
from server.dataset_store import TEXT, DatasetInfo, DatasetStore, NewDataset
from server.errors import InvalidArgument, ServiceError, Unavailable
from server.health import Health
from server.names import name_violations
from server.web.event_stream import EventStream, snapshots

TOKENIZERS = ("char", "gpt2")
ENCODINGS = ("utf-8", "cp1252")
DEFAULT_VAL_RATIO = 0.1
DEFAULT_TEXT_FIELD = "text"
MAX_TEXT_FIELD_CHARACTERS = 256

MAX_IGNORED_BYTES = 8 << 20
"""What is read of a refused upload: a browser that is still sending hears the answer only then."""


class DatasetsApi:
    """What visitors can do with datasets."""

    def __init__(self, datasets: DatasetStore, health: Health, max_upload_bytes: int) -> None:
        self._datasets = datasets
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
        if self._health.is_draining:
            raise Unavailable("the server is stopping; ask again later")
        body = request.stream()
        try:
            new = _new_dataset(request.path_params["name"], request.query_params)
            info = await self._datasets.create(new, body)
        except ServiceError:
            await _ignore(body)
            raise
        return JSONResponse(_dataset(info), 201)

    async def delete(self, request: Request) -> Response:
        await self._datasets.delete(request.path_params["name"])
        return Response(status_code=204)

    async def _all(self) -> dict[str, Any]:
        found = await asyncio.to_thread(self._datasets.list)
        made = {info.name for info in found}
        return {
            "datasets": [_dataset(info) for info in found],
            "in_progress": [asdict(dataset) for dataset in self._datasets.in_progress()],
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


async def _ignore(body: AsyncIterator[bytes]) -> None:
    ignored = 0
    async for chunk in body:
        ignored += len(chunk)
        if ignored > MAX_IGNORED_BYTES:
            return


def _new_dataset(name: str, params: QueryParams) -> NewDataset:
    """What is to be made. Raises InvalidArgument naming all faults."""
    known = (
        "shipped",
        "tokenizer",
        "val_ratio",
        "encoding",
        "format",
        "text_field",
        "max_documents",
    )
    found = name_violations("name", name)
    found += [unknown_key(key, known) for key in params if key not in known]
    if wanted := params.get("shipped"):
        shipped = SHIPPED.get(wanted)
        if shipped is None:
            description = unknown_key(wanted, SHIPPED).description.replace("key", "dataset")
            found.append(Violation("shipped", description))
        if found or shipped is None:
            raise InvalidArgument(found)
        return NewDataset(name, shipped.tokenizer, shipped.val_ratio, "utf-8", shipped)

    def one_of(key: str, default: str, allowed: Sequence[str]) -> str:
        value = params.get(key) or default
        if value not in ("", *allowed):
            problem = f"must be one of {', '.join(allowed)}, got {value!r}"
            found.append(Violation(key, problem))
        return value

    tokenizer = one_of("tokenizer", "char", TOKENIZERS)
    encoding = one_of("encoding", "", ENCODINGS)
    format = one_of("format", TEXT, (TEXT, *FORMATS))
    val_ratio = _number(params.get("val_ratio") or str(DEFAULT_VAL_RATIO))
    if val_ratio is None or not 0 < val_ratio <= 0.5:
        given = params.get("val_ratio")
        found.append(Violation("val_ratio", f"must be in (0, 0.5], got {given!r}"))
    text_field = params.get("text_field") or DEFAULT_TEXT_FIELD
    if len(text_field) > MAX_TEXT_FIELD_CHARACTERS:
        problem = f"may have {MAX_TEXT_FIELD_CHARACTERS} characters, got {len(text_field)}"
        found.append(Violation("text_field", problem))
    count = params.get("max_documents") or None
    if count is not None and (not count.isdecimal() or int(count) < 1):
        problem = f"must be a whole number from 1, got {count!r}"
        found.append(Violation("max_documents", problem))
    if found:
        raise InvalidArgument(found)
    return NewDataset(
        name=name,
        tokenizer=tokenizer,
        val_ratio=val_ratio or DEFAULT_VAL_RATIO,
        encoding=encoding or None,
        format=format,
        text_field=text_field,
        max_documents=None if count is None else int(count),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
