"""What the form for a new run has to ask: every hyperparameter with its range and explanation.

GET /api/form
"""

from dataclasses import MISSING, Field, fields
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanogpt.config import TrainConfig
from nanogpt.option import Range
from nanogpt.preset import load_preset, preset_names


def form_routes() -> list[Route]:
    form = {
        "fields": [_field(spec) for spec in fields(TrainConfig)],
        "presets": [_preset(name) for name in preset_names()],
    }

    async def get(request: Request) -> Response:
        return JSONResponse(form)

    return [Route("/api/form", get)]


def _field(spec: "Field[Any]") -> dict[str, Any]:
    bounds: Range = spec.metadata.get("range", Range())
    kind = spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", "str")
    limits = {name: getattr(bounds, name) for name in ("ge", "gt", "le", "lt")}
    return {
        "name": spec.name,
        "type": kind.removesuffix(" | None"),
        "is_optional": kind.endswith(" | None"),
        "default": None if spec.default is MISSING else spec.default,
        "help": spec.metadata.get("help", ""),
        "choices": bounds.choices,
        "allowed": "" if bounds == Range() or bounds.choices else _words(bounds),
        **{name: limit for name, limit in limits.items() if limit is not None and limit < 1 << 53},
    }


def _preset(name: str) -> dict[str, Any]:
    preset = load_preset(name)
    return {"name": name, "config": preset.config, "dataset": preset.dataset}


def _words(bounds: Range) -> str:
    """A range for people: `from 1`, `in [0, 1)`."""
    if bounds.le is None and bounds.lt is None:
        return f"from {bounds.ge:g}" if bounds.ge is not None else f"above {bounds.gt:g}"
    return str(bounds)
