"""Asks a server for its health: exit code 0 if it serves, 1 with a reason if not.

For container health checks and scripts, where no other gRPC client is installed. Asks the server
that NANOGPT_GRPC_ADDRESS describes, as the server itself would understand it.

    python -m server.healthcheck
    python -m server.healthcheck --grpc_address=127.0.0.1:50051
"""

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from server.settings import BadSettings, load_settings, split_address

TIMEOUT_SECONDS = 3.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to find a server that listens on every address."""


def check(address: str, service: str = "") -> str | None:
    """None if `service` is SERVING at `address` (host:port), else the reason in a few words.

    The services are those of the gRPC health protocol; the empty one is the whole server.
    https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    """
    host, port = split_address(address)
    host = LOOPBACK.get(host, host)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            return f"{target}: {error.code().name}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return None if status == "SERVING" else f"{target}: {status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the server of the settings and returns the exit code."""
    try:
        settings = load_settings(sys.argv[1:] if arguments is None else arguments)
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 1
    problem = check(settings.grpc_address)
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
