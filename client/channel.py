"""How a channel behaves: balancing, health, retries, keepalive, message sizes.

Deadlines are not here: the client sets one on each call (client.methods).
"""

import json

from client.methods import RETRIED

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
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
            "methodConfig": [
                {
                    "name": [{"service": rpc.service, "method": rpc.name} for rpc in RETRIED],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.2s",
                        "maxBackoff": "5s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


def channel_options() -> list[tuple[str, int | str]]:
    """Options of every channel, sync or async."""
    return [
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", 60_000),  # servers refuse a client that pings much more often
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_send_message_length", 2 << 20),  # what a server takes
        ("grpc.max_receive_message_length", 4 << 20),  # what it sends at most
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # a restarted server is found within 5 s
    ]
