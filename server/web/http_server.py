"""Uvicorn as a part of this process's event loop, started and stopped like everything else."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import CannotStart

STOP_SECONDS = 2
"""How long open requests may take when the server stops."""

FIRST_REQUEST_SECONDS = 60.0
"""How long a connection may be open without a whole head of a request."""


class _Protocol(H11Protocol):
    """Closes connections that ask for nothing: uvicorn's own timer begins with the first answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone: they belong to `python -m server`."""
        yield


class HttpServer:
    """Serves an ASGI application. Create with `start`."""

    def __init__(self, server: _Server, task: "asyncio.Task[None]", port: int) -> None:
        self._server = server
        self._task = task
        self.port = port

    @classmethod
    async def start(cls, app: ASGIApp, host: str, port: int) -> "HttpServer":
        """Listens on host and port, 0 for a free one. Raises CannotStart."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            cause = str(error.strerror).partition(" (while")[0]  # Python repeats the address
            raise CannotStart(
                f"cannot listen on {host}, port {port}, for HTTP: {cause}; "
                "choose another with --http_address=HOST:PORT"
            ) from None
        _notice_vanished_peers(listener)
        server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
        return cls(server, task, listener.getsockname()[1])

    async def stop(self) -> None:
        """Closes the listener, lets open requests finish and returns."""
        self._server.should_exit = True
        await self._task


def _notice_vanished_peers(listener: socket.socket) -> None:
    """Connections that the listener accepts end within 80 s of their peer, as those of gRPC do."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
