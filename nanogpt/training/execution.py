"""How a run computes its steps on a processor: in which pieces, and with which attention.

The results are the same up to rounding, the speed is not: activations of a whole micro-batch leave
the cache, those of a few sequences stay, and torch's fused attention is faster for some shapes and
slower for others. What is faster is measured on one block, for at most a few seconds, and never
guessed from a processor's name. The choice is written to the run directory, because rounding has to
be the same when the run goes on.

Shapes: B = sequences of a micro-batch, T = tokens, C = width, H = heads, D = head size.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt import durable, flops
from nanogpt.dropout import dropout
from nanogpt.ensemble import Network
from nanogpt.model import GPT, Attend
from nanogpt.training.step import autocast

WORTHWHILE_FLOPS = 2e9
"""Smaller micro-batches take less time than measuring saves."""

MIN_PIECE_TOKENS = 1024
BUDGET_SECONDS = 3.0
LEAST_REPEATS = 3
REPEAT_SECONDS = 0.1
"""Spent on what takes a few milliseconds: the least of three is chance."""

WORTHWHILE_GAIN = 1.05
WORTHWHILE_PIECE_GAIN = 1.02
"""Fewer pieces save more than one block shows: each passes over embeddings and head."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Parts that a micro-batch is cut into, each of so many sequences, and the attention."""

    pieces: int = 1
    attention: str = "fused"
    """`fused` is torch's scaled_dot_product_attention, `matmul` the formula as it stands."""


def recorded_execution(path: Path, choose: Callable[[], Execution]) -> Execution:
    """The run's choice: read from its file, or made now and written there. Raises OSError."""
    try:
        return Execution(**json.loads(path.read_bytes()))
    except (FileNotFoundError, TypeError, ValueError):
        chosen = choose()
        durable.write_file(path, (json.dumps(asdict(chosen)) + "\n").encode())
        return chosen


def choose_execution(model: Network, batch_size: int, dtype: torch.dtype) -> Execution:
    """What is fastest for micro-batches of (batch_size, block_size) tokens.

    Neither weights nor random numbers are changed. Only a processor is measured: an accelerator
    wants all work at once.
    """
    T = model.config.block_size
    work = flops.training_flops_per_token(model.config) * batch_size * T
    if model.device.type != "cpu" or work < WORTHWHILE_FLOPS:
        return Execution()
    member = model.members[0]
    attentions: dict[str, Attend | None] = {"fused": None, "matmul": MatmulAttention(member)}
    sizes = [
        size
        for size in range(1, batch_size + 1)
        if batch_size % size == 0 and (size * T >= MIN_PIECE_TOKENS or size == batch_size)
    ]
    best, best_seconds, began = Execution(), math.inf, time.perf_counter()
    with torch.random.fork_rng([]):
        for size in sizes:
            if time.perf_counter() - began > BUDGET_SECONDS:
                break
            found = {
                name: _block_seconds(member, attend, size, dtype) / size
                for name, attend in attentions.items()
            }
            # the formula as it stands keeps T x T weights for the backward pass
            saves = found["matmul"] * WORTHWHILE_GAIN < found["fused"]
            name = "matmul" if saves else "fused"
            if found[name] * WORTHWHILE_PIECE_GAIN < best_seconds:
                best, best_seconds = Execution(batch_size // size, name), found[name]
    model.zero_grad(set_to_none=True)
    return best


def use_attention(model: Network, execution: Execution) -> None:
    """Gives the model the attention that was chosen."""
    for member in model.members:
        member.attend = MatmulAttention(member) if execution.attention == "matmul" else None


def _block_seconds(model: GPT, attend: Attend | None, size: int, dtype: torch.dtype) -> float:
    """Processor time of one block's forward and backward pass on `size` sequences."""
    block, config = model.transformer.h[0], model.config
    angles = model.transformer.rotation(torch.arange(config.block_size))
    x = torch.randn(size, config.block_size, config.n_embd, requires_grad=True)
    durations: list[float] = []
    while len(durations) < LEAST_REPEATS or sum(durations) < REPEAT_SECONDS:
        began = time.process_time()  # other processes count less than in time that passes
        with autocast(model.device, dtype):
            y = block(x, attend, angles)
        y.sum().backward()
        durations.append(time.process_time() - began)
        if durations[-1] > BUDGET_SECONDS / 6:
            break
    return min(durations)


class MatmulAttention:
    """Causal attention by two products and a softmax, as an `attend` function of a model.

    https://arxiv.org/abs/1706.03762, equation 1
    """

    def __init__(self, model: GPT) -> None:
        T = model.config.block_size
        self._model = model
        self._mask = torch.full((T, T), -math.inf, device=model.device).triu(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D) from q, k, v of that shape."""
        B, H, T, D = q.shape
        q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
        mask = self._mask[:T, :T].to(q.dtype)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(D))  # (B·H, T, T)
        weights = F.softmax(scores, dim=-1)
        weights = dropout(weights, self._model.config.dropout, self._model.training)
        return torch.bmm(weights.to(v.dtype), v).view(B, H, T, D)
