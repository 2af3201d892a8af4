"""One optimizer update: forward and backward over the micro-batches, clip, update.

The part of training that has to be fast. It knows nothing about schedules, files or events; what
is not finite never reaches the optimizer.

Shapes: A = micro-batches, B = sequences, T = block_size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from nanogpt.ensemble import Network
from nanogpt.training.world import Forward, World

Accept = Callable[[float, float], bool]
"""Whether a step of this loss and gradient norm, both finite, may change the weights."""


class Diverged(ArithmeticError):
    """Training cannot go on: losses or gradients are not finite, or far from those before."""


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float
    """Mean cross-entropy over all tokens of the step, in nats."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    clipped: bool
    applied: bool = True
    """Whether the weights were updated; if not, they are those before the step."""


class TrainingStep:
    """Updates a model by one step at a time."""

    def __init__(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: torch.dtype,
        grad_clip: float,
        forward: Forward | None = None,
        world: World | None = None,
        pieces: int = 1,
    ) -> None:
        """`forward` is the model, perhaps compiled. `grad_clip` 0 does not clip.

        The processes of a `world` take each step together, each with its share of the batch. Each
        micro-batch is computed in so many `pieces`, one after another: the same gradient up to
        rounding, from activations that may fit the cache.
        """
        self._world = world or World()
        self._pieces = pieces
        self._forward = model if forward is None else forward
        self._weights = list(model.parameters())
        self._optimizer = optimizer
        self._device = model.device
        self._dtype = dtype
        self._grad_clip = grad_clip
        # small float16 gradients would become 0: https://arxiv.org/abs/1710.03740
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=dtype == torch.float16)

    def __call__(
        self, inputs: Tensor, targets: Tensor, accept: Accept = lambda loss, grad_norm: True
    ) -> StepResult:
        """Takes one step on token ids (A, B, T).

        What is not finite, or not accepted, does not reach the optimizer. A float16 step whose
        gradients overflow is repeated with half the loss scale.
        """
        while True:
            loss, grad_norm = self._backward(inputs, targets)
            overflowed = math.isfinite(loss) and not math.isfinite(grad_norm)
            if not (overflowed and self._scaler.is_enabled() and self._scaler.get_scale() > 1.0):
                break
            self._scaler.update()
        applied = math.isfinite(loss) and math.isfinite(grad_norm) and accept(loss, grad_norm)
        if applied:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        return StepResult(loss, grad_norm, 0 < self._grad_clip < grad_norm, applied)

    def _backward(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Leaves the clipped gradient in the weights; returns the loss and the norm before."""
        self._optimizer.zero_grad(set_to_none=True)
        A, B = inputs.shape[:2]
        losses = []
        work = [piece for micro in zip(inputs, targets, strict=True) for piece in self._cut(*micro)]
        for left, piece in zip(reversed(range(len(work))), work, strict=True):
            with self._world.accumulating(last=left == 0):
                with autocast(self._device, self._dtype):
                    _, loss = self._forward(*piece)
                # the mean over all tokens: each piece counts by its sequences
                loss = loss * (len(piece[0]) / (A * B))
                self._scaler.scale(loss).backward()
            losses.append(loss.detach())
        self._scaler.unscale_(self._optimizer)
        if self._grad_clip > 0:
            norm = clip_grad_norm_(self._weights, self._grad_clip)
        else:
            norm = get_total_norm([w.grad for w in self._weights if w.grad is not None])
        norm = self._world.whole_number(norm)  # the same in all processes, and so its mean
        figures = self._world.mean(torch.stack([torch.stack(losses).sum(), norm]))
        # the one wait for the device in a step
        mean_loss, grad_norm = figures.tolist()
        return mean_loss, grad_norm

    def _cut(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The pieces of one micro-batch (B, T)."""
        pieces = inputs.tensor_split(self._pieces), targets.tensor_split(self._pieces)
        yield from zip(*pieces, strict=True)

    def scaler_state(self) -> dict[str, Any]:
        """The loss scale and its history, as JSON; empty unless the type is float16."""
        return self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix multiplications in `dtype`, sums and weights in float32; nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
