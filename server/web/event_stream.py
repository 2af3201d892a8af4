"""Server-sent events: a stream that the browser takes up again where it broke off.

    return EventStream(events)    # an async iterator of `message(...)` texts

The status is that of the first event: what is raised before it becomes an ordinary answer; later
an error is the last event. A visitor who leaves, or does not read, ends the iterator.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.deadline import deadline
from server.errors import ResourceExhausted, ServiceError
from server.health import Health
from server.web.boundary import to_json, unknown
from server.web.query import whole_number

HEARTBEAT_SECONDS = 15.0
"""Longest silence: proxies cut quiet streams, commonly after 60 s."""

HEARTBEAT = ": still here\n\n"

SLOW_READER_SECONDS = 30.0
"""How long a stream may wait for its reader."""

SNAPSHOT_SECONDS = 1.0

MAX_STREAMS = 200
"""Streams that are open at a time, over all visitors."""

MAX_DIGITS = 19
"""Of a number that the browser saw: one of 64 bits has as many."""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
)

Events = AsyncGenerator[str, None]


def message(data: Any, id: int | None = None) -> str:
    """One event, of JSON."""
    return raw_message(json.dumps(data, allow_nan=False), id)


def raw_message(line: str, id: int | None = None) -> str:
    """One event whose data is a line of text already."""
    numbered = "" if id is None else f"id: {id}\n"
    return f"{numbered}data: {line}\n\n"


def first_sequence(request: Request) -> int:
    """Where a stream of numbered events begins: after the last one that the browser saw, or at
    `?start=`. Raises InvalidArgument."""
    last = request.headers.get("last-event-id", "")
    if last.isdecimal() and len(last) < MAX_DIGITS:
        return int(last) + 1
    return max(1, whole_number(request, "start", 1))


async def snapshots(read: Callable[[], Awaitable[Any]], health: Health) -> Events:
    """What `read` returns, now and whenever it has changed, until the server stops."""
    sent, silent_seconds = "", 0.0
    while not health.is_draining:
        text = json.dumps(await read(), allow_nan=False)
        if text != sent:
            yield raw_message(text)
            sent, silent_seconds = text, 0.0
        elif silent_seconds >= HEARTBEAT_SECONDS:
            yield HEARTBEAT
            silent_seconds = 0.0
        await pause(health)
        silent_seconds += SNAPSHOT_SECONDS


async def pause(health: Health) -> None:
    """Waits for the time between two snapshots, or until the server's health changes."""
    try:
        await asyncio.wait_for(health.changed(), SNAPSHOT_SECONDS)
    except TimeoutError:
        pass


class EventStream(Response):
    """Sends events as they come."""

    num_open: ClassVar[int] = 0

    def __init__(self, events: Events, max_seconds: float | None = None) -> None:
        """After `max_seconds` it ends with DeadlineExceeded; None is never."""
        self._events = events
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EventStream.num_open >= MAX_STREAMS:
            raise ResourceExhausted(
                f"{MAX_STREAMS} streams are open already; close a page", 5.0, limit="streams"
            )
        EventStream.num_open += 1
        sending = asyncio.ensure_future(self._send_all(scope, send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            EventStream.num_open -= 1
            sending.cancel()
            leaving.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        begun = False
        failure: ServiceError | None = None
        try:
            async with aclosing(self._events) as events, deadline(self._max_seconds):
                async for text in events:
                    if not begun:
                        await _begin(send)
                        begun = True
                    await _send_part(send, text)
        except TimeoutError:
            return
        except Exception as error:  # whatever it is, a reader who has begun is told in the stream
            if not begun:
                raise
            failure = error if isinstance(error, ServiceError) else unknown(scope["path"])
        if not begun:
            await _begin(send)
        if failure is not None:
            try:
                await _send_part(send, message({"kind": "error", **to_json(failure)}))
            except TimeoutError:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _begin(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})


async def _send_part(send: Send, text: str) -> None:
    async with asyncio.timeout(SLOW_READER_SECONDS):
        body = {"type": "http.response.body", "body": text.encode(), "more_body": True}
        await send(body)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
