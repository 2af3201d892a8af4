"""Checkpoints: weights on disk that are whole or refused.

    step_000250/model.safetensors   weights by nanoGPT's names, the tied one stored once
                state.safetensors   what else a trainer needs to go on; absent in a model
                meta.json           shape, tokenizer, losses, size and SHA-256 of each file, its own

A checkpoint is written beside its place, flushed to the disk and then renamed, so a kill or a power
cut at any moment leaves the previous ones whole. Nothing here is a pickle: reading runs no code.
It does not know what a trainer keeps in its state, nor when checkpoints are written.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanogpt import durable
from nanogpt.config import ModelConfig
from nanogpt.ensemble import Network, make_network

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
META_FILE = "meta.json"

# one tensor under two names (model.py), unless a model has two: then the first is stored too. Names
# of an ensemble's members have a prefix
TIED, TIED_TO = "lm_head.weight", "transformer.wte.weight"

_DIGEST = "meta_sha256"
"""Key in meta.json: SHA-256 of the file as it would be without this key."""

# names of folders that are not checkpoints yet, or no longer
_WRITING, _DELETING = ".writing-", ".deleting-"


class CheckpointDamaged(ValueError):
    """A file of a checkpoint is missing or not what was written. Names no folder above it."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointMeta:
    """All about a checkpoint but its tensors. Losses are in nats, times seconds since 1970."""

    step: int
    model_config: ModelConfig
    tokenizer: dict[str, Any]
    val_loss: float | None = None
    """Of the latest evaluation."""
    best_val_loss: float | None = None
    """Lowest of the run so far, and the step where it was measured."""
    best_step: int | None = None
    create_time: float = 0.0
    job_id: str = ""
    rollbacks: int = 0
    """How often the run had gone back to an earlier checkpoint before it wrote this one."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    train: dict[str, Any] | None = None
    """The trainer's own state, as JSON. None in a model."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the checkpoint's tensors on disk."""
        return sum(record.size_bytes for record in self.files.values())

    @property
    def written_order(self) -> tuple[int, int]:
        """Grows from one checkpoint of a run to the next: after going back a run writes lower steps
        than it had written before."""
        return self.rollbacks, self.step

    @property
    def is_best(self) -> bool:
        """Whether it has the lowest validation loss of the run up to its step."""
        return self.best_step == self.step


def save_checkpoint(
    folder: Path,
    meta: CheckpointMeta,
    model_state: dict[str, Tensor],
    train_state: dict[str, Tensor] | None,
) -> CheckpointMeta:
    """Writes a checkpoint and returns its meta with `files` filled in.

    Replaces what is at `folder`. Raises OSError if the disk refuses; nothing has changed then.
    """
    if not meta.model_config.is_modern:
        for name, embedding in _tied(model_state).items():
            if not torch.equal(model_state.get(name, embedding), embedding):
                raise ValueError(f"{TIED} must equal {TIED_TO}: the two are one tensor")
    weights = stored_weights(meta.model_config, model_state)
    with _new_folder(folder) as new:
        records = {MODEL_FILE: _write_tensors(new / MODEL_FILE, weights)}
        if train_state is not None:
            records[STATE_FILE] = _write_tensors(new / STATE_FILE, train_state)
        meta = replace(meta, files=records)
        write_meta(new, meta)
    return meta


def stored_weights(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a checkpoint has: a tied one under the name that it is tied to."""
    if config.is_modern:
        return state
    return {name: tensor for name, tensor in state.items() if not name.endswith(TIED)}


def _tied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The token embeddings, by the names of the heads that are tied to them."""
    return {
        name.removesuffix(TIED_TO) + TIED: tensor
        for name, tensor in state.items()
        if name.endswith(TIED_TO)
    }


def write_meta(folder: Path, meta: CheckpointMeta) -> None:
    """Replaces the meta of a checkpoint at once; its tensors stay."""
    values = asdict(meta)
    text = _to_json({**values, _DIGEST: _digest(values)})
    durable.write_file(folder / META_FILE, text.encode())


def publish_model(checkpoint: Path, model_folder: Path) -> None:
    """Makes a model of a checkpoint's weights, sharing the file where the disk allows it.

    Replaces what is at `model_folder`. Raises CheckpointDamaged.
    """
    meta = read_meta(checkpoint)
    _verify_file(checkpoint, meta, MODEL_FILE)
    with _new_folder(model_folder) as new:
        try:
            os.link(checkpoint / MODEL_FILE, new / MODEL_FILE)
        except OSError:  # another file system, or one without links
            shutil.copyfile(checkpoint / MODEL_FILE, new / MODEL_FILE)
        files = {MODEL_FILE: meta.files[MODEL_FILE]}
        write_meta(new, replace(meta, files=files, train=None))


def read_meta(folder: Path) -> CheckpointMeta:
    """All about a checkpoint but its tensors.

    Raises FileNotFoundError if there is no such checkpoint, CheckpointDamaged if it is not whole.
    """
    try:
        values = json.loads((folder / META_FILE).read_bytes())
        # checkpoints of before there was a digest have none
        if values.pop(_DIGEST, None) not in (None, _digest(values)):
            raise ValueError("its SHA-256 differs")
        values["model_config"] = ModelConfig(**values["model_config"])
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        return CheckpointMeta(**values)
    except FileNotFoundError as error:
        raise _missing(folder, META_FILE) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON errors are values
        raise CheckpointDamaged(f"{folder.name}/{META_FILE} is damaged") from error


def load_model_state(folder: Path) -> dict[str, Tensor]:
    """Weights by nanoGPT's names, on the CPU; a tied one is one tensor under both its names.

    Raises FileNotFoundError if there is no such checkpoint, CheckpointDamaged if it is not whole.
    """
    state = _read_tensors(folder, MODEL_FILE)
    if not (tied := _tied(state)):
        raise CheckpointDamaged(f"{folder.name}/{MODEL_FILE} has no {TIED_TO}")
    return {**tied, **state}


def load_train_state(folder: Path) -> dict[str, Tensor]:
    """The trainer's tensors, on the CPU. Raises as `load_model_state`; a model has none."""
    return _read_tensors(folder, STATE_FILE)


