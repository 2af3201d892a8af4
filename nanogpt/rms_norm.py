"""Root-mean-square normalization whose gradient costs little on a processor.

torch puts it together there from a dozen operations, and their gradients from more, which takes
three times as long as its own LayerNorm. https://arxiv.org/abs/1910.07467
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


def rms_norm(x: Tensor) -> Tensor:
    """x with each vector of its last dimension scaled to a mean square of 1; without weights."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # one kernel there
        return F.rms_norm(x, x.shape[-1:], eps=EPSILON)
    y: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
    return y


class RMSNorm(nn.Module):
    """`rms_norm` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


class _RMSNorm(torch.autograd.Function):
    """y = x·s with s = 1 / √(mean x² + ε), so dx = s·(dy - y·mean(dy·y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size, sums_in = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sums_in)  # (..., 1)
        scale = norm.square_().div_(size).add_(EPSILON).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (slope,) = slopes
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(slope, y).unsqueeze(-1).div_(-y.shape[-1])  # (..., 1)
        return torch.addcmul(slope, y, along).mul_(scale)
