"""The models on disk: `models/NAME/`, and the checkpoints below `runs/ID/checkpoints/`.

Finds, describes, deletes and imports them. Everything here reads or writes files and is meant to
run off the event loop. It does not know which models are in memory.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from nanogpt.checkpoint import (
    META_FILE,
    CheckpointDamaged,
    CheckpointMeta,
    read_meta,
    save_checkpoint,
    sweep_unfinished,
)
from nanogpt.checkpoint_folder import list_checkpoints, step_folder, step_of
from nanogpt.config import ModelConfig
from nanogpt.interop.hugging_face import import_hugging_face
from nanogpt.interop.nanogpt_checkpoint import import_nanogpt
from nanogpt.option import InvalidConfig, Violation
from nanogpt.tokenizer import Tokenizer, tokenizer_from_json
from nanogpt.training.run_directory import RunDirectory
from server.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound, Unavailable
from server.models.holds import Holds
from server.models.reference import JOB, ModelReference, parse_reference
from server.names import is_name

logger = logging.getLogger(__name__)

IMPORTERS: dict[str, Callable[[Path], tuple[ModelConfig, dict[str, Tensor]]]] = {
    "hugging_face": import_hugging_face,
    "nanogpt": lambda folder: import_nanogpt(folder / "ckpt.pt"),
}


@dataclass(frozen=True, slots=True, order=True)
class Written:
    """When in its run a checkpoint was written. A run that goes back writes lower steps than it
    had written before, and then some of these again."""

    rollbacks: int
    """See CheckpointMeta; -1 if they cannot be read, as if it were older than all others."""
    step: int
    create_time: float

    def is_as_new_as(self, other: "Written") -> bool:
        """Whether it is the same checkpoint, or a later one; of two of a step neither is later."""
        # the checkpoint that a run goes back to gets another number of rollbacks, not other weights
        if (self.step, self.create_time) == (other.step, other.create_time):
            return True
        return (self.rollbacks, self.step) > (other.rollbacks, other.step)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a reference leads at this moment."""

    reference: str
    """Canonical: `NAME`, `NAME@STEP`, `job:ID` or `job:ID@STEP`; never empty."""
    name: str
    """The model's name; of a job, the name that its model will have."""
    folder: Path
    written: Written | None = None
    """None unless it is a job that the reference names."""

    @property
    def is_final(self) -> bool:
        """Whether the reference leads to the same weights for ever; those of a job move on."""
        return self.written is None

    @property
    def is_newest(self) -> bool:
        """Whether the reference is `job:ID`, which leads to the newest checkpoint."""
        return self.reference.startswith(JOB) and "@" not in self.reference

    def is_as_new_as(self, other: "ModelRef") -> bool:
        """Whether these weights are not older than those of another look at the reference."""
        if self.written is None or other.written is None:
            return True
        return self.written.is_as_new_as(other.written)