def load_model(folder: Path, device: torch.device | str = "cpu") -> Network:
    """The network in eval mode, float32. Raises as `load_model_state`."""
    config, state = read_meta(folder).model_config, load_model_state(folder)
    try:
        model = build_model(config, state)
    except ValueError as error:
        raise CheckpointDamaged(f"{folder.name}: {error}") from error
    return model.to(device).eval()


def build_model(config: ModelConfig, state: dict[str, Tensor]) -> Network:
    """A network with these weights, float32. Raises ValueError if they are of another shape."""
    # copied, so that they no longer depend on a file that is mapped into memory
    stored = stored_weights(config, state)
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.items()}
    if not config.is_modern:
        weights |= _tied(weights)
    with torch.device("meta"), _ShapesOnly():
        model = make_network(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # names each weight that differs, in dozens of lines
        raise ValueError("the weights do not have the stated shape") from error
    model.tie()
    return model


class _ShapesOnly(TorchFunctionMode):
    """Draws no first weights, which would be overwritten: even without memory behind them it takes
    PyTorch two seconds to begin, since it then imports its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def verify(folder: Path) -> CheckpointMeta:
    """Reads every file of a checkpoint and returns its meta. Raises as `load_model_state`."""
    meta = read_meta(folder)
    for name in meta.files:
        _verify_file(folder, meta, name)
    return meta


def no_checkpoint(folder: Path) -> FileNotFoundError:
    """What is raised where there is none."""
    return FileNotFoundError(f"there is no checkpoint {folder.name}")


def sweep_unfinished(parent: Path) -> None:
    """Deletes what an interrupted write or delete left in a folder of checkpoints or models."""
    for path in parent.glob(".*"):
        if path.name.startswith((_WRITING, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that gets the name `folder` after the block, or vanishes if that raises."""
    new = folder.with_name(_WRITING + folder.name)
    shutil.rmtree(new, ignore_errors=True)
    is_first = not new.parent.exists()
    new.mkdir(parents=True)
    if is_first:
        durable.sync_folder(new.parent.parent)
    try:
        yield new
        for path in new.iterdir():
            durable.sync_file(path)
        durable.sync_folder(new)
        if folder.exists():
            delete_checkpoint(folder)  # a name cannot be given to a folder while another one has it
        durable.rename(new, folder)
        durable.sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def delete_checkpoint(folder: Path, unless: Callable[[Path], bool] = lambda folder: False) -> None:
    """Takes a folder's name away at once, then deletes it; the rest is swept if that fails.

    Gives the name back if `unless` has become true of the folder meanwhile. Raises
    FileNotFoundError if there is no such folder.
    """
    deleting = folder.with_name(_DELETING + folder.name)
    shutil.rmtree(deleting, ignore_errors=True)
    durable.rename(folder, deleting)
    if unless(folder):
        durable.rename(deleting, folder)
        return
    shutil.rmtree(deleting, ignore_errors=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:  # whose text only has what the disk said, as that it is full
        said = re.search(r"os error (\d+)", str(error))
        number = int(said[1]) if said else errno.EIO
        raise OSError(number, f"{path.name} cannot be written: {error}") from error
    return _record(path)


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    _verify_file(folder, read_meta(folder), name)
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise CheckpointDamaged(f"{folder.name}/{name} is damaged") from error


def _verify_file(folder: Path, meta: CheckpointMeta, name: str) -> None:
    if name not in meta.files:
        raise CheckpointDamaged(f"{folder.name} has no {name}")
    try:
        found = _record(folder / name)
    except FileNotFoundError as error:
        raise _missing(folder, name) from error
    if found != meta.files[name]:
        raise CheckpointDamaged(f"{folder.name}/{name} is damaged: its SHA-256 differs")


def _to_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(_to_json(values).encode()).hexdigest()


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(digest, path.stat().st_size)


def _missing(folder: Path, name: str) -> Exception:
    if folder.exists():
        return CheckpointDamaged(f"{folder.name}/{name} is missing")
    return no_checkpoint(folder)
