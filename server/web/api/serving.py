"""How the loaded models are doing.

GET /api/serving/live    figures, once a second (server-sent events)
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.models.monitor import ModelFigures, ServingMonitor
from server.web.event_stream import EventStream, message


class ServingApi:
    """Streams what the monitor measures."""

    def __init__(self, monitor: ServingMonitor) -> None:
        self._monitor = monitor

    def routes(self) -> list[Route]:
        return [Route("/api/serving/live", self.live)]

    async def live(self, request: Request) -> Response:
        return EventStream(self._figures())

    async def _figures(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._monitor.follow()) as measured:
            async for figures in measured:
                models = [_model(model) for model in figures.models]
                yield message({"kind": "figures", "time": figures.time, "models": models})


def _model(model: ModelFigures) -> dict[str, Any]:
    engine = model.engine
    return {
        "reference": model.reference,
        "weight_version": model.weight_version,
        "memory_bytes": model.memory_bytes,
        "running": engine.running,
        "waiting": engine.waiting,
        "prompt_tokens_per_second": model.prompt_tokens_per_second,
        "generation_tokens_per_second": model.generation_tokens_per_second,
        "time_to_first_token": (
            asdict(engine.time_to_first_token) if engine.time_to_first_token else None
        ),
        "inter_token_latency": (
            asdict(engine.inter_token_latency) if engine.inter_token_latency else None
        ),
        "kv_cache_usage_ratio": engine.kv_cache_usage_ratio,
        "prefix_cache_hit_ratio": model.prefix_cache_hit_ratio,
    }
