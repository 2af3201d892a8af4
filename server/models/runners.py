"""Which runner a model gets: the one place that knows what holds weights in which precision here.

It knows neither engines nor requests.
"""

from pathlib import Path
from typing import Literal

import torch

from nanogpt.checkpoint import load_model
from nanogpt.config import ModelConfig
from nanogpt.flops import multiplied_weights, parameter_count
from nanogpt.inference.ensemble_runner import EnsembleRunner
from nanogpt.inference.native.library import Library
from nanogpt.inference.native.runner import NativeRunner
from nanogpt.inference.precision import PRECISIONS, Precision
from nanogpt.inference.runner import Runner
from nanogpt.inference.torch_runner import TorchRunner, is_batch_invariant
from nanogpt.option import Violation
from server.errors import FailedPrecondition, InvalidArgument
from server.models.kernels import Kernels

Arithmetic = Literal["float32", "bfloat16", "integer"]
"""The type of numbers that are multiplied."""

TORCH_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5625}
"""int4 has a scale of 16 bits for each 32 weights."""


def precision_of(name: str) -> Precision | None:
    """The precision that a caller named, None for an empty name. Raises InvalidArgument."""
    if name and name not in PRECISIONS:
        allowed = f"must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise InvalidArgument([Violation("precision", f"{allowed}, got {name!r}")])
    return next((precision for precision in PRECISIONS if precision == name), None)


def check_precision(precision: Precision, device: torch.device, kernels: Kernels) -> None:
    """Raises FailedPrecondition if nothing here runs models in this precision, or ever will."""
    if precision not in TORCH_PRECISIONS and not kernels.may_come:
        raise _not_supported(precision, device)


def kernels_for(precision: Precision, kernels: Kernels) -> Library | None:
    """What a model loaded now is to run on; None is PyTorch. Waits for kernels that are still
    being compiled only if PyTorch cannot have this precision: run it off the event loop."""
    return kernels.now() if precision in TORCH_PRECISIONS else kernels.wait()


def arithmetic_of(precision: Precision, library: Library | None) -> Arithmetic:
    """What a model multiplies its weights in, on the kernels of `library` or on PyTorch."""
    if precision not in TORCH_PRECISIONS:
        return "integer"
    widens = library is not None and not library.multiplies_bfloat16
    return "bfloat16" if precision == "bfloat16" and not widens else "float32"


def bytes_per_weight(config: ModelConfig, precision: Precision) -> float:
    """What a multiplied weight takes, in the mean: with int4 the output layer is held as int8, see
    nanogpt/inference/native/gpt.cpp."""
    head = config.n_member * config.vocab_size * config.n_embd
    weights = multiplied_weights(config)
    head_precision = "int8" if precision == "int4" else precision
    of_head, of_rest = BYTES_PER_WEIGHT[head_precision], BYTES_PER_WEIGHT[precision]
    return of_rest + (of_head - of_rest) * head / weights


def bytes_per_kv_value(precision: Precision, is_native: bool) -> int:
    """What one number of keys and values takes."""
    return 2 if is_native and precision != "float32" else 4


def memory_bytes_of(
    config: ModelConfig, num_slots: int, precision: Precision, library: Library | None
) -> int:
    """What a model takes: its weights, and keys and values of every slot's whole window."""
    kv_values = 2 * config.num_blocks * num_slots * config.block_size * config.n_embd
    kv_bytes = kv_values * bytes_per_kv_value(precision, library is not None)
    weight_bytes = bytes_per_weight(config, precision)
    if library is None:
        return round(parameter_count(config) * weight_bytes) + kv_bytes
    # the kernels look tokens and positions up in float32, beside the head, tied or not
    rows = config.vocab_size + (0 if config.is_modern else config.block_size)
    embedding_bytes = 4 * config.n_member * rows * config.n_embd
    return round(multiplied_weights(config) * weight_bytes) + embedding_bytes + kv_bytes


def build_runner(
    folder: Path,
    device: torch.device,
    *,
    vocab_size: int,
    num_slots: int,
    precision: Precision,
    library: Library | None = None,
    batch_invariant: bool = False,
) -> Runner:
    """A runner of a checkpoint's weights, on the kernels of `library` or on PyTorch.

    If `batch_invariant`, logits depend on nothing else in the batch; those of the kernels never do,
    PyTorch's take 10 to 60 % longer for it. Raises as `load_model`, FailedPrecondition if precision
    or invariance cannot be had so.
    """
    runners: list[Runner]
    if library is not None:
        runners = [
            NativeRunner(
                library,
                member.config,
                {name: weight.numpy() for name, weight in member.state_dict().items()},
                vocab_size,
                num_slots=num_slots,
                precision=precision,
                num_threads=torch.get_num_threads(),
            )
            for member in load_model(folder).members
        ]
        return _one(runners)
    if precision not in TORCH_PRECISIONS:
        raise _not_supported(precision, device)
    model = load_model(folder, device).to(TORCH_PRECISIONS[precision])
    runners = [
        TorchRunner(member, vocab_size, num_slots=num_slots, batch_invariant=batch_invariant)
        for member in model.members
    ]
    runner = _one(runners)
    if batch_invariant and not is_batch_invariant(runner):
        raise FailedPrecondition(
            "batch_invariance_not_supported",
            device.type,
            f"PyTorch's results depend on the batch on this {device.type}; "
            f"set batch_invariant to auto, or use native kernels",
        )
    return runner


def _one(members: list[Runner]) -> Runner:
    return members[0] if len(members) == 1 else EnsembleRunner(members)


def _not_supported(precision: Precision, device: torch.device) -> FailedPrecondition:
    return FailedPrecondition(
        "precision_not_supported",
        precision,
        f"this server cannot run models in {precision} on {device.type}; "
        f"it can in {' and '.join(TORCH_PRECISIONS)}",
    )
