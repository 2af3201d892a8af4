"""Suite `serving`, beside training: what a job and four streams take from each other.

Both are measured alone and together, on one server and one pair of cores: first the streams, then a
job, then both, three times. The job is nanoGPT's CPU recipe on the text that ships with Python.
"""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CHAR, CPU_SHAPE, dataset_of, prepare_network
from benchmarks.plan import Options, Plan
from benchmarks.server_process import ServerProcess
from benchmarks.serving_cells import cell, load_on, num_missing, prompts
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
        found = _measure(1, 5.0) if options.quick else _measure(3, 10.0)
        return (cell for cell in found if cell.cell in wanted)

    return [Plan((LATENCY, TRAINING), measure)]


@dataclass(slots=True)
class Measured:
    """What all rounds gave: gaps between tokens and durations of steps, in seconds."""

    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    num_missing: int = 0
    """Tokens that did not arrive."""


def _measure(rounds: int, seconds: float) -> list[Cell]:
    prepare_network(CHAR)
    dataset = dataset_of(CHAR)
    measured = Measured()
    with (
        load_on(CHAR, STREAMS, datasets=[dataset]) as (server, load),
        Client(server.address) as client,
    ):
        for number in range(rounds):
            measured.idle += _gaps(load, seconds, (number, "idle"), measured)
            with _steps(server, client, dataset.name) as steps:
                time.sleep(seconds)
                measured.alone += steps
                steps.clear()
                measured.busy += _gaps(load, seconds, (number, "busy"), measured)
                measured.beside += steps
    if not measured.alone or not measured.beside:
        raise RuntimeError(f"training took no step within {seconds:g} s")
    return _cells(measured)


def _gaps(load: LoadGenerator, seconds: float, seed: object, measured: Measured) -> list[float]:
    """Seconds between the tokens of streams that follow each other for so long, at least once."""
    end = time.perf_counter() + seconds
    gaps: list[float] = []
    number = 0
    while not gaps or time.perf_counter() < end:
        _, streams = load.at_once(prompts(CHAR, STREAMS, (seed, number)), STREAM_TOKENS)
        gaps += [gap for stream in streams for gap in stream.gaps]
        measured.num_missing += num_missing(streams, STREAMS * STREAM_TOKENS)
        number += 1
    return gaps


@contextmanager
def _steps(server: ServerProcess, client: Client, dataset: str) -> Iterator[list[float]]:
    """The durations of a job's steps, which become more meanwhile; none of its warm-up."""
    steps: list[float] = []
    job = client.train(dataset, model="trained", **JOB)
    reader = threading.Thread(target=_read_steps, args=(server.address, job.id, steps))
    reader.start()
    try:
        while len(steps) < WARM_UP_STEPS and reader.is_alive():
            time.sleep(0.1)
        steps.clear()
        yield steps
    finally:
        client.cancel(job.id)  # which ends the reader too
        reader.join()


def _read_steps(address: str, job_id: str, steps: list[float]) -> None:
    """Collects the duration of every step as it is reported, until the job ends."""
    with Client(address) as client:
        for response in client.watch(job_id):
            if response.HasField("step"):
                steps.append(response.step.step_seconds)


def _cells(measured: Measured) -> list[Cell]:
    quiet, disturbed = (float(np.percentile(gaps, 99)) for gaps in (measured.idle, measured.busy))
    alone, beside = median(measured.alone), median(measured.beside)
    medians = (
        f"{median(measured.idle) * 1e3:.2f} ms alone, {median(measured.busy) * 1e3:.2f} beside"
    )
    guards = (Guard("tokens that did not arrive", measured.num_missing, 0),)
    return [
        cell(
            LATENCY,
            ours=disturbed,
            peers={"without training": quiet},
            goal=LATENCY_FACTOR * quiet,
            guards=guards,
            notes=(f"medians: {medians}",),
        ),
        cell(
            TRAINING,
            ours=beside,
            peers={"without streams": alone},
            goal=TRAINING_FACTOR * alone,
            guards=guards,
            notes=(f"{len(measured.alone)} steps alone, {len(measured.beside)} beside",),
        ),
    ]
