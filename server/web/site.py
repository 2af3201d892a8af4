"""The whole HTTP application: the guard before, the error boundary inside it, the routes behind."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from server.web.boundary import ErrorBoundary
from server.web.guard import Guard


def create_site(routes: Sequence[BaseRoute], host: str, token: str | None = None) -> ASGIApp:
    """The application. `host` is the one that the server was told to listen on."""
    return Guard(ErrorBoundary(Router(routes=routes, redirect_slashes=False)), host, token)
