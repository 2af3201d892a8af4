"""What the browser loads: one HTML page, our scripts and styles, and uPlot, which draws charts.

uPlot (https://github.com/leeoniya/uPlot, MIT) is not ours and not in this repository: it is served
from where the installed package `youplot` has it.
"""

from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from server.errors import CannotStart

STATIC = Path(__file__).parent / "static"

PAGES = ("/", "/new", "/runs/{id}", "/playground", "/serving", "/datasets")
"""Paths of the one HTML page; its script shows what belongs to the path."""

VENDORED = {"uplot.js": "uplot.iife.min.js", "uplot.css": "uplot.min.css"}

CACHE = {"Cache-Control": "no-cache"}
"""Asked for again each time, and answered with 304 unless it has changed."""


class _Static(StaticFiles):
    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers.update(CACHE)
        return response


def asset_routes() -> list[BaseRoute]:
    """Raises CannotStart if the charts' library is not installed."""
    vendor = _vendor_folder()

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=CACHE)

    async def vendored(request: Request) -> Response:
        return FileResponse(vendor / VENDORED[request.url.path.rpartition("/")[2]], headers=CACHE)

    return [
        *(Route(path, page) for path in PAGES),
        *(Route(f"/vendor/{name}", vendored) for name in VENDORED),
        Mount("/static", _Static(directory=STATIC)),
    ]


def _vendor_folder() -> Path:
    spec = find_spec("youplot")
    folder = Path(spec.origin).parent / "vendor" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in VENDORED.values()):
        raise CannotStart(
            "the dashboard draws with uPlot out of the package youplot, which is not installed or "
            "not whole: pip install youplot"
        )
    return folder
