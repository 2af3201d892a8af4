"""The forward pass of a run's steps: with the attention that was measured to be fast, compiled if
that is asked for, without all logits at once if there are many, and shared by all processes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanogpt.ensemble import Network
from nanogpt.model import GPT
from nanogpt.training.compile import compiled_forward
from nanogpt.training.cross_entropy import LARGE_VOCABULARY, chunked_forward
from nanogpt.training.execution import Execution, use_attention
from nanogpt.training.world import Forward, World


def make_forward(
    model: Network,
    execution: Execution,
    batch: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype,
    compile: str = "off",
    log: Callable[[str], None] = print,
    world: World | None = None,
) -> Forward:
    """What a TrainingStep of so many pieces calls, on the model or on a compiled form of it.

    `batch` is any step's inputs and targets, (A, B, T) each. The model keeps the attention.
    """
    world = world or World()
    use_attention(model, execution)
    inputs, targets = (x[0].tensor_split(execution.pieces)[0].to(model.device) for x in batch)
    forward = compiled_forward(model, compile, dtype=dtype, example=(inputs, targets), log=log)
    is_large = model.config.vocab_size >= LARGE_VOCABULARY
    if forward is model and isinstance(model, GPT) and is_large and world.size == 1:
        forward = chunked_forward(model)
    return world.synchronize(model, forward, (inputs, targets), dtype)
