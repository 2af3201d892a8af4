"""Which runner a model gets: the one place that knows what holds weights in which precision here.

It knows neither engines nor requests.
"""

from pathlib import Path
from typing import Literal, get_args

import torch

from nanogpt.checkpoint import load_model
from nanogpt.config import ModelConfig
from nanogpt.inference.runner import Runner
from nanogpt.inference.torch_runner import TorchRunner
from server.errors import FailedPrecondition
from server.models.catalog import parameter_count

Precision = Literal["float32", "bfloat16", "int8", "int4"]
"""How weights are held in memory."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

TORCH_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
KV_BYTES = 4


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises FailedPrecondition if nothing here runs models in this precision."""
    if precision not in TORCH_PRECISIONS:
        raise FailedPrecondition(
            "precision_not_supported",
            precision,
            f"this server cannot run models in {precision} on {device.type}; "
            f"it can in {' and '.join(TORCH_PRECISIONS)}",
        )


def memory_bytes_of(config: ModelConfig, num_slots: int, precision: Precision) -> int:
    """What a model takes: its weights, and keys and values of every slot's whole window."""
    kv_values = 2 * config.n_layer * num_slots * config.block_size * config.n_embd
    weight_bytes = parameter_count(config) * BYTES_PER_WEIGHT[precision]
    return round(weight_bytes) + kv_values * KV_BYTES


def build_runner(
    folder: Path, device: torch.device, *, vocab_size: int, num_slots: int, precision: Precision
) -> Runner:
    """A runner of a checkpoint's weights. Raises as `load_model` and `check_precision`."""
    check_precision(precision, device)
    model = load_model(folder, device).to(TORCH_PRECISIONS[precision])
    return TorchRunner(model, vocab_size, num_slots=num_slots)
