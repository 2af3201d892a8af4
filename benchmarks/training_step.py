"""Suite `training-step`: one optimizer update of the trainer beside plain PyTorch.

nanoGPT's CPU recipe: 4 layers, 4 heads, width 128, 12 sequences of 64 tokens, 65 characters.
https://github.com/karpathy/nanoGPT#i-only-have-a-macbook

All start from the same weights and see the same batches, in turns of ten steps, so that whatever
else the machine does falls on all of them. Their losses have to agree step by step.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.cell import Cell, Guard
from benchmarks.plain_pytorch import PlainGPT, PlainLoop
from benchmarks.plan import Options, Plan, single
from nanogpt.config import TrainConfig
from nanogpt.device import device_name, dtype_name, measure_peak, pick_dtype
from nanogpt.flops import training_flops_per_token
from nanogpt.model import GPT
from nanogpt.training.batches import Batches, Stream
from nanogpt.training.optimizer import make_optimizer
from nanogpt.training.step import TrainingStep

CONFIG = TrainConfig(
    n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, dropout=0.0, max_iters=2000
)
VOCAB_SIZE = 65
CELL = "training step, 4/4/128, 12 x 64 tokens"
WARMUP_STEPS, TURNS, STEPS_PER_TURN = 20, 6, 10
LOSS_TOLERANCE = 0.02  # nats; bfloat16 keeps 8 significant bits, one part in 256

Step = Callable[[Tensor, Tensor], float]
"""Takes one step on token ids and targets (A, B, T) and returns the loss."""


def plans(options: Options) -> list[Plan]:
    """One cell, measured for about ten seconds."""
    return [single(CELL, run)]


def run() -> Cell:
    """Measures the one cell."""
    device = torch.device("cpu")
    dtype = pick_dtype(CONFIG.dtype, device)
    torch.manual_seed(CONFIG.seed)
    weights = GPT(CONFIG.model_config(VOCAB_SIZE)).state_dict()
    contenders = {
        "ours": our_step(weights, dtype),
        "our network in a plain float32 loop": our_network(weights),
        "torch.nn.TransformerEncoder in a plain float32 loop": their_network(weights),
    }
    seconds, losses = measure(contenders)
    ours = seconds.pop("ours")
    differences = [
        abs(a - b) for name in seconds for a, b in zip(losses["ours"], losses[name], strict=True)
    ]
    flops = training_flops_per_token(CONFIG.model_config(VOCAB_SIZE)) * CONFIG.tokens_per_step
    peak = measure_peak(device, dtype, bandwidth=False).flops
    return Cell(
        suite="training-step",
        cell=CELL,
        ours=ours,
        peers=seconds,
        bound=None if peak is None else flops / peak,
        guard=Guard(
            "largest difference of a step's loss, in nats", max(differences), LOSS_TOLERANCE
        ),
        device=device_name(device),
        threads=torch.get_num_threads(),
        notes=(f"ours computes in {dtype_name(dtype)}",),
    )


def measure(contenders: dict[str, Step]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Median seconds of a step, and the losses of all steps, of each contender."""
    batches = Batches(
        made_up_text(),
        shape=(1, CONFIG.batch_size, CONFIG.block_size),
        seed=CONFIG.seed,
        stream=Stream.TRAIN,
    )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    first = 0
    for turn in range(TURNS + 1):
        num_steps = STEPS_PER_TURN if turn else WARMUP_STEPS
        for name, step in contenders.items():
            for number in range(first, first + num_steps):
                inputs, targets = batches.at(number)
                begin = time.perf_counter()
                losses[name].append(step(inputs, targets))
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
        first += num_steps
    return {name: median(values) for name, values in seconds.items()}, losses


def our_step(weights: dict[str, Tensor], dtype: torch.dtype) -> Step:
    model = GPT(CONFIG.model_config(VOCAB_SIZE)).train()
    model.load_state_dict(weights)
    step = TrainingStep(
        model, make_optimizer(model, CONFIG), dtype=dtype, grad_clip=CONFIG.grad_clip
    )
    return lambda inputs, targets: step(inputs, targets).loss


def our_network(weights: dict[str, Tensor]) -> Step:
    model = GPT(CONFIG.model_config(VOCAB_SIZE)).train()
    model.load_state_dict(weights)
    loop = PlainLoop(model, lambda inputs, targets: model(inputs, targets)[1], CONFIG)
    return lambda inputs, targets: loop.step(inputs[0], targets[0])


def their_network(weights: dict[str, Tensor]) -> Step:
    model = PlainGPT(CONFIG, VOCAB_SIZE).train()
    model.load_gpt(weights)
    loop = PlainLoop(model, model, CONFIG)
    return lambda inputs, targets: loop.step(inputs[0], targets[0])


def made_up_text() -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    """Tokens of unequal frequency, so that there is something to learn and losses move."""
    frequencies = 1 / np.arange(1, VOCAB_SIZE + 1)
    draws = np.random.default_rng(CONFIG.seed).choice(
        VOCAB_SIZE, size=100_000, p=frequencies / frequencies.sum()
    )
    return draws.astype(np.uint16)
