"""Compiling the model, or not: a run never fails because a compiler does.

https://docs.pytorch.org/docs/stable/torch.compiler.html
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanogpt.ensemble import Network
from nanogpt.training.step import autocast
from nanogpt.training.world import Forward


def is_compiled(mode: str, device: torch.device) -> bool:
    """Whether a run on this device is to be compiled: `on`, or `auto` and the device is CUDA."""
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def compiled_forward(
    model: Network,
    mode: str,
    *,
    dtype: torch.dtype,
    example: tuple[Tensor, Tensor],
    log: Callable[[str], None],
) -> Forward:
    """The model's forward pass, compiled if `mode` says so.

    Compilers fail at the first call, so that is made here, forward and backward on the example
    (inputs and targets, (B, T) each), in training and in eval mode. On failure the model itself is
    returned, and the log says so. Neither weights nor random numbers are changed.
    """
    if not is_compiled(mode, model.device):
        return model
    forward = torch.compile(model)
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), autocast(model.device, dtype):
            model.train()
            forward(*example)[1].backward()
            model.eval()
            with torch.no_grad():
                forward(*example)
    except Exception as error:  # whatever a compiler may raise
        reason = str(error).strip().partition("\n")[0]
        log(f"compiling failed, going on without: {type(error).__name__}: {reason}")
        return model
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return forward
