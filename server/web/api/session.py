"""Who the visitor is, and what this server is.

GET    /api/session    is a token needed, and was it given?
POST   /api/session    {"token": "..."}: answers with a cookie that stands for the token
DELETE /api/session    forgets the cookie
GET    /api/about      version, address of the gRPC API, device
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.web.body import Body
from server.web.boundary import problem
from server.web.guard import COOKIE, has_session, same, session_of


class SessionApi:
    """Exchanges the server's token for a cookie."""

    def __init__(self, token: str | None, about: Callable[[], dict[str, Any]]) -> None:
        self._token = token
        self._about = about

    def routes(self) -> list[Route]:
        return [
            Route("/api/session", self.get, methods=["GET"]),
            Route("/api/session", self.begin, methods=["POST"]),
            Route("/api/session", self.end, methods=["DELETE"]),
            Route("/api/about", self.about),
        ]

    async def get(self, request: Request) -> Response:
        known = self._token is None or has_session(request, self._token)
        return JSONResponse({"needs_token": self._token is not None, "is_known": known})

    async def begin(self, request: Request) -> Response:
        body = await Body.read(request)
        given = body.text("token")
        body.check()
        if self._token is not None and not same(given, self._token):
            return problem(401, "UNAUTHENTICATED", "that is not this server's token")
        response = JSONResponse({"needs_token": self._token is not None, "is_known": True})
        if self._token is not None:
            response.set_cookie(
                COOKIE,
                session_of(self._token),
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return response

    async def end(self, request: Request) -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def about(self, request: Request) -> Response:
        return JSONResponse(self._about())
