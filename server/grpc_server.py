"""The gRPC listener: its limits, and a port that is ours alone. Knows no service."""

from collections.abc import Sequence

import grpc
from google.protobuf.internal import api_implementation
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from server.errors import CannotStart

MIB = 1 << 20


def create_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], connection_age_seconds: float = 1800
) -> grpc.aio.Server:
    """A server without services or ports. Connections older than `connection_age_seconds` take no
    new calls. Raises CannotStart on a protobuf in pure Python."""
    if api_implementation.Type() == "python":
        # deeply nested messages overflow its stack: CVE-2025-4565
        raise CannotStart("protobuf runs in pure Python here; install a wheel with its C code")
    options = {
        # an upload's chunk has at most 1 MiB of text, and its message a little more
        "grpc.max_receive_message_length": 2 * MIB,
        "grpc.max_send_message_length": 4 * MIB,
        "grpc.max_concurrent_streams": 100,  # of one connection
        "grpc.max_connection_idle_ms": 300_000,
        # clients come back and find servers that were added; grpc adds 10 % of jitter. Calls under
        # way have no limit but their own: the grace after it is infinite unless one is set
        "grpc.max_connection_age_ms": round(connection_age_seconds * 1000),
        # peers that vanished are noticed within 80 s; the default is two hours
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": 30_000,
        "grpc.server_handshake_timeout_ms": 10_000,
        "grpc.so_reuseport": 0,  # else two servers share a port and split its calls
    }
    return grpc.aio.server(interceptors=interceptors, options=list(options.items()))


def bind(server: grpc.aio.Server, address: str) -> int:
    """Listens on `host:port` and returns the port. Raises CannotStart."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise CannotStart(
            f"cannot listen on {address}: another program may use the port, "
            "or this machine does not have the address; --grpc_address names another"
        ) from None


def enable_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets clients such as grpcurl ask which methods and messages there are."""
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)
