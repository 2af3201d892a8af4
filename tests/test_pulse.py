"""The pulse: how late the loop is, and whether engine threads hang."""

import asyncio
import time

from server import pulse
from server.health import Health
from server.metrics import Metrics


async def until(health: Health, alive: bool) -> None:
    async with asyncio.timeout(10):
        while health.serving("liveness") is not alive:
            await health.changed()


async def test_a_hung_engine_thread_ends_liveness(monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.001)
    health, age = Health([]), 0.0
    beating = asyncio.create_task(pulse.beat(Metrics(), health, lambda: age))
    await until(health, True)
    age = pulse.MAX_HEARTBEAT_AGE_SECONDS
    await until(health, False)
    beating.cancel()


async def test_a_blocked_loop_shows_in_the_lag(monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.001)
    metrics = Metrics()

    def observed(suffix: str) -> float:
        return metrics.registry.get_sample_value(f"nanogpt_event_loop_lag_seconds_{suffix}")

    beating = asyncio.create_task(pulse.beat(metrics, Health([]), lambda: 0.0))
    await asyncio.sleep(0)
    time.sleep(0.05)  # what nobody may do on the loop
    while not observed("count"):
        await asyncio.sleep(0)
    assert 0.04 < observed("sum") < 5
    beating.cancel()
