"""Suite `serving`: what the service costs beside the engine, and what load does to it.

Everything is measured on a server started as an operator starts it, over gRPC on loopback. A cell
here has no peers of other systems: it compares the service with itself, without what is measured.
"""

import functools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import psutil
import torch

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CHAR, GPT2, TINY, Network, prepare_network
from benchmarks.plan import Options, Plan, single
from benchmarks.server_process import ServerProcess, served
from benchmarks.streams import LoadGenerator, Stream
from client.client import Client
from nanogpt.device import device_name
from protos.nanogpt.v1.inference_pb2 import InferenceBenchmark

SLOTS = 32
QUEUED = 1000
STREAMING_FACTOR = 1.15
QUEUE_FACTOR = 1.05
"""Throughput "does not fall" if it stays within what two runs of the same differ by."""
COLD_START_SECONDS = {CHAR.name: 3.0, GPT2.name: 4.0}
WARM_START_SECONDS = 5.0
GROWTH_LIMIT_KB = 1.0


def plans(options: Options) -> Iterator[Plan]:
    """One cell each."""
    for network in (CHAR, GPT2):
        title = f"cold start to first token, {network.title}"
        yield single(title, functools.partial(cold_start, title, network, options))
        title = f"start to first token of native kernels made before, {network.title}"
        yield single(title, functools.partial(warm_start, title, network, options))
    title = f"step with streams beside without, {CHAR.title} x {SLOTS}"
    yield single(title, functools.partial(streaming, title, options))
    title = f"tokens with {QUEUED:,} waiting beside none, {CHAR.title}"
    yield single(title, functools.partial(queueing, title, options))
    num_requests = 2_000 if options.quick else 50_000
    title = f"memory over {num_requests:,} requests, {TINY.title}"
    yield single(title, functools.partial(memory, title, num_requests))


def cold_start(title: str, network: Network, options: Options) -> Cell:
    """From the start of the process on a new machine until the first token of a first request."""
    return start(title, network, options, COLD_START_SECONDS[network.name], new_machine=True)


def warm_start(title: str, network: Network, options: Options) -> Cell:
    """The same where kernels are on disk: this server serves nothing before they are active."""
    with served({}):  # compiles them if they are not
        pass
    return start(title, network, options, WARM_START_SECONDS, new_machine=False)


def start(
    title: str, network: Network, options: Options, goal: float, *, new_machine: bool
) -> Cell:
    """Seconds from the start of a process until a first token, over gRPC."""
    prepare_network(network)
    starts = 1 if options.quick else 3
    seconds = []
    for _ in range(starts):
        with served({network.name: network.folder}, new_machine=new_machine) as server:
            with Client(server.address) as client:
                (prompt,) = prompts(network, 1)
                for delta in client.generate(prompt, model=network.name, max_new_tokens=1):
                    if delta.token_ids:
                        seconds.append(time.monotonic() - server.started_at)
    return cell(
        title,
        ours=median(seconds),
        goal=goal,
        guards=(Guard("starts without a first token", starts - len(seconds), 0),),
    )


def streaming(title: str, options: Options) -> Cell:
    """A step of 32 streams read over gRPC, beside the same load that the server gives itself.

    The Benchmark RPC sends requests to the engine as Generate does, and answers with one message.
    """
    prepare_network(CHAR)
    rounds, new_tokens = (1, 32) if options.quick else (5, 128)
    asked = InferenceBenchmark(
        model=CHAR.name,
        concurrency=[SLOTS],
        prompt_tokens=CHAR.prompt_tokens,
        completion_tokens=new_tokens,
        requests=SLOTS,
    )
    with_streams, without, missing = [], [], 0
    with load_on(CHAR, SLOTS) as (server, load), Client(server.address) as client:
        for number in range(rounds):
            (response,) = client.benchmark_inference(asked)
            without.append(SLOTS / response.inference.tokens_per_second)
            seconds, streams = load.at_once(prompts(CHAR, SLOTS, number), new_tokens)
            with_streams.append(seconds / new_tokens)
            missing += num_missing(streams, SLOTS * new_tokens)
    return cell(
        title,
        ours=median(with_streams),
        peers={"without streams": median(without)},
        goal=STREAMING_FACTOR * median(without),
        guards=(Guard("tokens that did not arrive", missing, 0),),
    )


def queueing(title: str, options: Options) -> Cell:
    """Seconds a token of requests that all wait at once, beside as many that come one by one."""
    prepare_network(CHAR)
    rounds, new_tokens = (1, 2) if options.quick else (3, 16)
    waiting, alone, missing = [], [], 0
    crowd = QUEUED + SLOTS
    with load_on(CHAR, crowd, max_waiting_requests=QUEUED) as (_, load):
        for number in range(rounds):
            seconds, _ = load.in_turns(prompts(CHAR, crowd, (number, 0)), new_tokens, SLOTS)
            alone.append(seconds / (crowd * new_tokens))
            seconds, streams = load.at_once(prompts(CHAR, crowd, (number, 1)), new_tokens)
            waiting.append(seconds / (crowd * new_tokens))
            missing += num_missing(streams, crowd * new_tokens)
    return cell(
        title,
        ours=median(waiting),
        peers={"each sent when another is done": median(alone)},
        goal=QUEUE_FACTOR * median(alone),
        guards=(Guard("tokens that did not arrive", missing, 0),),
        unit="tokens",
    )


def memory(title: str, num_requests: int) -> Cell:
    """Requests one after another on 32 streams; the guard is what each leaves behind."""
    prepare_network(TINY)
    warm_up = num_requests // 10
    counted = num_requests - warm_up
    with load_on(TINY, SLOTS) as (server, load):
        process = psutil.Process(server.pid)
        load.in_turns(prompts(TINY, warm_up, "warm-up"), 2, SLOTS)
        before = process.memory_info().rss
        seconds, _ = load.in_turns(prompts(TINY, counted), 2, SLOTS)
        growth = process.memory_info().rss - before
    return cell(
        title,
        ours=seconds / counted,
        guards=(
            Guard(
                "growth of resident memory, in kB a request",
                growth / 1e3 / counted,
                GROWTH_LIMIT_KB,
            ),
        ),
        unit="requests",
        notes=(f"resident memory went from {before / 1e6:.1f} MB by {growth / 1e6:+.1f} MB",),
    )


@contextmanager
def load_on(
    network: Network, max_streams: int, **settings: object
) -> Iterator[tuple[ServerProcess, LoadGenerator]]:
    """A server of one model, and what sends it load."""
    with served({network.name: network.folder}, num_slots=SLOTS, **settings) as server:
        load = LoadGenerator(server.address, network.name, max_streams)
        try:
            yield server, load
        finally:
            load.close()


def num_missing(streams: Sequence[Stream], expected: int) -> int:
    """How many of the expected tokens did not come."""
    return expected - sum(len(stream.token_ids) for stream in streams)


def prompts(network: Network, count: int, seed: object = 0) -> list[list[int]]:
    """Random prompts, others for another seed: no cache of the server knows them."""
    dice = random.Random(f"{network.name} {seed}")
    tokens = range(network.config.vocab_size)
    return [dice.choices(tokens, k=network.prompt_tokens) for _ in range(count)]


def cell(title: str, **values: object) -> Cell:
    """A cell of this suite on this machine."""
    return Cell(
        suite="serving",
        cell=title,
        device=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        **{"peers": {}, "bound": None, **values},
    )