class ModelCatalog:
    """What lies below a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._models = data_dir / "models"
        self._runs = data_dir / "runs"
        self._imports = data_dir / "imports"
        self._models.mkdir(parents=True, exist_ok=True)
        sweep_unfinished(self._models)
        self._holds = Holds(self._runs)

    def resolve(self, reference: str, field: str = "model") -> ModelRef:
        """Where `reference`, the request's `field`, leads. Raises InvalidArgument, NotFound,
        DataLoss."""
        wanted = parse_reference(reference, field)
        if wanted.job_id is not None:
            return self._checkpoint_of_job(wanted.job_id, wanted.step)
        if wanted.name is None:
            return self._newest()
        folder = self._folder(wanted.name)
        if wanted.step is not None:
            folder = self._folder_of_step(wanted)
        return ModelRef(str(wanted), wanted.name, folder)

    def find(self, reference: str, field: str = "model") -> tuple[ModelRef, CheckpointMeta]:
        """Where `reference` leads, and all about it but its weights. Raises as `resolve`."""
        ref = self.resolve(reference, field)
        return ref, self.read(ref)

    def read(self, ref: ModelRef) -> CheckpointMeta:
        """All about a model but its weights. Raises NotFound, DataLoss."""
        try:
            return read_meta(ref.folder)
        except FileNotFoundError:
            raise NotFound("model", ref.reference) from None
        except CheckpointDamaged as error:
            raise damaged(ref, error) from None

    @contextmanager
    def kept(self, ref: ModelRef) -> Iterator[None]:
        """Keeps the files of one checkpoint of a run meanwhile, also from its trainer.

        The newest of a job gives way to newer ones. Raises NotFound if it is gone.
        """
        if ref.is_newest or not ref.folder.is_relative_to(self._runs):
            yield
            return
        try:
            self._holds.take(ref.folder)
        except FileNotFoundError:
            raise NotFound("checkpoint", ref.reference) from None
        try:
            yield
        finally:
            self._holds.give_back(ref.folder)

    def list(self) -> list[tuple[ModelRef, CheckpointMeta]]:
        """Every model, newest first. Damaged ones are left out and logged."""
        found = []
        for folder in self._models.iterdir():
            if is_name(folder.name):
                try:
                    found.append((ModelRef(folder.name, folder.name, folder), read_meta(folder)))
                except FileNotFoundError:  # deleted meanwhile
                    continue
                except CheckpointDamaged as error:
                    logger.warning("model %s is left out: %s", folder.name, error)
        return sorted(found, key=lambda model: model[1].create_time, reverse=True)

    def has(self, name: str) -> bool:
        """Whether the name of a model is taken, whole or damaged."""
        return is_name(name) and (self._models / name).exists()

    def delete(self, name: str) -> None:
        """Deletes a model, damaged or not. Raises NotFound."""
        # renamed first: a reader sees the whole model or none; the next start sweeps what is left
        deleting = self._models / f".deleting-{name}"
        shutil.rmtree(deleting, ignore_errors=True)
        try:
            self._folder(name).rename(deleting)
        except FileNotFoundError:  # another call was faster
            raise NotFound("model", name) from None
        shutil.rmtree(deleting, ignore_errors=True)

    def import_model(
        self,
        name: str,
        source: str,
        format: str,
        tokenizer: Tokenizer,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """Makes model `name` of the files in imports/`source`, of a format in IMPORTERS.

        Raises NotFound if there is no such folder, AlreadyExists, InvalidArgument if the files
        cannot be used with this tokenizer, Unavailable if `alive` no longer holds before it reads
        or writes.
        """
        _require(alive)
        files, folder = self._imports / source, self._models / name
        if not files.is_dir():
            raise NotFound("import", source, f"there is no folder {source!r} below imports/")
        if folder.exists():
            raise AlreadyExists("model", name)
        try:
            config, state = IMPORTERS[format](files)
        except ValueError as error:  # its text is written for the caller
            raise InvalidArgument([Violation("source", str(error))]) from None
        if tokenizer.vocab_size > config.vocab_size:
            problem = (
                f"its tokenizer has {tokenizer.vocab_size} tokens, "
                f"the files are those of a model of {config.vocab_size}"
            )
            raise InvalidArgument([Violation("dataset", problem)])
        meta = CheckpointMeta(
            step=0, model_config=config, tokenizer=tokenizer.to_json(), create_time=time.time()
        )
        _require(alive)
        save_checkpoint(folder, meta, state, None)

    def _folder(self, name: str) -> Path:
        folder = self._models / name
        if not folder.is_dir():
            raise NotFound("model", name)
        return folder

    def _folder_of_step(self, wanted: ModelReference) -> Path:
        """Folder of one checkpoint of the job that trained a model."""
        assert wanted.name is not None and wanted.step is not None
        model = self._folder(wanted.name)
        meta = self.read(ModelRef(wanted.name, wanted.name, model))
        if meta.step == wanted.step:
            return model
        checkpoints = RunDirectory(self._runs / meta.job_id).checkpoints_path
        known = list_checkpoints(checkpoints) if is_name(meta.job_id) else []
        folder = step_folder(checkpoints, wanted.step)
        if folder not in known:
            raise _no_step(wanted, {meta.step, *map(step_of, known)})
        return folder

    def _checkpoint_of_job(self, job_id: str, step: int | None = None) -> ModelRef:
        """That of a step, or the newest."""
        wanted = ModelReference(job_id=job_id, step=step)
        run = RunDirectory(self._runs / job_id)
        if not run.path.is_dir():
            raise NotFound("job", job_id)
        checkpoints = list_checkpoints(run.checkpoints_path)
        if not checkpoints:
            raise NotFound("checkpoint", str(wanted), f"job {job_id!r} has no checkpoint yet")
        if step is None:
            step = max(map(_written, checkpoints)).step
        folder = step_folder(run.checkpoints_path, step)
        if folder not in checkpoints:
            raise _no_step(wanted, set(map(step_of, checkpoints)))
        try:
            name = run.read_spec().model
        except InvalidConfig:
            raise DataLoss("job", job_id, f"spec.json of job {job_id!r} is damaged") from None
        return ModelRef(str(wanted), name, folder, _written(folder))

    def _newest(self) -> ModelRef:
        made: dict[Path, float] = {}
        for folder in self._models.iterdir():
            if is_name(folder.name):
                with suppress(FileNotFoundError, CheckpointDamaged):
                    _, made[folder] = _age(folder)
        if made:
            folder = max(made, key=made.__getitem__)
            return ModelRef(folder.name, folder.name, folder)
        if self._runs.is_dir():
            for job_id in sorted(filter(is_name, os.listdir(self._runs)), reverse=True):
                if list_checkpoints(RunDirectory(self._runs / job_id).checkpoints_path):
                    return self._checkpoint_of_job(job_id)
        raise NotFound("model", "", "there is no model yet: train one, or import one")


def _require(alive: Callable[[], bool]) -> None:
    if not alive():
        raise Unavailable("the server is stopping; try another one, or later")


def _written(folder: Path) -> Written:
    """When a checkpoint was written."""
    try:
        rollbacks, create_time = _age(folder)
    except (FileNotFoundError, CheckpointDamaged):
        rollbacks, create_time = -1, 0.0
    return Written(rollbacks, step_of(folder), create_time)


def _age(folder: Path) -> tuple[int, float]:
    """Rollbacks and time of creation of a model or checkpoint. Takes as long as a look at a file,
    unless it is new. Raises FileNotFoundError, CheckpointDamaged."""
    meta_file = (folder / META_FILE).stat()
    return _read_age(folder, meta_file.st_ino, meta_file.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_age(folder: Path, inode: int, changed_ns: int) -> tuple[int, float]:
    """As `_age`, remembered for one state of the file."""
    meta = read_meta(folder)
    return meta.rollbacks, meta.create_time


def _no_step(wanted: ModelReference, steps: set[int]) -> NotFound:
    owner = f"model {wanted.name!r}" if wanted.job_id is None else f"job {wanted.job_id!r}"
    there_are = ", ".join(map(str, sorted(steps)))
    return NotFound(
        "checkpoint",
        str(wanted),
        f"{owner} has no checkpoint of step {wanted.step}; there are {there_are}",
    )


def damaged(ref: ModelRef, error: CheckpointDamaged) -> DataLoss:
    """What callers are told of a damaged checkpoint: base names only."""
    return DataLoss("model", ref.reference, f"model {ref.reference} is damaged: {error}")


def tokenizer_of(ref: ModelRef, meta: CheckpointMeta) -> Tokenizer:
    """The tokenizer that a model was trained with. Raises DataLoss."""
    try:
        return tokenizer_from_json(meta.tokenizer)
    except ValueError:
        raise damaged(ref, CheckpointDamaged("its tokenizer is not known")) from None
