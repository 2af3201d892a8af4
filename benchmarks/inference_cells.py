"""Suite `inference`: tokens a second beside every peer, and how soon a long prompt is answered.

All systems run the same weights, from our exports, on the same prompts, greedy, as many new tokens
each; the clock runs from the prompts' arrival until the last token, prefill included. Each system
in each precision is a process of its own, and they take turns. One that is much slower than
another peer of the same or higher precision is measured once only: it cannot be the best. Nor do
the slowest stay where memory gets short.
"""

import functools
import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch

from benchmarks import inference_guard
from benchmarks.cell import Cell, Guard
from benchmarks.contender import ContenderFailed, ContenderProcess, Entry, take_turns
from benchmarks.inference_peers import (
    PEERS,
    PRECISIONS,
    Contender,
    at_least,
    ours,
    ours_over_grpc,
)
from benchmarks.networks import CHAR, GPT2, Network, prepare_network
from benchmarks.plan import Options, Plan
from nanogpt.device import device_name, measure_peak
from nanogpt.flops import decode_bytes_per_step, request_flops

HOPELESS_FACTOR = 1.5
FREE_BYTES = 3_000_000_000
"""Memory that is left for the next contender."""
WARM_UP_TOKENS = 4
ROUNDS_SECONDS = 60.0
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
KV_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2, "int4": 2}
LARGEST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True, slots=True)
class Load:
    """What all systems are asked to do."""

    title: str
    network: Network
    concurrency: int
    prompt_tokens: int
    new_tokens: int
    least_rounds: int
    most_rounds: int

    @property
    def max_tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens

    def cell(self, precision: str) -> str:
        return f"{self.title}, {precision}"

    def prompts(self, number: int) -> list[list[int]]:
        """The prompts of a round: others in each, so that no prefix cache knows them."""
        dice = random.Random(1337 + number)
        tokens = range(self.network.config.vocab_size)
        return [dice.choices(tokens, k=self.prompt_tokens) for _ in range(self.concurrency)]

    def rounds(self) -> Iterator[list[list[int]]]:
        """The prompts of all rounds after the first: as many as there is time for. A machine that
        others share is fast and slow by turns, and a few short rounds may all see one of both."""
        start = time.monotonic()
        for number in range(2, self.most_rounds + 1):
            if number > self.least_rounds and time.monotonic() - start > ROUNDS_SECONDS:
                return
            yield self.prompts(number)


def plans(options: Options) -> Iterator[Plan]:
    """A plan for each network and concurrency, of a cell for each precision."""
    for load in loads(options):
        cells = tuple(load.cell(precision) for precision in PRECISIONS)
        yield Plan(cells, functools.partial(measure, load))


def loads(options: Options) -> Iterator[Load]:
    """Quick ones first."""
    new_tokens, rounds = (16, (1, 1)) if options.quick else (128, (3, 9))
    yield Load(f"{GPT2.title}, first token after 512", GPT2, 1, 512, 1, *rounds)
    for network in (CHAR, GPT2):
        for concurrency in (1, 8, 32):
            title = f"{network.title} x {concurrency}"
            yield Load(title, network, concurrency, network.prompt_tokens, new_tokens, *rounds)


def measure(load: Load, wanted: Collection[str]) -> Iterator[Cell]:
    """Measures the wanted cells of a load in one run."""
    precisions = [precision for precision in PRECISIONS if load.cell(precision) in wanted]
    prepare_network(load.network)
    rivals = [peer for peer in PEERS if peer.precision in at_least(precisions[-1])]
    contenders = [
        *rivals,
        *(ours(precision) for precision in precisions),
        *(ours_over_grpc(precision) for precision in precisions),
    ]
    threads = torch.get_num_threads()
    entries: dict[tuple[str, str], Entry] = {}
    missing: dict[str, str] = {}
    bandwidths = [memory_bandwidth()]
    try:
        for contender in contenders:
            try:
                entries[contender.name, contender.precision] = enter(load, contender, threads)
            except ContenderFailed as error:
                missing[_label(contender)] = str(error)
                print(f"  {_label(contender)}: {error}", flush=True)
            for entry in entries.values():
                if not entry.is_out and is_hopeless(entry, entries.values()):
                    entry.leave()  # which frees its memory
            while is_memory_short() and (last := farthest_behind(entries.values())):
                print(f"  {last.name} leaves: memory is short", flush=True)
                last.leave()
        rounds = _each_with_a_bandwidth(load.rounds(), bandwidths)
        missing |= take_turns(entries.values(), rounds, load.new_tokens)
    finally:
        for entry in entries.values():
            if not entry.is_out:
                entry.leave()
    # what a peer did before it failed counts for it; ours has to come to its end
    done = {k: entry for k, entry in entries.items() if entry.is_rival or entry.name not in missing}
    for precision in precisions:
        yield from cell_of(load, precision, done, missing, median(bandwidths), threads)
    if failed := [f"{name}: {why}" for name, why in missing.items() if name.startswith("ours")]:
        raise RuntimeError("; ".join(failed))


