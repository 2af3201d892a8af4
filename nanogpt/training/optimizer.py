"""The optimizer of a GPT, and its state as named tensors.

Knows nothing about schedules or files.
"""

import torch
from torch import Tensor, nn

from nanogpt.config import TrainConfig
from nanogpt.training.muon import Muon, split_weights


def make_optimizer(
    model: nn.Module, config: TrainConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """AdamW in torch's fused kernel, or Muon for the blocks' matrices and AdamW for the rest.

    With AdamW, https://arxiv.org/abs/1711.05101, matrices and embeddings decay, biases and norms do
    not; with Muon only its matrices do. `dtype` is the run's arithmetic: in bfloat16, Muon
    multiplies in it too.
    """
    if config.optimizer == "muon":
        matrices, others, pieces_of = split_weights(model)
        return Muon(
            matrices,
            [{"params": others, "weight_decay": 0.0}],
            matrix_learning_rate=config.muon_learning_rate,
            learning_rate=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            pieces_of=pieces_of,
            dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
        )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TrainConfig, learning_rate: float
) -> None:
    """Sets AdamW's rate, and Muon's to the same share of its peak."""
    share = learning_rate / config.learning_rate
    for group in optimizer.param_groups:
        is_muon = group.get("muon", False)
        group["lr"] = share * config.muon_learning_rate if is_muon else learning_rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named `optimizer.QUANTITY.WEIGHT`."""
    return {
        f"optimizer.{quantity}.{name}": tensor
        for name, weight in model.named_parameters()
        for quantity, tensor in optimizer.state[weight].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave. Hyperparameters stay those of the optimizer."""
    names = {weight: name for name, weight in model.named_parameters()}
    ordered = [names[weight] for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix, _, rest = key.partition(".")
        if prefix == "optimizer":
            quantity, _, name = rest.partition(".")
            state.setdefault(ordered.index(name), {})[quantity] = tensor
    # torch's own loading knows which tensors belong on which device
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
