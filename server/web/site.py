"""The routes: `/` for people, `/metrics` for Prometheus, `/healthz` for probes.

Probes and scrapers come by whatever name the network gives this server. The page is for browsers,
which a hostile web site could point here by a name of its own (DNS rebinding), so it answers only
to IP addresses, `localhost` and the configured host.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from server.health import Health
from server.web.page import ICON, STYLE

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_site(
    registry: CollectorRegistry,
    health: Health,
    render_page: Callable[[], Awaitable[str]],
    host: str,
) -> Starlette:
    """The HTTP application. `host` is the one that the server was told to listen on."""

    async def page(request: Request) -> Response:
        if not _is_own_host(request.headers.get("host", ""), host):
            return PlainTextResponse(
                "Open this page by IP address or as localhost.\n", 421, headers=SECURITY_HEADERS
            )
        return HTMLResponse(await render_page(), headers=SECURITY_HEADERS)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(encode, registry)  # some ms, which streams would wait for
        return Response(text, headers={**SECURITY_HEADERS, "Content-Type": content_type})

    async def healthz(request: Request) -> Response:
        ready = health.serving("readiness")
        status = {"status": "SERVING" if ready else "NOT_SERVING"}
        return JSONResponse(status, 200 if ready else 503, headers=SECURITY_HEADERS)

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css", headers=SECURITY_HEADERS)

    async def icon(request: Request) -> Response:
        return Response(ICON, media_type="image/svg+xml", headers=SECURITY_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/style.css", style),
            Route("/icon.svg", icon),
        ]
    )


def _is_own_host(header: str, own: str) -> bool:
    """Whether a Host header names an IP address, localhost or this server's own host."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("localhost", own.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