def enter(load: Load, contender: Contender, threads: int) -> Entry:
    """Loads a contender, warms it up and measures it once. Raises ContenderFailed."""
    if not contender.is_installed:
        raise ContenderFailed("not installed")
    name = _label(contender)
    process = ContenderProcess(name, contender.command, threads)
    entry = Entry(name, contender.precision, process, is_rival=contender in PEERS)
    try:
        process.load(
            load.network.exports,
            contender.variant,
            concurrency=load.concurrency,
            max_tokens=load.max_tokens,
            threads=threads,
        )
        process.generate(load.prompts(0), min(WARM_UP_TOKENS, load.new_tokens))
        entry.take_turn(load.prompts(1), load.new_tokens)
    except BaseException:
        entry.leave()
        raise
    return entry


def is_memory_short() -> bool:
    """Whether another contender may not fit: then the kernel would end one, or the harness."""
    return psutil.virtual_memory().available < FREE_BYTES


def times_behind(entry: Entry, entries: Collection[Entry]) -> float:
    """How many times as long a peer takes as the best one that counts wherever it does; 1 is the
    best."""
    best = min(
        other.median_seconds
        for other in entries
        if other.is_rival and other.precision in at_least(entry.precision)
    )
    return entry.median_seconds / best


def is_hopeless(entry: Entry, entries: Collection[Entry]) -> bool:
    """Whether a peer is so much slower than another one that it cannot be the best."""
    return entry.is_rival and times_behind(entry, entries) > HOPELESS_FACTOR


def farthest_behind(entries: Collection[Entry]) -> Entry | None:
    """The slowest of the peers that are left; None if all of them are the best."""
    left = [entry for entry in entries if entry.is_rival and not entry.is_out]
    last = max(left, key=lambda entry: times_behind(entry, entries), default=None)
    return None if last is None or times_behind(last, entries) <= 1 else last


def cell_of(
    load: Load,
    precision: str,
    done: dict[tuple[str, str], Entry],
    missing: dict[str, str],
    bandwidth: float,
    threads: int,
) -> Iterator[Cell]:
    """The cell of one precision, none if ours failed."""
    mine = done.get(("ours", precision))
    if mine is None:
        return
    over_grpc = done.get(("ours over gRPC", precision))
    rivals = [e for e in done.values() if e.is_rival and e.precision in at_least(precision)]
    names = {_label(peer) for peer in PEERS if peer.precision in at_least(precision)}
    names |= {f"ours over gRPC {precision}"}
    device = torch.device("cpu")
    peak_flops = peak_flops_of(precision)
    step_bytes = bytes_per_step(load, precision)
    memory = load.new_tokens * step_bytes / bandwidth
    arithmetic = flops_of(load) / peak_flops
    measured = {"ours": mine, **({"ours over gRPC": over_grpc} if over_grpc else {})}
    measured |= {entry.name: entry for entry in rivals}
    yield Cell(
        suite="inference",
        cell=load.cell(precision),
        ours=mine.median_seconds,
        peers={entry.name: entry.median_seconds for entry in rivals},
        bound=memory if load.new_tokens > 1 else arithmetic,
        bound_applies=load.new_tokens == 1 or step_bytes > cache_bytes(),
        guards=tuple(guards_of(load, precision, mine, over_grpc, threads)),
        device=device_name(device),
        threads=threads,
        amount=load.concurrency * load.new_tokens,
        unit="tokens" if load.new_tokens > 1 else "",
        over_grpc=over_grpc.median_seconds if over_grpc else None,
        missing={name: why for name, why in missing.items() if name in names},
        turns={name: entry.seconds for name, entry in measured.items()},
        versions={entry.name: entry.process.version for entry in rivals},
        notes=(
            f"a step reads {step_bytes / 1e6:,.0f} MB; memory was measured at "
            f"{bandwidth / 1e9:,.1f} GB/s, the largest cache holds "
            f"{cache_bytes() / 1e6:,.0f} MB",
            f"its arithmetic takes {arithmetic * 1e3:,.1f} ms at the {peak_flops / 1e9:,.0f} "
            f"GFLOP/s that torch was measured at, its memory reads {memory * 1e3:,.1f} ms",
            *agreement(load, rivals),
        ),
    )


