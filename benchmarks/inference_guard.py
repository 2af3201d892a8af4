"""Whether fast inference is right: float32 by its tokens, fewer bits by perplexity on new text.

The reference of both is the float32 network without a cache. Greedy tokens are equal to its own if
each of them is its likeliest one after those before, which a single pass over all tells. With fewer
bits they are held against such a pass of our own runner, whose arithmetic the perplexity is of.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.cell import Guard
from benchmarks.networks import Network, held_out_tokens, prepare_guard
from benchmarks.runners import runner_for
from nanogpt.checkpoint import load_model
from nanogpt.inference.runner import ChunkInput, Runner

PERPLEXITY_LIMITS_PERCENT = {"bfloat16": 0.5, "int8": 1.0, "int4": 5.0}
CHECKED_SEQUENCES = 4
WINDOWS, WINDOWS_AT_A_TIME = 64, 8

Ids = Sequence[Sequence[int]]
Vector = np.ndarray[tuple[int], np.dtype[np.int64]]


def token_guard(network: Network, prompts: Ids, token_ids: Ids) -> Guard:
    """How many of our greedy tokens are not those of the uncached float32 network."""
    return Guard(
        "greedy tokens that differ from the uncached float32 network's",
        num_differing_tokens(network.folder, prompts, token_ids),
        0,
    )


def num_differing_tokens(folder: Path, prompts: Ids, token_ids: Ids) -> int:
    """How many tokens are not the likeliest of the float32 network, in the first sequences."""

    def likeliest(ids: list[int], count: int) -> Vector:
        model = _uncached(folder)
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -count:]
            return model.logits(hidden).argmax(1).numpy()

    return _num_differing(prompts, token_ids, likeliest)


def decode_guard(
    network: Network, precision: str, prompts: Ids, token_ids: Ids, threads: int
) -> Guard:
    """How many of our greedy tokens, of the first sequences, were decoded one by one as a single
    pass over all of them would not have them."""
    runner = runner_for(network.folder, precision, num_slots=1, threads=threads)

    def likeliest(ids: list[int], count: int) -> Vector:
        return runner.forward([ChunkInput(0, 0, ids, num_logits=count)]).argmax(1)

    differing = _num_differing(prompts, token_ids, likeliest)
    return Guard("tokens decoded otherwise than in one pass", differing, 0)


def _num_differing(
    prompts: Ids, token_ids: Ids, likeliest: Callable[[list[int], int], Vector]
) -> int:
    """How many tokens are not the likeliest, in the first sequences. `likeliest` tells which those
    are after each of the last `count` of some ids."""
    checked = list(zip(prompts, token_ids, strict=True))[:CHECKED_SEQUENCES]
    return sum(
        int((likeliest([*prompt, *sampled[:-1]], len(sampled)) != np.array(sampled)).sum())
        for prompt, sampled in checked
    )


@functools.cache
def perplexity_guard(network: Network, precision: str, threads: int) -> Guard:
    """Rise of a trained network's perplexity on held-out text, through our runner, in percent."""
    folder = prepare_guard(network)
    rise = mean_loss(network, folder, precision, threads) - uncached_loss(network, folder)
    return Guard(
        f"rise of the perplexity with {precision} weights, in %",
        100 * (math.exp(rise) - 1),
        PERPLEXITY_LIMITS_PERCENT[precision],
    )


def mean_loss(network: Network, folder: Path, precision: str, threads: int) -> float:
    """Cross-entropy, in nats a token, of our runner over the held-out windows."""
    runner = runner_for(folder, precision, num_slots=WINDOWS_AT_A_TIME, threads=threads)
    windows = _windows(network, runner.block_size)
    losses = [
        _loss_of(runner, windows[first : first + WINDOWS_AT_A_TIME])
        for first in range(0, len(windows), WINDOWS_AT_A_TIME)
    ]
    return float(np.mean(losses))


@functools.cache
def uncached_loss(network: Network, folder: Path) -> float:
    """The same of the float32 network without a cache."""
    model = load_model(folder)
    windows = torch.from_numpy(_windows(network, model.config.block_size))
    with torch.inference_mode():
        losses = [
            model(batch[:, :-1], batch[:, 1:])[1].item()
            for batch in windows.split(WINDOWS_AT_A_TIME)
        ]
    return float(np.mean(losses))


def _loss_of(runner: Runner, windows: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> float:
    """Mean cross-entropy of windows (W, T + 1), each in a slot of its own."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    chunks = [
        ChunkInput(slot, 0, row.tolist(), num_logits=len(row)) for slot, row in enumerate(inputs)
    ]
    logits = torch.from_numpy(runner.forward(chunks))  # (W * T, V)
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets.flatten())).item()


def _windows(
    network: Network, block_size: int
) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """The first windows (WINDOWS, block_size + 1) of the held-out text."""
    tokens = held_out_tokens(network).astype(np.int64)
    count = WINDOWS * (block_size + 1)
    return np.ascontiguousarray(tokens[:count].reshape(WINDOWS, block_size + 1))


@functools.cache
def _uncached(folder: Path) -> torch.nn.Module:
    return load_model(folder)
