"""`/metrics` for Prometheus and `/healthz` for probes."""

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.health import Health


def probe_routes(registry: CollectorRegistry, health: Health) -> list[Route]:
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(encode, registry)  # some ms, which streams would wait for
        return Response(text, headers={"Content-Type": content_type})

    async def healthz(request: Request) -> Response:
        ready = health.serving("readiness")
        status = {"status": "SERVING" if ready else "NOT_SERVING"}
        return JSONResponse(status, 200 if ready else 503)

    return [Route("/metrics", metrics), Route("/healthz", healthz)]
