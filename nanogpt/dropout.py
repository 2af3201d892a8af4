"""Dropout whose random numbers cost little on a processor.

torch draws one number after another for its masks there, 6 ns each, which is as much as the
multiplications around them take. Four numbers for each draw of 64 bits are three times as fast.
https://jmlr.org/papers/v15/srivastava14a.html
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16
"""The probability is rounded to a multiple of 1 / STEPS: 16 bits decide."""


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zeros with this probability, in [0, 1), and all else scaled so that the mean stays.

    Draws from torch's generator, but not the numbers that torch's own dropout draws, which is used
    on an accelerator.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    # the operator is what a compiler leaves as it is; its first call loads torch's whole compiler
    draw = _draw_factors if torch.compiler.is_compiling() else _factors
    return x * draw(x.detach(), probability)


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability, self.training)


def _factors(x: Tensor, probability: float) -> Tensor:
    """0 or the scale for each number of x, in its type."""
    count, num_dropped = x.numel(), round(probability * STEPS)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    steps = words.view(torch.int16)[:count].view(x.shape)  # uniform in [-STEPS/2, STEPS/2)
    keeps = steps >= num_dropped - STEPS // 2
    return keeps.to(x.dtype).mul_(STEPS / (STEPS - num_dropped))


_draw_factors = torch.library.custom_op("nanogpt::dropout_factors", _factors, mutates_args=())


@_draw_factors.register_fake
def _(x: Tensor, probability: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
