"""Muon for the matrices of the blocks, AdamW for every other weight: one optimizer.

Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all about 1,
so that every direction learns equally fast. https://kellerjordan.github.io/posts/muon/
Knows nothing about schedules or files.

Shapes: r, c = rows and columns of a matrix, r <= c; n = matrices of one shape.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

FIRST_MOMENTUM, LAST_MOMENTUM, MOMENTUM_WARMUP_STEPS = 0.85, 0.95, 300

# Odd polynomials a·x + b·x³ + c·x⁵ that, one after another, bring singular values from [0.001, 1]
# to [0.85, 1.15]: Polar Express, https://arxiv.org/abs/2505.16932
COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SAFETY = 1.02  # rounding must not lift a singular value above 1, where the polynomials explode


class Muon(torch.optim.Optimizer):
    """Groups whose `momentum` is set are matrices for Muon; the others are AdamW's.

    A step costs about 4·C / (tokens per step) of the blocks' forward and backward pass, where C is
    the width: little for large batches, too much for tiny ones.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        adamw_groups: list[dict[str, Any]],
        *,
        matrix_learning_rate: float,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        pieces_of: dict[Tensor, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`pieces_of` says which matrices are several below each other, such as fused q, k, v.

        `weight_decay` is that of the matrices. `dtype` is the arithmetic of the orthogonalization.
        """
        groups = [
            {"params": matrices, "muon": True, "lr": matrix_learning_rate},
            *({"muon": False, **group} for group in adamw_groups),
        ]
        defaults = {
            "lr": learning_rate,
            "betas": betas,
            "eps": 1e-8,
            "weight_decay": weight_decay,
            "fused": True,  # also tells torch's loading where to keep `step`
        }
        super().__init__(groups, defaults)
        self._pieces_of = pieces_of
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. Weights without a gradient stay."""
        assert closure is None, "the gradients are there already"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["muon"]:
                self._orthogonal_update(group, weights)
            else:
                self._adamw_update(group, weights)

    def _orthogonal_update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["momentum"] = torch.zeros_like(weight)
            momentum = momentum_at(int(state["step"]))
            state["step"] += 1
            gradient = _gradient(weight)
            average = state["momentum"].lerp_(gradient, 1 - momentum)
            update = gradient.lerp(average, momentum)  # Nesterov's look ahead
            pieces = self._pieces_of.get(weight, 1)
            for part, direction in zip(weight.chunk(pieces), update.chunk(pieces), strict=True):
                shape = (min(part.shape), max(part.shape))  # tall ones are turned to wide ones
                by_shape.setdefault(shape, []).append((part, direction))
        rate, decay = group["lr"], group["weight_decay"]
        for found in by_shape.values():
            wide = [d if d.shape[0] <= d.shape[1] else d.t() for _, d in found]
            directions = orthogonalize(torch.stack(wide), self._dtype)
            for (part, _), direction in zip(found, directions, strict=True):
                rows, columns = part.shape
                turned = direction if rows <= columns else direction.t()
                part.mul_(1 - rate * decay)
                # a tall matrix moves its outputs as far as a square one would
                part.add_(turned, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def _adamw_update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        if not weights:
            return
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            [_gradient(weight) for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def momentum_at(step: int) -> float:
    """Momentum of the update that follows `step` updates: short-sighted at first.

    https://github.com/KellerJordan/modded-nanogpt
    """
    progress = min(step / MOMENTUM_WARMUP_STEPS, 1.0)
    return FIRST_MOMENTUM + progress * (LAST_MOMENTUM - FIRST_MOMENTUM)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (n, r, c) with the same singular vectors and singular values about 1, float32.

    Five Newton-Schulz iterations, 5·(4r²c + 2r³) FLOPs a matrix. Singular values below a thousandth
    of the Frobenius norm stay below 1.
    """
    x = matrices / (SAFETY * torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    x = x.to(dtype)
    for a, b, c in COEFFICIENTS:
        square = x @ x.transpose(1, 2)  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.float()


def split_weights(model: nn.Module) -> tuple[list[Tensor], list[Tensor], dict[Tensor, int]]:
    """Matrices of the blocks, all other weights, and into how many parts a matrix falls.

    Queries, keys and values are three matrices that share one tensor: each is made orthogonal by
    itself.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    pieces_of: dict[Tensor, int] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if ".h." in name and weight.dim() == 2:
            matrices.append(weight)
            if name.endswith("c_attn.weight"):
                pieces_of[weight] = 3
        else:
            others.append(weight)
    return matrices, others, pieces_of
