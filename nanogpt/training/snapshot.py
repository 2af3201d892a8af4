"""All that a run needs beside its weights to go on as if it had never stopped.

Taken between two steps only. The learning rate and the data are pure functions of the step and the
seed, so they have no state to save.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from nanogpt.datasets.dataset import Dataset
from nanogpt.ensemble import Network
from nanogpt.training.optimizer import load_optimizer_tensors, optimizer_tensors
from nanogpt.training.world import World


@dataclass(slots=True)
class Progress:
    """How far a run has come. Losses are in nats, None before the first evaluation."""

    step: int = 0
    evaluated_step: int | None = None
    """Step of the latest complete evaluation."""
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    reference_val_loss: float | None = None
    """What an evaluation has to improve on, and how many in a row have not."""
    stale_evaluations: int = 0
    planned_step: int | None = None
    """Step of the newest checkpoint that the run planned."""
    good_step: int | None = None
    """Step of the newest of them from which a step was taken, to which the run goes back."""
    skips: int = 0
    """Steps left out in a row."""
    clipped_steps: int = 0
    """Updates whose gradient was clipped, since the last step event."""
    rollbacks: int = 0
    """How often the run has gone back."""

    def plan_checkpoint(self) -> None:
        """Counts a planned checkpoint at the current step; only the first is good at once."""
        self.planned_step = self.step
        if self.good_step is None:
            self.good_step = self.step

    def applied_step(self, clipped: bool) -> None:
        """Counts an update: the weights before it, and any checkpoint of them, were good."""
        self.step += 1
        self.skips = 0
        self.clipped_steps += clipped
        if self.planned_step is not None:
            self.good_step = self.planned_step

    def evaluated(self, val_loss: float, min_delta: float = 0.0) -> bool:
        """Takes in an evaluation at the current step; returns whether it is the best so far."""
        self.evaluated_step, self.val_loss = self.step, val_loss
        if self.reference_val_loss is None or val_loss < self.reference_val_loss - min_delta:
            self.reference_val_loss, self.stale_evaluations = val_loss, 0
        else:
            self.stale_evaluations += 1
        is_best = self.best_val_loss is None or val_loss < self.best_val_loss
        if is_best:
            self.best_val_loss, self.best_step = val_loss, self.step
        return is_best


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The part that is JSON: `CheckpointMeta.train`."""

    progress: Progress
    dtype: str
    """Arithmetic type in use, also where the config lets it be measured."""
    scaler: dict[str, Any]
    window: dict[str, list[float]]
    """Latest losses and gradient norms: `divergence.Window`."""
    seconds: float
    """Duration of the run so far, over all attempts."""
    config: dict[str, Any]
    dataset: dict[str, Any]
    torch_version: str
    threads: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "progress": Progress(**values["progress"])})

    def to_json(self) -> dict[str, Any]:
        """Just as it comes back from a file, where a tuple is a list."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """What tells this dataset from another with the same tokenizer, as JSON."""
    return {
        "source_sha256": dataset.meta.source_sha256,
        "train_tokens": dataset.meta.train_tokens,
        "val_tokens": dataset.meta.val_tokens,
    }


def take_tensors(
    model: Network, optimizer: torch.optim.Optimizer, world: World | None = None
) -> dict[str, Tensor]:
    """The part that is tensors: the optimizer's state and the random number generators.

    All processes of the world take it together; it is whole in the first one only.
    """
    world = world or World()
    draws = {"rng.cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        draws["rng.cuda"] = torch.cuda.get_rng_state(model.device)
    if model.device.type == "mps":
        draws["rng.mps"] = torch.mps.get_rng_state()
    return {**world.whole(optimizer_tensors(optimizer, model)), **world.of_each(draws)}


def restore_tensors(
    model: Network,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    world: World | None = None,
) -> None:
    """Puts back what `take_tensors` gave. Comes last: whatever else starts may draw numbers.

    A run that moves to another kind of device, or to more processes, keeps its weights and
    moments; generators that are new start from the seed.
    """
    world = world or World()
    weights = dict(model.named_parameters())
    shares = {
        name: world.part_like(weights[weight], tensor) if weight in weights else tensor
        for name, tensor in tensors.items()
        for weight in [name.split(".", 2)[-1]]  # of `optimizer.QUANTITY.WEIGHT`
    }
    load_optimizer_tensors(optimizer, model, shares)
    if (state := world.own(tensors, "rng.cpu")) is not None:
        torch.set_rng_state(state)
    if model.device.type == "cuda" and (state := world.own(tensors, "rng.cuda")) is not None:
        torch.cuda.set_rng_state(state, model.device)
    if model.device.type == "mps" and (state := world.own(tensors, "rng.mps")) is not None:
        torch.mps.set_rng_state(state)
