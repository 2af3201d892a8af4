"""How a channel behaves: balancing, health, keepalive, message sizes.

Deadlines are not here: the client sets one on each call (client.methods).
"""

import json

DEFAULT_SERVER = "127.0.0.1:50051"


def service_config() -> str:
    """gRPC's service config as JSON.

    Calls go round the healthy addresses of the server's name. The empty health name stands for the
    whole server: a channel checks one name only, and that of one service would block the others.
    https://github.com/grpc/grpc/blob/master/doc/service_config.md
    """
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
        }
    )


def channel_options() -> list[tuple[str, int | str]]:
    """Options of every channel, sync or async."""
    return [
        ("grpc.service_config", service_config()),
        # Retries are in client.repetition: those of gRPC can leave a call waiting without end.
        # https://github.com/grpc/grpc/issues/41036
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", 60_000),  # servers refuse a client that pings much more often
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_send_message_length", 2 << 20),  # what a server takes
        ("grpc.max_receive_message_length", 4 << 20),  # what it sends at most
        # how long one attempt to connect may last: less than any call, or a host that drops packets
        # would look like a slow server
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # a restarted server is found within 5 s
    ]
