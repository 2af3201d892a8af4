"""Writes a run's checkpoints in the background.

The run waits while its state is copied to host memory, and for the write before if that is not done
yet; hashing, flushing and deleting old checkpoints happen in a thread. Events of the steps in
between are held back (report.py), so that a checkpoint's event keeps its place in the record.
It does not know when checkpoints are due, nor what the state means.
"""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from nanogpt import checkpoint, checkpoint_folder
from nanogpt.checkpoint import CheckpointMeta
from nanogpt.training.events import CheckpointWritten
from nanogpt.training.report import Report
from nanogpt.training.world import World


@dataclass(frozen=True, slots=True)
class _Write:
    """A write that is under way."""

    meta: CheckpointMeta
    announce: bool
    waited_seconds: float
    started: float
    outcome: Future[CheckpointMeta]


class CheckpointWriter:
    """One checkpoint at a time; a full disk costs that checkpoint and nothing else."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        report: Report,
        log: Callable[[str], None],
        world: World | None = None,
    ) -> None:
        """Keeps the newest `keep` checkpoints in `folder` beside those that are needed.

        The processes of a `world` save together; the first one writes.
        """
        self._folder, self._keep = folder, keep
        self._world = world or World()
        self._report, self._log = report, log
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._write: _Write | None = None
        self._buffers: dict[str, Tensor] = {}
        self.saved: CheckpointMeta | None = None
        """The newest checkpoint on disk."""

    def save(
        self,
        meta: CheckpointMeta,
        state: Callable[[], tuple[dict[str, Tensor], dict[str, Tensor]]],
        *,
        keep_steps: Collection[int],
        announce: bool = True,
    ) -> None:
        """Starts to write a checkpoint, or only its meta if that step has one already.

        `state` gives weights and trainer's tensors; they may change as soon as this returns. The
        checkpoints of `keep_steps` are not deleted. `announce` makes an event of it.
        """
        started = time.perf_counter()
        self.wait_quietly()
        saved, copies = self.saved, None
        if saved is not None and saved.step != meta.step:
            saved = None
        if self._world.of_first(saved is None):
            weights, tensors = state()
            weights = checkpoint.stored_weights(meta.model_config, weights)
            copies = self._copy(weights, "weights."), self._copy(tensors, "state.")
        if not self._world.is_first:
            return
        if saved is not None:
            meta = replace(meta, files=saved.files, create_time=saved.create_time)
        self._report.hold()
        waited = time.perf_counter() - started
        outcome = self._thread.submit(self._commit, meta, copies, keep_steps)
        self._write = _Write(meta, announce, waited, time.perf_counter(), outcome)

    def poll(self) -> None:
        """Takes note of a write that is done. Never waits."""
        if self._write is not None and self._write.outcome.done():
            self.wait_quietly()

    def wait(self) -> None:
        """Waits until the checkpoint is on disk. Raises OSError if it could not be written."""
        if self._write is None:
            return
        write, self._write = self._write, None
        try:
            meta = write.outcome.result()
        except BaseException:
            self._report.release(None, 0)
            raise
        self.saved = meta
        self._log(
            f"step {meta.step}: checkpoint of {meta.size_bytes:,} bytes, written in "
            f"{time.perf_counter() - write.started:.2f} s, waited {write.waited_seconds:.3f} s"
        )
        self._report.release(written(meta) if write.announce else None, meta.rollbacks)

    def wait_quietly(self) -> None:
        """Waits; a checkpoint that could not be written is a line in the log."""
        step = 0 if self._write is None else self._write.meta.step
        try:
            self.wait()
        except OSError as error:
            self._log(f"step {step}: no checkpoint: {error}")

    def _commit(
        self,
        meta: CheckpointMeta,
        copies: tuple[dict[str, Tensor], dict[str, Tensor]] | None,
        keep_steps: Collection[int],
    ) -> CheckpointMeta:
        """In the thread: all that touches the disk."""
        self._report.sync()  # a run that resumes from here does not repeat what came before
        folder = checkpoint_folder.step_folder(self._folder, meta.step)
        if copies is not None:
            meta = checkpoint.save_checkpoint(folder, meta, *copies)
        elif not _differ_in_duration_only(meta, self.saved):
            checkpoint.write_meta(folder, meta)
        checkpoint_folder.prune_checkpoints(self._folder, meta.step, self._keep, keep_steps)
        return meta

    def _copy(self, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Copies on the host, in memory that is used again for the next checkpoint."""
        copies = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(prefix + name)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
                )
                self._buffers[prefix + name] = buffer
            copies[name] = buffer.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            torch.accelerator.synchronize()
        return copies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait_quietly()
        self._thread.shutdown()


def written(meta: CheckpointMeta) -> CheckpointWritten:
    """The event of a checkpoint."""
    return CheckpointWritten(
        meta.step, meta.val_loss, meta.is_best, meta.size_bytes, meta.create_time
    )


def _differ_in_duration_only(meta: CheckpointMeta, other: CheckpointMeta | None) -> bool:
    """Time passes also for a run that is over: no reason to write."""

    def without_duration(found: CheckpointMeta) -> tuple[CheckpointMeta, dict[str, Any]]:
        return replace(found, train=None), {**(found.train or {}), "seconds": 0.0}

    return other is not None and without_duration(meta) == without_duration(other)
