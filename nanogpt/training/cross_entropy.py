"""Cross-entropy of a large vocabulary, without ever holding the logits of all tokens.

Some tokens at a time are multiplied by the head, and their gradient is taken while their logits are
there: as many FLOPs as the plain way, and for many tokens a fraction of the memory. The plain way
keeps logits, their log-softmax and their gradient: 3·4·N·V bytes.

Shapes: N = tokens, B·T = N, C = width, V = vocabulary size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.model import GPT, SOFT_CAP, soft_cap
from nanogpt.training.world import Forward

PIECE_BYTES = 64 << 20
"""Of float32 logits. Smaller pieces fit a cache, but each of them passes over the head's gradient,
which is larger than any: measured with 50,304 x 768."""

LARGE_VOCABULARY = 8192
"""From here on it is worth it; smaller logits fit the cache as they are."""


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, is_capped: bool = False
) -> Tensor:
    """Mean cross-entropy in nats, a scalar, of hidden states (N, C), head (V, C), targets (N,).

    If `is_capped`, logits go through `soft_cap`. Under autocast the products are in its type, sums
    and the softmax in float32.
    """
    if not torch.is_grad_enabled():
        hidden, head = hidden.detach(), head.detach()  # spares the gradients
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, targets, is_capped)  # type: ignore[no-untyped-call]
    return loss


def chunked_forward(model: GPT) -> Forward:
    """The model's forward pass with this loss. In place of logits it gives hidden states."""

    def forward(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden = model.hidden(inputs, attend=model.attend)  # (B, T, C)
        head, is_capped = model.lm_head.weight, model.config.is_modern
        loss = chunked_cross_entropy(hidden.flatten(0, 1), head, targets.flatten(), is_capped)
        return hidden, loss

    return forward


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, is_capped: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            return _forward(ctx, hidden, head, targets, is_capped, dtype or head.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (slope,) = slopes
        hidden_slope, head_slope = ctx.saved_tensors
        # as large as the head, and not needed twice: scaled in place
        return hidden_slope.mul_(slope), head_slope.mul_(slope), None, None


def _forward(
    ctx: Any,
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    is_capped: bool,
    dtype: torch.dtype,
) -> Tensor:
    needs_gradient = any(ctx.needs_input_grad)
    rows = max(1, PIECE_BYTES // (4 * head.shape[0]))
    weights = head.to(dtype)
    total = torch.zeros((), device=hidden.device)
    hidden_slope, head_slope = torch.empty_like(hidden), torch.zeros_like(head)
    for first in range(0, len(hidden), rows):
        wanted = targets[first : first + rows]
        x = hidden[first : first + rows].to(dtype)  # (rows, C)
        logits = (x @ weights.t()).float()  # (rows, V)
        if is_capped:
            logits = soft_cap(logits)
        log_softmax = F.log_softmax(logits, dim=-1)
        total += F.nll_loss(log_softmax, wanted, reduction="sum")
        if needs_gradient:
            slope = log_softmax.exp_()  # softmax - one-hot, over N
            slope[torch.arange(len(wanted), device=slope.device), wanted] -= 1
            if is_capped:  # tanh' = 1 - tanh²
                slope.mul_(1 - (logits / SOFT_CAP).square_())
            slope = slope.div_(len(targets)).to(dtype)
            hidden_slope[first : first + rows] = slope @ weights
            if head_slope.dtype == dtype:
                head_slope.addmm_(slope.t(), x)  # one pass over the head, not two
            else:
                head_slope += slope.t() @ x
    ctx.save_for_backward(hidden_slope, head_slope)
    return total / len(targets)
