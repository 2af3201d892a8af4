"""grpc.health.v1.Health: wire <-> Health, and nothing else.

The servicer that grpcio ships silences all watchers of a name when one of them leaves, and lets a
watcher that does not read hold up every change; here each watcher waits for itself.
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from server.errors import NotFound
from server.health import Health

Context = grpc.aio.ServicerContext[Any, Any]

STATUS = {
    None: pb.HealthCheckResponse.SERVICE_UNKNOWN,
    True: pb.HealthCheckResponse.SERVING,
    False: pb.HealthCheckResponse.NOT_SERVING,
}


class HealthService(pb_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """Answers probes and watchers."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(
        self, request: pb.HealthCheckRequest, context: Context
    ) -> pb.HealthCheckResponse:
        serving = self._health.serving(request.service)
        if serving is None:
            raise NotFound("service", request.service)
        return pb.HealthCheckResponse(status=STATUS[serving])

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> None:
        """Sends the state now and at each change; ends when the server drains."""
        last = None
        while True:
            status = STATUS[self._health.serving(request.service)]
            if status != last:
                await context.write(pb.HealthCheckResponse(status=status))
                last = status
            elif self._health.is_draining:
                return
            else:
                await self._health.changed()
