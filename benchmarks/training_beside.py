"""Suite `serving`, beside training: what a job and four streams take from each other.

Both are measured alone and together, on one server and one pair of cores: first the streams, then
the job, then both. The job is nanoGPT's CPU recipe on the text that ships with Python.
"""

import threading
import time
from collections.abc import Collection, Iterator
from statistics import median

import numpy as np

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CHAR, CPU_SHAPE, dataset_of, prepare_network
from benchmarks.plan import Options, Plan, Unmeasurable
from benchmarks.serving_cells import cell, load_on, prompts
from benchmarks.streams import LoadGenerator
from client.client import Client

STREAMS, STREAM_TOKENS = 4, 64
WARM_UP_STEPS = 10
LATENCY_FACTOR, TRAINING_FACTOR = 2.5, 2.0
LATENCY = f"gap between tokens beside training, p99, {CHAR.title} x {STREAMS}"
TRAINING = f"training step beside {STREAMS} streams, 4/4/128"
JOB = {
    **CPU_SHAPE,
    "max_iters": 1_000_000,  # it is cancelled
    "eval_interval": 1_000_000,
    "eval_iters": 1,
    "log_interval": 1,
    "compile": "off",
}


def plans(options: Options) -> list[Plan]:
    """One plan of both cells: they are two sides of one measurement."""

    def measure(wanted: Collection[str]) -> Iterator[Cell]:
        found = _measure(5.0 if options.quick else 30.0)
        return (cell for cell in found if cell.cell in wanted)

    return [Plan((LATENCY, TRAINING), measure)]


def _measure(seconds: float) -> list[Cell]:
    prepare_network(CHAR)
    dataset = dataset_of(CHAR)
    with (
        load_on(CHAR, STREAMS, datasets=[dataset]) as (server, load),
        Client(server.address) as client,
    ):
        idle = _gaps(load, seconds)
        job = client.train(dataset.name, model="trained", **JOB)
        steps: list[float] = []
        reader = threading.Thread(target=_read_steps, args=(server.address, job.id, steps))
        reader.start()
        try:
            while len(steps) < WARM_UP_STEPS and reader.is_alive():
                time.sleep(0.1)
            steps.clear()
            time.sleep(seconds)
            alone = list(steps)
            steps.clear()
            busy = _gaps(load, seconds)
            beside = list(steps)
        finally:
            client.cancel(job.id)  # which ends the reader too
            reader.join()
    if not alone or not beside:
        raise Unmeasurable(f"training took no step within {seconds:g} s")
    return _cells(idle, busy, alone, beside)


def _gaps(load: LoadGenerator, seconds: float) -> list[float]:
    """Seconds between the tokens of streams that follow each other for so long, at least once."""
    end = time.perf_counter() + seconds
    gaps: list[float] = []
    number = 0
    while not gaps or time.perf_counter() < end:
        _, streams = load.at_once(prompts(CHAR, STREAMS, number), STREAM_TOKENS)
        gaps += [gap for stream in streams for gap in stream.gaps]
        number += 1
    return gaps


def _read_steps(address: str, job_id: str, steps: list[float]) -> None:
    """Collects the duration of every step as it is reported, until the job ends."""
    with Client(address) as client:
        for response in client.watch(job_id):
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
