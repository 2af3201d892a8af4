"""Suite `serving`, beside training: what a job and four streams take from each other.

Both are measured alone and together, on one server and one pair of cores: first the streams, then
the job, then both. The job is nanoGPT's CPU recipe on the text that ships with Python.
"""

import asyncio
import random
import time
from collections.abc import Collection, Iterator
from statistics import median

import numpy as np

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CHAR, dataset_of, prepare_network
from benchmarks.plan import Options, Plan, Unmeasurable
from benchmarks.server_process import served
from benchmarks.serving_cells import cell
from benchmarks.streams import one_stream
from client.async_client import AsyncClient

STREAMS, STREAM_TOKENS = 4, 64
WARM_UP_STEPS = 10
LATENCY_FACTOR, TRAINING_FACTOR = 2.5, 2.0
LATENCY = f"gap between tokens beside training, p99, {CHAR.title} x {STREAMS}"
TRAINING = f"training step beside {STREAMS} streams, 4/4/128"
JOB = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "block_size": 64,
    "batch_size": 12,
    "dropout": 0.0,
    "max_iters": 1_000_000,  # it is cancelled
    "eval_interval": 1_000_000,
    "eval_iters": 1,
    "log_interval": 1,
    "compile": "off",
}


def plans(options: Options) -> list[Plan]:
    """One plan of both cells: they are two sides of one measurement."""

    def measure(wanted: Collection[str]) -> Iterator[Cell]:
        found = asyncio.run(_measure(5.0 if options.quick else 30.0))
        return (cell for cell in found if cell.cell in wanted)

    return [Plan((LATENCY, TRAINING), measure)]


async def _measure(seconds: float) -> list[Cell]:
    prepare_network(CHAR)
    dataset = dataset_of(CHAR)
    with served({CHAR.name: CHAR.folder}, datasets=[dataset]) as server:
        async with AsyncClient(server.address) as client:
            await _gaps(client, 0.0)  # the first request loads the model
            idle = await _gaps(client, seconds)
            job = await client.train(dataset.name, model="trained", **JOB)
            steps: list[float] = []
            reader = asyncio.create_task(_read_steps(client, job.id, steps))
            try:
                while len(steps) < WARM_UP_STEPS and not reader.done():
                    await asyncio.sleep(0.1)
                steps.clear()
                await asyncio.sleep(seconds)
                alone = list(steps)
                steps.clear()
                busy = await _gaps(client, seconds)
                beside = list(steps)
            finally:
                reader.cancel()
                await client.cancel(job.id)
    if not alone or not beside:
        raise Unmeasurable(f"training took no step within {seconds:g} s")
    return _cells(idle, busy, alone, beside)


async def _gaps(client: AsyncClient, seconds: float) -> list[float]:
    """Seconds between the tokens of streams that follow each other for so long, at least one."""
    end = time.perf_counter() + seconds
    gaps: list[float] = []
    dice = random.Random(1337)

    async def stream() -> None:
        while True:
            prompt = dice.choices(range(CHAR.config.vocab_size), k=CHAR.prompt_tokens)
            gaps.extend((await one_stream(client, CHAR.name, prompt, STREAM_TOKENS)).gaps)
            if time.perf_counter() >= end:
                return

    await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return gaps


async def _read_steps(client: AsyncClient, job_id: str, steps: list[float]) -> None:
    """Collects the duration of every step as it is reported."""
    async for response in client.watch(job_id):
        if response.HasField("step"):
            steps.append(response.step.step_seconds)


def _cells(
    idle: list[float], busy: list[float], alone: list[float], beside: list[float]
) -> list[Cell]:
    quiet, disturbed = (float(np.percentile(gaps, 99)) for gaps in (idle, busy))
    guard = Guard("streams without a gap", sum(not gaps for gaps in (idle, busy)), 0)
    return [
        cell(
            LATENCY,
            ours=disturbed,
            peers={"without training": quiet},
            goal=LATENCY_FACTOR * quiet,
            guard=guard,
            notes=(f"medians: {median(idle) * 1e3:.2f} ms alone, {median(busy) * 1e3:.2f} beside",),
        ),
        cell(
            TRAINING,
            ours=median(beside),
            peers={"without streams": median(alone)},
            goal=TRAINING_FACTOR * median(alone),
            guard=guard,
            notes=(f"{len(alone)} steps alone, {len(beside)} beside, in as much time",),
        ),
    ]