def guards_of(
    load: Load, precision: str, mine: Entry, over_grpc: Entry | None, threads: int
) -> Iterator[Guard]:
    """What is checked of the tokens of the first turn, and of the arithmetic that made them."""
    prompts = load.prompts(1)
    if precision == "float32":
        yield inference_guard.token_guard(load.network, prompts, mine.token_ids)
    else:
        yield inference_guard.perplexity_guard(load.network, precision, threads)
        yield inference_guard.decode_guard(
            load.network, precision, prompts, mine.token_ids, threads
        )
    if over_grpc is not None:
        pairs = zip(mine.token_ids, over_grpc.token_ids, strict=True)
        differing = sum(ours != theirs for ours, theirs in pairs)
        yield Guard("answers over gRPC that differ from those in process", differing, 0)


def agreement(load: Load, rivals: Sequence[Entry]) -> Iterator[str]:
    """How many tokens of each float32 peer are those of our network: evidence that it runs it.

    llama.cpp computes another GELU, see nanogpt/interop/gguf.py.
    """
    for entry in rivals:
        if entry.precision == "float32":
            checked = min(load.concurrency, inference_guard.CHECKED_SEQUENCES) * load.new_tokens
            differing = inference_guard.num_differing_tokens(
                load.network.folder, load.prompts(1), entry.token_ids
            )
            yield f"{entry.name}: {checked - differing} of {checked} tokens are our network's"


def bytes_per_step(load: Load, precision: str) -> float:
    """Bytes to read for one new token of every sequence: weights, keys and values.

    Scales of integer weights come on top and are not counted: no system needs the same.
    """
    return decode_bytes_per_step(
        load.network.config,
        bytes_per_weight=BITS[precision] / 8,
        bytes_per_kv_value=KV_BYTES[precision],
        batch=load.concurrency,
        context_tokens=load.prompt_tokens + load.new_tokens // 2,
    )


def flops_of(load: Load) -> float:
    """Operations of the whole load."""
    each = request_flops(load.network.config, load.prompt_tokens, load.new_tokens)
    return load.concurrency * each


@functools.cache
def peak_flops_of(precision: str) -> float:
    """The processor's measured peak: in float32 for float32, else in the faster type."""
    dtypes = [torch.float32] if precision == "float32" else [torch.float32, torch.bfloat16]
    device = torch.device("cpu")
    return max(measure_peak(device, dtype, bandwidth=False).flops or 0.0 for dtype in dtypes)


def memory_bandwidth() -> float:
    """Bytes a second that the processor reads now: a shared machine's change by the minute."""
    return measure_peak(torch.device("cpu"), torch.float32).bytes_per_second or 0.0


def _each_with_a_bandwidth(
    rounds: Iterable[list[list[int]]], bandwidths: list[float]
) -> Iterator[list[list[int]]]:
    """The rounds; before each the memory has a turn: the bound is of the same minutes."""
    for prompts in rounds:
        bandwidths.append(memory_bandwidth())
        yield prompts


@functools.cache
def cache_bytes() -> int:
    """Size of the processor's largest cache, 0 if unknown."""
    if not LARGEST_CACHE.exists():
        return 0
    return int(LARGEST_CACHE.read_text().strip().removesuffix("K")) * 1024


def _label(contender: Contender) -> str:
    ours = contender.name.startswith("ours")
    return f"{contender.name} {contender.precision}" if ours else contender.name
