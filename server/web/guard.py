"""Who may talk to the dashboard, decided before anything else looks at a request.

Scrapers and probes come by whatever name the network gives this server, and are let through. For
all others:

- Without a token only a server that listens on loopback serves the dashboard. It answers to IP
  addresses, `localhost` and its configured host: any other name could be a hostile web site that
  points here (DNS rebinding).
- With a token every call of the API needs it, as `Authorization: Bearer` or as the cookie that
  `POST /api/session` gives for it. Pages without data, styles and scripts need none.
- A call that another web site sends through a visitor's browser is refused: by Sec-Fetch-Site, by
  Origin, and because a form cannot send the content types that changes must have.

It also puts the security headers on every answer.
"""

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.settings import is_loopback
from server.web.boundary import problem

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

OPEN_PATHS = frozenset({"/metrics", "/healthz"})
"""For machines: they tell numbers and change nothing."""

SESSION_PATH = "/api/session"
COOKIE = "nanogpt_session"
UPLOAD_HEADER = "x-nanogpt-upload"
"""Marks an upload; its value does not matter."""

READING = frozenset({"GET", "HEAD"})

NO_TOKEN = (
    "The dashboard is closed: this server listens beyond its own machine and has no token.\n"
    "Start it with NANOGPT_HTTP_TOKEN=... of at least 16 characters, or on 127.0.0.1.\n"
)
OTHER_NAME = "Open this page by IP address or as localhost.\n"


class Guard:
    """Stands before the whole site."""

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        """`host` is the one that the server was told to listen on."""
        self._app = app
        self._host = host.lower()
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why the request goes no further, or None."""
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_PATHS:
            return None
        if self._token is None and not is_loopback(self._host):
            return PlainTextResponse(NO_TOKEN, 403)
        if self._token is None and not _is_own_host(headers.get("host", ""), self._host):
            return PlainTextResponse(OTHER_NAME, 421)
        if not path.startswith("/api/"):
            return None
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return problem(403, "CROSS_SITE", "another web site may not call this server")
        if scope["method"] not in READING:
            if not _is_own_origin(headers.get("origin"), headers.get("host", "")):
                return problem(403, "CROSS_SITE", "another web site may not call this server")
            if not _has_plain_content(headers):
                allowed = "application/json, or for uploads application/octet-stream"
                return problem(
                    415,
                    "CONTENT_TYPE",
                    f"the Content-Type must be {allowed} with the header {UPLOAD_HEADER}",
                )
        if path != SESSION_PATH and not self._is_known(HTTPConnection(scope)):
            return problem(401, "UNAUTHENTICATED", "this server asks for its token")
        return None

    def _is_known(self, visitor: HTTPConnection) -> bool:
        if self._token is None:
            return True
        scheme, _, given = visitor.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(given, self._token)
        return has_session(visitor, self._token)


def has_session(visitor: HTTPConnection, token: str) -> bool:
    """Whether the visitor has the cookie that stands for the token.

    A browser also sends those of other programs on this host, which may look like anything.
    """
    return same(visitor.cookies.get(COOKIE, ""), session_of(token))


def session_of(token: str) -> str:
    """What a browser keeps in place of the token: proves that it was known, and does not tell it.

    Another token makes it worthless; a restart of the server does not.
    """
    return hmac.new(token.encode(), b"nanogpt-service dashboard", hashlib.sha256).hexdigest()


def same(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how equal they are."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _is_own_host(header: str, own: str) -> bool:
    """Whether a Host header names an IP address, localhost or this server's own host."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("localhost", own):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own_origin(origin: str | None, host: str) -> bool:
    """Whether a page of this server, or no page at all, sends the request."""
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:  # not a URL
        return False


def _has_plain_content(headers: Headers) -> bool:
    """Whether the content is of a type that no form of another site can send."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind == "application/octet-stream" and UPLOAD_HEADER in headers
    )
