"""Suite `training`: one optimizer update of the trainer beside plain PyTorch and transformers.

    4/4/128, 12 x 64 tokens    nanoGPT's CPU recipe https://github.com/karpathy/nanoGPT#i-only-have-a-macbook
    6/6/384, 64 x 256 tokens   its character model, 10.65 million weights
    GPT-2 124M, 1 x 1024       with GPT-2's vocabulary

Contenders, see training_works.py, take turns, so that whatever else the machine does falls on all
of them. Their losses have to agree step by step. Memory is that of a process for each contender
that takes two steps: training_memory.py.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import torch

from benchmarks.cell import Cell, Guard
from benchmarks.plan import Options, Plan, single
from benchmarks.training_memory import peak_memory
from benchmarks.training_works import (
    CHARACTERS,
    GPT2,
    PLAIN,
    SMALL,
    Step,
    Work,
    batches_of,
    initial_weights,
    our_step,
    peer,
    peers_of,
    version_of,
)
from nanogpt.device import device_name, dtype_name, measure_peak, pick_dtype
from nanogpt.flops import training_flops_per_token
from nanogpt.training.allocator import keep_freed_memory

LOSS_TOLERANCE = 0.02  # nats; bfloat16 keeps 8 significant bits, one part in 256


def plans(options: Options) -> list[Plan]:
    """About ten seconds for the first cell, two minutes for each of the others."""
    works = [SMALL, CHARACTERS, GPT2]
    return [single(work.cell, partial(run, work, quick=options.quick)) for work in works]


def run(work: Work, quick: bool = False) -> Cell:
    """Measures one cell."""
    config, device = work.config, torch.device("cpu")
    keep_freed_memory()  # as the trainer does; peers in this process profit too
    dtype = pick_dtype(config.dtype, device)
    ours, execution = our_step(work, initial_weights(work), dtype)
    contenders = {"ours": ours, **{name: peer(work, name) for name in peers_of(work)}}
    seconds, losses = measure(work, contenders, turns=1 if quick else work.turns)
    ours_seconds = seconds.pop("ours")
    tokens = config.tokens_per_step
    flops = training_flops_per_token(config.model_config(work.vocab_size)) * tokens
    peak = measure_peak(device, dtype, bandwidth=False).flops
    return Cell(
        suite="training",
        cell=work.cell,
        ours=ours_seconds,
        peers=seconds,
        bound=None if peak is None else flops / peak,
        guards=(loss_guard(losses),),
        device=device_name(device),
        threads=torch.get_num_threads(),
        amount=tokens,
        unit="tokens",
        goal=seconds[PLAIN] / work.factor,
        memory=peak_memory(work, contenders),
        versions={name: version_of(name) for name in seconds},
        notes=(
            f"ours computes in {dtype_name(dtype)}, in {execution.pieces} pieces, with "
            f"{execution.attention} attention",
        ),
    )


def loss_guard(losses: Mapping[str, Sequence[float]]) -> Guard:
    """Whether our losses are those of every peer, step by step. One that is not a number is not."""
    ours = torch.tensor(losses["ours"])
    others = torch.tensor([values for name, values in losses.items() if name != "ours"])
    largest = (others - ours).abs().nan_to_num(nan=math.inf).max().item()
    return Guard("largest difference of a step's loss, in nats", largest, LOSS_TOLERANCE)


def measure(
    work: Work, contenders: dict[str, Step], turns: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Median seconds of a step, and the losses of all steps, of each contender."""
    batches = batches_of(work)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    first = 0
    for turn in range(turns + 1):
        num_steps = work.steps_per_turn if turn else work.warmup_steps
        for name, step in contenders.items():
            for number in range(first, first + num_steps):
                inputs, targets = batches.at(number)
                begin = time.perf_counter()
                losses[name].append(step(inputs, targets))
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
        first += num_steps
    return {name: median(values) for name, values in seconds.items()}, losses
