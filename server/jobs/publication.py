"""Makes a model of what a finished run has left. It knows run directories, but no jobs."""

from pathlib import Path

from nanogpt.checkpoint import CheckpointDamaged, publish_model, read_meta
from nanogpt.checkpoint_folder import best_checkpoint, newest_valid
from nanogpt.training.run_directory import RunDirectory
from server.errors import DataLoss


class NameTaken(Exception):
    """The model's folder holds a model of another origin."""


def publish_best(run: RunDirectory, job_id: str, model_folder: Path) -> None:
    """Publishes the checkpoint of the lowest validation loss, or the last if that one is damaged.

    Done already is done: a server that died after publishing may call it again. Raises NameTaken,
    DataLoss if no checkpoint is whole, OSError.
    """
    if model_folder.exists():
        if _origin(model_folder) != job_id:
            raise NameTaken(model_folder.name)
        return
    newest = newest_valid(run.checkpoints_path)
    if newest is None:
        raise DataLoss("checkpoint", job_id, f"no checkpoint of job {job_id} is whole")
    try:
        publish_model(best_checkpoint(run.checkpoints_path) or newest, model_folder)
    except (CheckpointDamaged, FileNotFoundError):
        publish_model(newest, model_folder)


def _origin(model_folder: Path) -> str | None:
    """The job that trained a model; None if that cannot be told."""
    try:
        return read_meta(model_folder).job_id
    except (CheckpointDamaged, FileNotFoundError):
        return None
