"""Checkpoints of jobs on disk: which there are, which are kept, and which may go.

The trainer prunes its own, in its own process, at any moment: so a pin is a file that it sees, and
a listing that meets a vanishing checkpoint begins anew. What a running trainer needs to go on is
never deleted here, nor what is in use as a model.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from nanogpt.checkpoint import CheckpointDamaged, CheckpointMeta, delete_checkpoint, read_meta
from nanogpt.checkpoint_folder import (
    best_checkpoint,
    best_step,
    is_held,
    is_pinned,
    list_checkpoints,
    newest_valid,
    pin_checkpoint,
    step_folder,
    step_of,
    unpin_checkpoint,
)
from server.errors import FailedPrecondition, NotFound

logger = logging.getLogger(__name__)

LISTINGS = 20
"""How often a listing begins anew before it takes what it has: trainers write once in seconds."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint, and what keeps it."""

    meta: CheckpointMeta
    is_best: bool
    is_pinned: bool
    is_loaded: bool


class Checkpoints:
    """The checkpoints of one job. Every method reads the disk: call them off the event loop."""

    def __init__(self, job_id: str, folder: Path, loaded: Set[Path]) -> None:
        """`loaded` has the folders that are loaded as models."""
        self._job_id = job_id
        self._folder = folder
        self._loaded = loaded

    def infos(self) -> list[CheckpointInfo]:
        """Newest first; damaged ones are left out and logged."""
        for _ in range(LISTINGS):
            metas, vanished = self._read()
            if not vanished:  # else a newer one has taken the place of what was pruned
                break
        best = best_step(metas)
        return [self._info(meta, best) for meta in metas]

    def pin(self, step: int, pinned: bool) -> CheckpointInfo:
        """The checkpoint, kept until it is unpinned or kept no longer. Raises NotFound."""
        folder = self._find(step)
        try:
            if pinned:
                pin_checkpoint(folder)
            else:
                unpin_checkpoint(folder)
        except FileNotFoundError:
            raise self._missing(step) from None
        for info in self.infos():
            if info.meta.step == step:
                return info
        raise self._missing(step)  # damaged, or pruned as soon as it was unpinned

    def delete(self, step: int, is_unfinished: bool) -> None:
        """Deletes a checkpoint. Raises NotFound, FailedPrecondition if something keeps it.

        An unfinished job needs its newest whole checkpoint to go on and its best one to become its
        model.
        """
        folder = self._find(step)
        if is_pinned(folder):
            raise self._kept("checkpoint_pinned", step, "is pinned; unpin it first")
        if folder in self._loaded or is_held(folder):
            raise self._kept("model_loaded", step, "is in use as a model; unload that first")
        if is_unfinished and step in self._needed():
            raise self._kept("checkpoint_needed", step, "is needed: the job has not ended")
        try:
            delete_checkpoint(folder)
        except FileNotFoundError:  # the trainer was faster
            raise self._missing(step) from None

    def _read(self) -> tuple[list[CheckpointMeta], bool]:
        """Metas, newest first, and whether a checkpoint vanished meanwhile."""
        found: list[CheckpointMeta] = []
        vanished = False
        for folder in list_checkpoints(self._folder):
            try:
                found.append(read_meta(folder))
            except FileNotFoundError:
                vanished = True
            except CheckpointDamaged as error:
                logger.warning("a checkpoint is left out: %s", error)
        found.sort(key=lambda meta: meta.written_order, reverse=True)
        return found, vanished

    def _info(self, meta: CheckpointMeta, best: int | None) -> CheckpointInfo:
        folder = step_folder(self._folder, meta.step)
        return CheckpointInfo(
            meta,
            is_best=meta.step == best,
            is_pinned=is_pinned(folder),
            is_loaded=folder in self._loaded,
        )

    def _needed(self) -> set[int]:
        while True:
            try:
                newest = newest_valid(self._folder)
                break
            except FileNotFoundError:  # pruned meanwhile in favour of a newer one
                continue
        needed = (newest, best_checkpoint(self._folder))
        return {step_of(folder) for folder in needed if folder is not None}

    def _find(self, step: int) -> Path:
        folder = step_folder(self._folder, step)
        if step < 0 or not folder.is_dir():
            raise self._missing(step)
        return folder

    def _missing(self, step: int) -> NotFound:
        name = f"{self._job_id}@{step}"
        return NotFound("checkpoint", name, f"job {self._job_id} has no checkpoint of step {step}")

    def _kept(self, kind: str, step: int, why: str) -> FailedPrecondition:
        name = f"{self._job_id}@{step}"
        return FailedPrecondition(kind, name, f"checkpoint {step} of job {self._job_id} {why}")
