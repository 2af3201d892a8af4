"""The serving monitor, with a model that is played."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import Unavailable
from server.models.monitor import ServingMonitor
from server.serving.figures import Meter, Percentiles

PERIOD_SECONDS = 0.01


def fake_model() -> Any:
    """All that the monitor looks at of a LoadedModel."""
    return _Model(
        ref=SimpleNamespace(reference="bard@20"),
        weight_version=20,
        memory_bytes=1000,
        engine=SimpleNamespace(meter=Meter()),
    )


class _Model(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


async def test_figures_are_of_the_last_period_and_percentiles_of_the_last_minute() -> None:
    model = fake_model()
    meter: Meter = model.engine.meter
    meter.prompt_tokens = meter.generated_tokens = 1_000_000  # before anybody followed
    monitor = ServingMonitor(lambda: [model], PERIOD_SECONDS)
    stream = monitor.follow()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)  # it has begun to measure
    await asyncio.sleep(0)
    meter.prompt_tokens += 50
    meter.generated_tokens += 100
    meter.looked_up_tokens, meter.cached_tokens = 40, 30
    meter.load = (3, 1, 0.5)
    meter.time_to_first_token.add(0.25, asyncio.get_running_loop().time())
    (figures,) = (await first).models
    assert (figures.reference, figures.weight_version, figures.memory_bytes) == (
        "bard@20",
        20,
        1000,
    )
    assert figures.generation_tokens_per_second == 2 * figures.prompt_tokens_per_second
    assert 0 < figures.prompt_tokens_per_second <= 50 / PERIOD_SECONDS
    assert figures.prefix_cache_hit_ratio == 0.75
    engine = figures.engine
    assert (engine.running, engine.waiting, engine.kv_cache_usage_ratio) == (3, 1, 0.5)
    assert engine.time_to_first_token == Percentiles(0.25, 0.25, 0.25)
    assert engine.inter_token_latency is None
    (idle,) = (await anext(stream)).models
    assert idle.generation_tokens_per_second == 0
    assert idle.prefix_cache_hit_ratio is None
    assert idle.engine.time_to_first_token is not None
    await stream.aclose()


async def test_a_slow_follower_gets_the_newest_and_the_number_of_what_it_missed() -> None:
    monitor = ServingMonitor(lambda: [], PERIOD_SECONDS)
    slow, quick = monitor.follow(), monitor.follow()
    last = (await asyncio.gather(anext(slow), anext(quick)))[0]
    measured = 0
    for _ in range(5):
        measured += 1 + (await anext(quick)).skipped  # a busy machine may make it slow, too
    late = await anext(slow)
    assert late.skipped + 1 >= measured >= 5
    assert late.time > last.time
    await slow.aclose()
    await quick.aclose()


async def test_nothing_is_measured_for_nobody() -> None:
    monitor = ServingMonitor(lambda: [], PERIOD_SECONDS)
    streams = [monitor.follow() for _ in range(3)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    for stream in streams:
        assert monitor._measuring is not None
        await stream.aclose()
    assert monitor._measuring is None
    again = monitor.follow()
    assert (await anext(again)).skipped == 0
    await again.aclose()


async def test_a_stopping_server_sends_followers_away() -> None:
    monitor = ServingMonitor(lambda: [], 600)
    waiting = asyncio.ensure_future(anext(monitor.follow()))
    await asyncio.sleep(0)
    monitor.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await anext(monitor.follow())
