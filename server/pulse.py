"""Feels four times a second how late the event loop is, and whether what it serves still lives."""

import asyncio
from collections.abc import Callable, Sequence

from server.health import Health
from server.metrics import Metrics

BEAT_SECONDS = 0.25

MAX_HEARTBEAT_AGE_SECONDS = 30.0
"""Above the longest step of an engine: beyond it the thread counts as hung."""


async def beat(
    metrics: Metrics,
    health: Health,
    heartbeat_age_seconds: Callable[[], float],
    names: Sequence[str] = ("liveness",),
) -> None:
    """Runs until cancelled. `names` are healthy while engine threads beat.

    `heartbeat_age_seconds` is the age of the oldest heartbeat of any of them.
    """
    clock = asyncio.get_running_loop().time
    while True:
        alive = heartbeat_age_seconds() < MAX_HEARTBEAT_AGE_SECONDS
        for name in names:
            health.set(name, alive)
        due = clock() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        metrics.event_loop_lag_seconds.observe(max(0.0, clock() - due))
