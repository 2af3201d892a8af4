"""Where a run begins: random weights, the weights of a model, or a checkpoint of its own.

Reads and checks; it changes nothing on disk and does not train.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt.checkpoint import (
    CheckpointDamaged,
    CheckpointMeta,
    build_model,
    load_model_state,
    load_train_state,
    read_meta,
)
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.config import TrainConfig
from nanogpt.datasets.dataset import BadDataset, Dataset
from nanogpt.ensemble import Network, make_network
from nanogpt.model import crop_block_size, sinusoidal_positions, zero_init_projections
from nanogpt.option import InvalidConfig, Violation
from nanogpt.tokenizer import Tokenizer
from nanogpt.training.run_directory import RunDirectory, RunSpec
from nanogpt.training.snapshot import Snapshot, dataset_identity

# GPT-2's 50257, padded to a multiple of 64: about a quarter faster on a GPU
# https://github.com/karpathy/nanoGPT/commit/77e7e04c
PADDED_GPT2_VOCAB_SIZE = 50304


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run's own checkpoint."""

    meta: CheckpointMeta
    snapshot: Snapshot
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """The weights to begin with, on the CPU, and the run's checkpoint if it has one."""

    model: Network
    resumed: Resumed | None = None


def find_starting_point(
    directory: RunDirectory, spec: RunSpec, dataset: Dataset, log: Callable[[str], None]
) -> StartingPoint:
    """The newest valid checkpoint of the run, else the model to fine-tune, else random weights.

    Seeds torch's generator. Raises BadDataset if the tokens are not those of the checkpoint or
    model, InvalidConfig if the model cannot be used.
    """
    torch.manual_seed(spec.config.seed)
    newest = newest_valid(
        directory.checkpoints_path, on_damaged=lambda error: log(f"skipping a checkpoint: {error}")
    )
    if newest is not None:
        log(f"resuming from {newest.name}")
        model, resumed = read_checkpoint(newest, spec.config)
        _check_resume(resumed.meta, resumed.snapshot, spec.config, dataset, log)
        return StartingPoint(model, resumed)
    if spec.init_checkpoint is not None:
        return StartingPoint(_fine_tuned_model(directory, spec, dataset))
    model = make_network(spec.config.model_config(num_vocab_rows(dataset.tokenizer)))
    for member in model.members:
        if spec.config.zero_init_projections:
            zero_init_projections(member)
        if spec.config.sinusoidal_positions:
            sinusoidal_positions(member)
    return StartingPoint(model)


def read_checkpoint(folder: Path, config: TrainConfig) -> tuple[Network, Resumed]:
    """The weights of a run's checkpoint and all else it goes on with, on the CPU.

    Raises CheckpointDamaged.
    """
    meta = read_meta(folder)
    model_config = replace(meta.model_config, dropout=config.dropout)
    model = build_model(model_config, load_model_state(folder))
    snapshot = Snapshot.from_json(meta.train or {})
    return model, Resumed(meta, snapshot, load_train_state(folder))


def num_vocab_rows(tokenizer: Tokenizer) -> int:
    """Rows of the token embedding of a new model."""
    return PADDED_GPT2_VOCAB_SIZE if tokenizer.kind == "gpt2" else tokenizer.vocab_size


def _fine_tuned_model(directory: RunDirectory, spec: RunSpec, dataset: Dataset) -> Network:
    folder = directory.path / str(spec.init_checkpoint)
    try:
        meta, state = read_meta(folder), load_model_state(folder)
    except (CheckpointDamaged, FileNotFoundError) as error:
        raise InvalidConfig([Violation("init_from", str(error))]) from error
    if meta.tokenizer != dataset.tokenizer.to_json():
        raise BadDataset(
            f"the dataset's vocabulary ({dataset.tokenizer.kind}, {dataset.tokenizer.vocab_size} "
            f"tokens) is not that of the model to start from ({meta.tokenizer.get('kind')}, "
            f"{meta.model_config.vocab_size} tokens); fine-tuning needs the same"
        )
    block_size, longest = spec.config.block_size, meta.model_config.block_size
    if block_size > longest:
        raise _wrong_block_size(f"at most {longest}, as in the model to start from", block_size)
    config = replace(meta.model_config, block_size=block_size, dropout=spec.config.dropout)
    return build_model(config, crop_block_size(state, block_size))


def _check_resume(
    meta: CheckpointMeta,
    snapshot: Snapshot,
    config: TrainConfig,
    dataset: Dataset,
    log: Callable[[str], None],
) -> None:
    """Refuses what would make it another run, and says what else has changed."""
    identity, tokenizer = dataset_identity(dataset), dataset.tokenizer.to_json()
    if snapshot.dataset != identity or meta.tokenizer != tokenizer:
        raise BadDataset("the dataset is not the one that this run began with")
    if snapshot.config["block_size"] != config.block_size:
        raise _wrong_block_size(
            f"{snapshot.config['block_size']}, with which this run began", config.block_size
        )
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    before = {**snapshot.config, "torch": snapshot.torch_version, "threads": snapshot.threads}
    now = json.loads(json.dumps(config.to_mapping()))  # a tuple is a list in the checkpoint
    for name, value in {**now, **environment}.items():
        if before.get(name) != value:
            log(f"changed since the checkpoint: {name} was {before.get(name)!r}, is {value!r}")


def _wrong_block_size(allowed: str, got: int) -> InvalidConfig:
    return InvalidConfig([Violation("block_size", f"must be {allowed}, got {got}")])
