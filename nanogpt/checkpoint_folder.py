"""A run's checkpoints: which there are, which is the newest and the best, which are kept.

step_000250/            a checkpoint, see checkpoint.py
step_000250.pinned      empty; while it is there nobody prunes the checkpoint
step_000250.held        the same, as long as the process lives that put it there
"""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from nanogpt import durable
from nanogpt.checkpoint import (
    CheckpointDamaged,
    CheckpointMeta,
    delete_checkpoint,
    no_checkpoint,
    read_meta,
    verify,
)


def step_folder(checkpoints_dir: Path, step: int) -> Path:
    """Where the checkpoint of that step is or will be."""
    return checkpoints_dir / f"step_{step:06d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step_"))


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Folders of checkpoints by step, oldest first, unread; none if there is no such folder."""
    if not checkpoints_dir.exists():
        return []
    return sorted(
        (path for path in checkpoints_dir.iterdir() if re.fullmatch(r"step_\d{6,}", path.name)),
        key=step_of,
    )


def newest_valid(
    checkpoints_dir: Path, on_damaged: Callable[[CheckpointDamaged], None] | None = None
) -> Path | None:
    """The checkpoint of a run that is whole and was written last, or None.

    `on_damaged` hears of those passed over.
    """
    found: list[tuple[tuple[int, int], Path]] = []
    for folder in list_checkpoints(checkpoints_dir):
        try:
            meta = read_meta(folder)
            found.append((meta.written_order, folder))
        except (CheckpointDamaged, FileNotFoundError) as error:
            if on_damaged is not None and isinstance(error, CheckpointDamaged):
                on_damaged(error)
    for _, folder in sorted(found, reverse=True):
        try:
            verify(folder)
            return folder
        except CheckpointDamaged as error:
            if on_damaged is not None:
                on_damaged(error)
    return None


def best_checkpoint(checkpoints_dir: Path) -> Path | None:
    """The checkpoint on disk of `best_step`. Tensors are not read."""
    metas: list[CheckpointMeta] = []
    for folder in list_checkpoints(checkpoints_dir):
        with suppress(CheckpointDamaged, FileNotFoundError):
            metas.append(read_meta(folder))
    step = best_step(metas)
    return None if step is None else step_folder(checkpoints_dir, step)


def best_step(metas: Collection[CheckpointMeta]) -> int | None:
    """Step of the checkpoint of a run that had its lowest validation loss when it was written.

    None if there is none, or none that tells. The one of the lowest loss ever may be missing: no
    room on the disk. One above the best that the newest knows of does not count: the run has gone
    back behind it, though somebody may have pinned it.
    """
    newest = max(metas, key=lambda meta: meta.written_order, default=None)
    if newest is None or newest.best_step is None:
        return None
    limit = newest.best_step
    return max((meta.step for meta in metas if meta.is_best and meta.step <= limit), default=None)


def prune_checkpoints(
    checkpoints_dir: Path, step: int, keep: int, keep_steps: Collection[int] = ()
) -> None:
    """Deletes checkpoints up to `step`, but for the newest `keep` and those that are needed.

    Needed are pinned and held ones, those of `keep_steps`, and the best on disk: even if a better
    one could not be written. One that cannot be deleted stays, and is tried again next time.
    A newer one than `step` can only be damaged, since the run went on from an older: it is replaced
    when the run gets there.
    """
    best = best_checkpoint(checkpoints_dir)
    past = [folder for folder in list_checkpoints(checkpoints_dir) if step_of(folder) <= step]
    for folder in past[:-keep]:
        if folder != best and step_of(folder) not in keep_steps:
            _remove_unless_kept(folder)


def drop_newer(checkpoints_dir: Path, step: int) -> None:
    """Deletes checkpoints after `step`, but for pinned and held ones: the run has gone back."""
    for folder in reversed(list_checkpoints(checkpoints_dir)):
        if step_of(folder) > step:
            _remove_unless_kept(folder)


def _remove_unless_kept(folder: Path) -> None:
    if not _is_kept(folder):
        with suppress(OSError):
            delete_checkpoint(folder, unless=_is_kept)


def pin_checkpoint(folder: Path) -> None:
    """Keeps a checkpoint from being pruned, also by a trainer that is about to.

    Raises FileNotFoundError if there is no such checkpoint.
    """
    durable.write_file(_pin_of(folder), b"")
    _require_beside(_pin_of(folder), folder)


def unpin_checkpoint(folder: Path) -> None:
    """Lets a checkpoint go again; the next pruning may delete it."""
    _pin_of(folder).unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    """Whether a checkpoint is kept until it is unpinned."""
    return _pin_of(folder).exists()


def hold_checkpoint(folder: Path) -> None:
    """Keeps a checkpoint from being pruned while its weights are in use.

    Raises FileNotFoundError if there is no such checkpoint.
    """
    _hold_of(folder).touch()  # no flush: it need not survive the process
    _require_beside(_hold_of(folder), folder)


def release_checkpoint(folder: Path) -> None:
    """Lets a checkpoint go that was held."""
    _hold_of(folder).unlink(missing_ok=True)


def release_checkpoints(checkpoints_dir: Path) -> None:
    """Lets all go that a process held which has died."""
    for hold in checkpoints_dir.glob("step_*.held"):
        hold.unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether somebody uses a checkpoint's weights."""
    return _hold_of(folder).exists()


def _pin_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.pinned")


def _hold_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.held")


def _require_beside(mark: Path, folder: Path) -> None:
    """Takes a new mark back, and raises, if the checkpoint was pruned before it could be seen."""
    if not folder.exists():
        mark.unlink(missing_ok=True)
        raise no_checkpoint(folder)


def _is_kept(folder: Path) -> bool:
    return is_pinned(folder) or is_held(folder)
