"""What a caller asks for, checked and completed: from a few words to a whole specification.

Everything that can be refused is refused here, all faults at once, before anything is written.
Reads datasets and the meta of models; knows neither the queue nor the wire.
"""

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from nanogpt.checkpoint import CheckpointDamaged, CheckpointMeta, read_meta
from nanogpt.config import TrainConfig
from nanogpt.device import pick_device, total_memory_bytes
from nanogpt.option import InvalidConfig, Violation
from nanogpt.preset import Preset, load_preset
from nanogpt.training.memory import MemoryEstimate, estimate_memory
from nanogpt.training.starting_point import PADDED_GPT2_VOCAB_SIZE
from server.dataset_store import DatasetInfo, DatasetStore
from server.errors import DataLoss, InvalidArgument, NotFound
from server.names import name_violations

MAX_REQUEST_ID_CHARACTERS = 128

LARGEST_PRIORITY = 100
"""Priorities reach from its negative to it."""

SCRATCH = "scratch"

SHAPE = ("n_layer", "n_head", "n_embd", "bias", "arch", "n_member")
"""Fields that are the starting model's if there is one; block_size may be smaller."""

NO_PRESET = Preset(name="", config={}, dataset=None, out_dir=None)


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. Empty texts and absent keys are left to the server."""

    model: str = ""
    dataset: str = ""
    preset: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig."""
    request_id: str = ""
    priority: int = 0

    def canonical(self) -> str:
        """The same text for the same request, whatever its id."""
        body: dict[str, Any] = {
            "model": self.model,
            "dataset": self.dataset,
            "preset": self.preset,
            "config": self.config,
        }
        if self.priority:  # absent from what servers wrote that knew no priorities
            body["priority"] = self.priority
        return json.dumps(body, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that can be queued."""

    names: str
    """The model's name, or if the caller left it open what a free one begins with."""
    dataset: str
    config: TrainConfig
    config_origin: dict[str, str]
    init_checkpoint: Path | None


class FoundModel(Protocol):
    """A model on disk."""

    @property
    def folder(self) -> Path: ...


class Models(Protocol):
    """The models on disk: server.models.catalog.ModelCatalog."""

    def resolve(self, reference: str, field: str = "model") -> FoundModel:
        """Raises InvalidArgument, NotFound, DataLoss."""

    def has(self, name: str) -> bool:
        """Whether the name of a model is taken."""


def plan(submission: Submission, datasets: DatasetStore, models: Models) -> Plan:
    """The job that a submission asks for.

    Raises InvalidArgument naming every field that is wrong, NotFound for a dataset or a model,
    DataLoss if one is damaged. Reads files.
    """
    found: list[Violation] = []
    preset = NO_PRESET
    if submission.preset:
        try:
            preset = load_preset(submission.preset)
        except InvalidConfig as error:
            found += error.violations
    if submission.model:
        found += name_violations("model", submission.model)
    dataset_name = submission.dataset or preset.dataset or ""
    if dataset_name:
        found += name_violations("dataset", dataset_name)
    elif preset is NO_PRESET or not found:
        found.append(Violation("dataset", "must be set, or a preset that names one"))
    if len(submission.request_id) > MAX_REQUEST_ID_CHARACTERS:
        allowed = f"at most {MAX_REQUEST_ID_CHARACTERS} characters"
        found.append(
            Violation("request_id", f"must have {allowed}, got {len(submission.request_id)}")
        )
    if not -LARGEST_PRIORITY <= submission.priority <= LARGEST_PRIORITY:
        allowed = f"in [-{LARGEST_PRIORITY}, {LARGEST_PRIORITY}]"
        found.append(Violation("priority", f"must be {allowed}, got {submission.priority}"))
    values = {**preset.config, **submission.config}
    origin = {spec.name: "default" for spec in fields(TrainConfig)}
    origin |= {key: f"preset {preset.name}" for key in preset.config}
    origin |= {key: "request" for key in submission.config}
    found += _config_violations(values)
    if found:
        raise InvalidArgument(found)

    dataset = datasets.get(dataset_name)
    start = _starting_model(values.get("init_from", SCRATCH), models)
    if start is not None:
        found += _take_shape(start, values, origin) or _range_violations(values)
        found += _vocabulary_violations(start, dataset)
    if not found:
        config = TrainConfig.from_mapping(values)
        found += _length_violations(dataset, config)
        found += _memory_violations(dataset, start, config)
    if found:
        raise InvalidArgument(found)
    return Plan(
        names=submission.model or preset.out_dir or dataset_name,
        dataset=dataset_name,
        config=TrainConfig.from_mapping(values),
        config_origin=origin,
        init_checkpoint=start.folder if start else None,
    )


def free_name(beginning: str, is_taken: Callable[[str], bool]) -> str:
    """The first of NAME, NAME-2, NAME-3, ... that is not taken; at most 63 characters."""
    name, number = beginning, 1
    while is_taken(name):
        number += 1
        suffix = f"-{number}"
        name = beginning[: 63 - len(suffix)] + suffix
    return name


@dataclass(frozen=True, slots=True)
class _Start:
    """The model that a fine-tuning starts from."""

    reference: str
    folder: Path
    meta: CheckpointMeta


def _config_violations(values: dict[str, Any]) -> list[Violation]:
    """Fields out of range. With a starting model the shape is not the caller's, see _take_shape."""
    init_from = values.get("init_from", SCRATCH)
    if init_from != SCRATCH:
        values = {key: value for key, value in values.items() if key not in SHAPE}
    found = _range_violations(values)
    if init_from == "resume":
        found.append(
            Violation(
                "config.init_from",
                "an interrupted job goes on by itself; to train on from where a job got to, "
                "name its model or job:ID",
            )
        )
    elif not init_from:
        found.append(Violation("config.init_from", f"must be {SCRATCH} or the name of a model"))
    return found


def _range_violations(values: dict[str, Any]) -> list[Violation]:
    try:
        TrainConfig.from_mapping(values)
    except InvalidConfig as error:
        return [Violation(f"config.{v.field}", v.description) for v in error.violations]
    return []


def _starting_model(reference: str, models: Models) -> _Start | None:
    """None for random weights. Raises NotFound, DataLoss, InvalidArgument."""
    if reference == SCRATCH:
        return None
    folder = models.resolve(reference, "config.init_from").folder
    try:
        return _Start(reference, folder, read_meta(folder))
    except FileNotFoundError:  # deleted meanwhile
        raise NotFound("model", reference) from None
    except CheckpointDamaged:
        raise DataLoss("model", reference, f"model {reference!r} is damaged") from None


def _take_shape(start: _Start, values: dict[str, Any], origin: dict[str, str]) -> list[Violation]:
    """Gives the starting model's shape to the config; names what the caller wants otherwise."""
    shape, found = start.meta.model_config, []
    for key in SHAPE:
        wanted = getattr(shape, key)
        if origin[key] == "request" and values[key] != wanted:
            problem = f"is {wanted} in model {start.reference!r}; leave it unset"
            found.append(Violation(f"config.{key}", problem))
        values[key], origin[key] = wanted, f"model {start.reference}"
    if origin["block_size"] == "default":
        values["block_size"], origin["block_size"] = shape.block_size, f"model {start.reference}"
    elif values["block_size"] > shape.block_size:
        problem = f"must be at most {shape.block_size}, as in model {start.reference!r}"
        found.append(Violation("config.block_size", f"{problem}, got {values['block_size']}"))
    return found


def _vocabulary_violations(start: _Start, dataset: DatasetInfo) -> list[Violation]:
    if start.meta.tokenizer == dataset.meta.tokenizer:
        return []
    ours, theirs = dataset.meta.tokenizer["kind"], start.meta.tokenizer["kind"]
    difference = f"{ours}, not {theirs}" if ours != theirs else "of other characters"
    return [
        Violation(
            "dataset",
            f"its vocabulary ({difference}) is not that of model {start.reference!r}",
        )
    ]


def _memory_violations(
    dataset: DatasetInfo, start: _Start | None, config: TrainConfig
) -> list[Violation]:
    """A run has to fit into the memory of its device, as far as that is known.

    Processes on this machine's processor share its memory, on GPUs each has one of its own. What
    other machines have is not known here.
    """
    if config.launcher != "local":
        return []
    try:
        where = pick_device(config.device)
    except ValueError:  # there is no such device here; the trainer will say so
        return []
    available = total_memory_bytes(where)
    if start is not None:
        shape = replace(start.meta.model_config, block_size=config.block_size)
    else:
        rows = dataset.meta.vocab_size
        is_gpt2 = dataset.meta.tokenizer["kind"] == "gpt2"
        shape = config.model_config(PADDED_GPT2_VOCAB_SIZE if is_gpt2 else rows)
    is_shared = where.type != "cuda"  # MPS has no memory of its own, and takes one process

    def estimate_with(batch_size: int) -> MemoryEstimate:
        return estimate_memory(shape, replace(config, batch_size=batch_size), where)

    def needed_with(batch_size: int) -> int:
        estimate = estimate_with(batch_size)
        return estimate.all_processes if is_shared else estimate.on_gpu

    needed = needed_with(config.batch_size)
    if needed <= available:
        return []
    smallest = config.sequence_shares
    sizes = range(smallest, config.batch_size, smallest)
    fitting = bisect_right(sizes, available, key=needed_with)
    too_large = f"not even {smallest} fits: train a smaller model"
    advice = f"at most {sizes[fitting - 1]} fits" if fitting else too_large
    estimate = estimate_with(config.batch_size)
    num_activations = config.processes if is_shared else 1
    among = f" in {config.processes} processes" if config.processes > 1 and is_shared else ""
    return [
        Violation(
            "config.batch_size",
            f"takes about {needed / 1e9:.1f} GB with block_size {config.block_size}{among}, "
            f"{num_activations * estimate.activations / 1e9:.1f} GB of it for activations; "
            f"this machine has {available / 1e9:.1f} GB; {advice}, got {config.batch_size}; more "
            "gradient_accumulation_steps take the same steps in less memory",
        )
    ]


def _length_violations(dataset: DatasetInfo, config: TrainConfig) -> list[Violation]:
    """A sequence and the token after it have to fit into each split."""
    splits = {"training": dataset.meta.train_tokens, "validation": dataset.meta.val_tokens}
    short = {name: tokens for name, tokens in splits.items() if tokens <= config.block_size}
    if not short:
        return []
    found = " and ".join(f"{tokens} {name}" for name, tokens in short.items())
    return [
        Violation(
            "config.block_size",
            f"must be smaller than each split of the dataset, got {config.block_size}; "
            f"{dataset.name!r} has {found} tokens",
        )
    ]
