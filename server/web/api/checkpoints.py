"""Checkpoints of jobs: list, pin, delete.

GET    /api/jobs/ID/checkpoints
POST   /api/jobs/ID/checkpoints/STEP/pin      {"pinned": false} lets it go again
DELETE /api/jobs/ID/checkpoints/STEP
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.jobs.checkpoints import CheckpointInfo
from server.jobs.service import JobService
from server.web.body import Body
from server.web.query import path_number


class CheckpointsApi:
    """What visitors can do with checkpoints."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    def routes(self) -> list[Route]:
        checkpoints = "/api/jobs/{id}/checkpoints"
        return [
            Route(checkpoints, self.list),
            Route(f"{checkpoints}/{{step}}/pin", self.pin, methods=["POST"]),
            Route(f"{checkpoints}/{{step}}", self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        found = await self._jobs.checkpoints(request.path_params["id"])
        return JSONResponse({"checkpoints": [_checkpoint(info) for info in found]})

    async def pin(self, request: Request) -> Response:
        body = await Body.read(request)
        pinned = body.boolean("pinned", True)
        body.check()
        job_id, step = request.path_params["id"], path_number(request, "step")
        return JSONResponse(_checkpoint(await self._jobs.pin_checkpoint(job_id, step, pinned)))

    async def delete(self, request: Request) -> Response:
        job_id, step = request.path_params["id"], path_number(request, "step")
        await self._jobs.delete_checkpoint(job_id, step)
        return Response(status_code=204)


def _checkpoint(info: CheckpointInfo) -> dict[str, Any]:
    return {
        "step": info.meta.step,
        "val_loss": info.meta.val_loss,
        "is_best": info.is_best,
        "is_pinned": info.is_pinned,
        "is_loaded": info.is_loaded,
        "size_bytes": info.meta.size_bytes,
        "create_time": info.meta.create_time,
    }
