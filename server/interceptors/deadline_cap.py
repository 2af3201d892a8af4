"""Ends calls that take longer than the server allows, whatever the caller allows."""

from typing import Any

from server.deadline import deadline
from server.interceptors.call import Call, CallInterceptor

FOLLOWING = frozenset(
    {
        "/grpc.health.v1.Health/Watch",
        "/nanogpt.v1.TrainingService/StreamLogs",
        "/nanogpt.v1.TrainingService/StreamMetrics",
    }
)
"""Methods without a cap: they follow something for as long as it lasts."""

OPEN_ENDED = frozenset(
    {
        "/nanogpt.v1.DatasetService/CreateDataset",
        "/nanogpt.v1.InferenceService/Benchmark",
        "/nanogpt.v1.ModelService/ExportModel",
    }
)
"""Methods that move or measure as much as the caller asks for: the caller's deadline counts, and
the cap if there is none."""


class DeadlineCap(CallInterceptor):
    """Cancels a handler after `max_seconds`."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds

    async def around(self, call: Call) -> Any:
        has_deadline = call.context.time_remaining() is not None
        if call.method in FOLLOWING or (call.method in OPEN_ENDED and has_deadline):
            return await call.proceed()
        async with deadline(self.max_seconds):
            return await call.proceed()
