"""Suite `serving`: what the service costs beside the engine, and what load does to it.

Everything is measured on a server started as an operator starts it, over gRPC on loopback. A cell
here has no peers of other systems: it compares the service with itself, without what is measured.
"""

import asyncio
import functools
import random
import time
from collections.abc import Iterator
from statistics import median

import psutil
import torch

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CHAR, GPT2, TINY, Network, prepare_network
from benchmarks.plan import Options, Plan, single
from benchmarks.server_process import ServerProcess, served
from benchmarks.streams import generate_all, one_stream
from client.async_client import AsyncClient
from client.client import Client
from nanogpt.device import device_name
from protos.nanogpt.v1.inference_pb2 import InferenceBenchmark

SLOTS = 32
QUEUED = 1000
STREAMING_FACTOR = 1.15
QUEUE_FACTOR = 1.05
"""Throughput "does not fall" if it stays within what two runs of the same differ by."""
COLD_START_SECONDS = {CHAR.name: 3.0, GPT2.name: 4.0}
GROWTH_LIMIT_KB = 1.0


def plans(options: Options) -> Iterator[Plan]:
    """One cell each."""
    for network in (CHAR, GPT2):
        title = f"cold start to first token, {network.title}"
        yield single(title, functools.partial(cold_start, title, network, options))
    title = f"step with streams beside without, {CHAR.title} x {SLOTS}"
    yield single(title, functools.partial(streaming, title, options))
    title = f"tokens with {QUEUED:,} waiting beside none, {CHAR.title}"
    yield single(title, functools.partial(queueing, title, options))
    num_requests = 2_000 if options.quick else 50_000
    title = f"memory over {num_requests:,} requests, {TINY.title}"
    yield single(title, functools.partial(memory, title, num_requests))


def cold_start(title: str, network: Network, options: Options) -> Cell:
    """From the start of the process until the first token of a first request."""
    prepare_network(network)
    starts = 1 if options.quick else 3
    seconds = []
    for _ in range(starts):
        with served({network.name: network.folder}, new_machine=True) as server:
            with Client(server.address) as client:
                (prompt,) = prompts(network, 1)
                for delta in client.generate(prompt, model=network.name, max_new_tokens=1):
                    if delta.token_ids:
                        seconds.append(time.monotonic() - server.started_at)
    return cell(
        title,
        ours=median(seconds),
        goal=COLD_START_SECONDS[network.name],
        guard=Guard("starts without a first token", starts - len(seconds), 0),
    )


def streaming(title: str, options: Options) -> Cell:
    """A step of 32 streams read over gRPC, beside the same load that the server gives itself.

    The Benchmark RPC sends requests to the engine as Generate does, and answers with one message.
    """
    prepare_network(CHAR)
    rounds, new_tokens = (1, 32) if options.quick else (5, 128)
    with_streams, without, missing = [], [], 0
    with served({CHAR.name: CHAR.folder}, num_slots=SLOTS) as server:
        with Client(server.address) as client:
            load = InferenceBenchmark(
                model=CHAR.name,
                concurrency=[SLOTS],
                prompt_tokens=CHAR.prompt_tokens,
                completion_tokens=new_tokens,
                requests=SLOTS,
            )
            for number in range(rounds):
                (response,) = client.benchmark_inference(load)
                without.append(SLOTS / response.inference.tokens_per_second)
                seconds, token_ids = timed(server, CHAR, SLOTS, new_tokens, seed=number)
                with_streams.append(seconds / new_tokens)
                missing += SLOTS * new_tokens - sum(map(len, token_ids))
    return cell(
        title,
        ours=median(with_streams),
        peers={"without streams": median(without)},
        goal=STREAMING_FACTOR * median(without),
        guard=Guard("tokens that did not arrive", missing, 0),
    )


def queueing(title: str, options: Options) -> Cell:
    """Seconds a token of requests that all wait at once, beside as many that come one by one."""
    prepare_network(CHAR)
    rounds, new_tokens = (1, 2) if options.quick else (3, 16)
    waiting, alone, missing = [], [], 0
    crowd = QUEUED + SLOTS
    settings = {"num_slots": SLOTS, "max_waiting_requests": QUEUED}
    with served({CHAR.name: CHAR.folder}, **settings) as server:
        timed(server, CHAR, SLOTS, new_tokens, seed="warm-up")
        for number in range(rounds):
            seconds = in_turns(server, CHAR, crowd, new_tokens, seed=(number, "alone"))
            alone.append(seconds / (crowd * new_tokens))
            seconds, token_ids = timed(server, CHAR, crowd, new_tokens, seed=number)
            waiting.append(seconds / (crowd * new_tokens))
            missing += crowd * new_tokens - sum(map(len, token_ids))
    return cell(
        title,
        ours=median(waiting),
        peers={"each sent when another is done": median(alone)},
        goal=QUEUE_FACTOR * median(alone),
        guard=Guard("tokens that did not arrive", missing, 0),
        unit="tokens",
    )


def memory(title: str, num_requests: int) -> Cell:
    """Requests one after another on 32 streams; the guard is what each leaves behind."""
    prepare_network(TINY)
    with served({TINY.name: TINY.folder}, num_slots=SLOTS) as server:
        process = psutil.Process(server.pid)
        warm_up = num_requests // 10
        in_turns(server, TINY, warm_up, 2, seed="warm-up")
        before = process.memory_info().rss
        seconds = in_turns(server, TINY, num_requests - warm_up, 2)
        growth = process.memory_info().rss - before
    counted = num_requests - warm_up
    return cell(
        title,
        ours=seconds / counted,
        guard=Guard(
            "growth of resident memory, in kB a request", growth / 1e3 / counted, GROWTH_LIMIT_KB
        ),
        unit="requests",
        notes=(f"resident memory went from {before / 1e6:.1f} MB by {growth / 1e6:+.1f} MB",),
    )


def timed(
    server: ServerProcess, network: Network, count: int, new_tokens: int, seed: object = 0
) -> tuple[float, list[list[int]]]:
    """Seconds until `count` streams, begun at once, have all their tokens, and the tokens."""
    asked = prompts(network, count, seed)
    start = time.perf_counter()
    token_ids = asyncio.run(generate_all(server.address, network.name, asked, new_tokens))
    return time.perf_counter() - start, token_ids


def in_turns(
    server: ServerProcess, network: Network, num_requests: int, new_tokens: int, seed: object = 0
) -> float:
    """Seconds of that many requests, one after another on as many streams as there are slots."""

    async def send() -> None:
        waiting = iter(prompts(network, num_requests, seed))
        async with AsyncClient(server.address) as client:

            async def take_turns() -> None:
                for prompt in waiting:  # shared by all senders
                    await one_stream(client, network.name, prompt, new_tokens)

            await asyncio.gather(*(take_turns() for _ in range(SLOTS)))

    start = time.perf_counter()
    asyncio.run(send())
    return time.perf_counter() - start


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
