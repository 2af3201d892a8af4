"""Checkpoints of jobs, of files only: no trainer runs, except one that is played by a thread."""

import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from nanogpt import durable
from nanogpt.checkpoint import CheckpointMeta, FileRecord, write_meta
from nanogpt.checkpoint_folder import (
    hold_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    release_checkpoint,
    step_folder,
)
from nanogpt.config import ModelConfig
from server.errors import FailedPrecondition, NotFound
from server.jobs.checkpoints import Checkpoints

SHAPE = ModelConfig(block_size=16, vocab_size=32, n_layer=1, n_head=1, n_embd=8)
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def write(folder: Path, step: int, best_step: int | None = None, rollbacks: int = 0) -> None:
    """A checkpoint that is whole, with an empty file for its weights."""
    new = folder / f".writing-{step}"
    new.mkdir(parents=True)
    (new / "model.safetensors").write_bytes(b"")
    record = FileRecord(EMPTY_SHA256, 0)
    meta = CheckpointMeta(
        step,
        SHAPE,
        {"kind": "char"},
        best_step=best_step,
        rollbacks=rollbacks,
        files={"model.safetensors": record},
    )
    write_meta(new, meta)
    new.rename(step_folder(folder, step))


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        write(tmp_path, step, best_step=20)
    return tmp_path


def test_all_are_listed_with_what_keeps_them(folder: Path) -> None:
    checkpoints = Checkpoints("j", folder, {step_folder(folder, 10)})
    checkpoints.pin(30, True)
    found = [(i.meta.step, i.is_best, i.is_pinned, i.is_loaded) for i in checkpoints.infos()]
    assert found == [
        (30, False, True, False),
        (20, True, False, False),
        (10, False, False, True),
    ]
    assert Checkpoints("j", folder / "none", set()).infos() == []


def test_what_the_run_went_back_behind_is_neither_newest_nor_best(tmp_path: Path) -> None:
    write(tmp_path, 10, best_step=10, rollbacks=1)
    write(tmp_path, 20, best_step=10, rollbacks=1)
    write(tmp_path, 30, best_step=30)
    infos = Checkpoints("j", tmp_path, set()).infos()
    assert [(i.meta.step, i.is_best) for i in infos] == [(20, False), (10, True), (30, False)]


def test_a_pinned_one_outlives_every_pruning(folder: Path) -> None:
    checkpoints = Checkpoints("j", folder, set())
    assert checkpoints.pin(10, True).is_pinned
    assert checkpoints.pin(10, True).is_pinned
    prune_checkpoints(folder, 30, keep=1)
    assert steps(folder) == [10, 20, 30]
    assert not checkpoints.pin(10, False).is_pinned
    assert not checkpoints.pin(10, False).is_pinned
    prune_checkpoints(folder, 30, keep=1)
    assert steps(folder) == [20, 30]


@pytest.mark.parametrize("step", [11, -1, 10**18])
def test_one_that_is_not_there(folder: Path, step: int) -> None:
    checkpoints, before = Checkpoints("j", folder, set()), sorted(folder.iterdir())
    for change in (
        lambda: checkpoints.pin(step, True),
        lambda: checkpoints.pin(step, False),
        lambda: checkpoints.delete(step, is_unfinished=False),
    ):
        with pytest.raises(NotFound):
            change()
    assert sorted(folder.iterdir()) == before


def test_a_pin_that_comes_while_its_checkpoint_is_pruned_wins_or_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer has decided and renames; the pin is written before or after that."""
    checkpoints = Checkpoints("j", folder, set())
    rename = Path.rename

    def pin_first(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        checkpoints.pin(10, True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", pin_first)
    prune_checkpoints(folder, 30, keep=1, keep_steps={20})
    assert steps(folder) == [10, 20, 30]
    checkpoints.pin(10, False)

    def pin_afterwards(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        rename(path, target)
        with pytest.raises(NotFound):
            checkpoints.pin(10, True)
        return target

    monkeypatch.setattr(Path, "rename", pin_afterwards)
    prune_checkpoints(folder, 30, keep=1, keep_steps={20})
    assert steps(folder) == [20, 30]
    assert not list(folder.glob("*.pinned"))


def test_what_is_kept_is_not_deleted(folder: Path) -> None:
    checkpoints = Checkpoints("j", folder, {step_folder(folder, 10)})
    for step, why in [(10, "in use"), (20, "has not ended"), (30, "has not ended")]:
        with pytest.raises(FailedPrecondition, match=why):
            checkpoints.delete(step, is_unfinished=True)
    hold_checkpoint(step_folder(folder, 30))
    with pytest.raises(FailedPrecondition, match="in use"):
        checkpoints.delete(30, is_unfinished=False)
    release_checkpoint(step_folder(folder, 30))
    checkpoints.pin(20, True)
    with pytest.raises(FailedPrecondition, match="pinned"):
        checkpoints.delete(20, is_unfinished=False)
    checkpoints.delete(30, is_unfinished=False)
    assert steps(folder) == [10, 20]


def test_an_unfinished_job_goes_on_from_its_newest_whole_checkpoint(folder: Path) -> None:
    (step_folder(folder, 30) / "model.safetensors").write_bytes(b"damaged")
    checkpoints = Checkpoints("j", folder, set())
    with pytest.raises(FailedPrecondition):
        checkpoints.delete(20, is_unfinished=True)
    checkpoints.delete(30, is_unfinished=True)  # nobody can go on from it
    checkpoints.delete(10, is_unfinished=True)
    assert steps(folder) == [20]


def test_a_list_is_never_empty_while_one_replaces_the_other(tmp_path: Path) -> None:
    """With keep_checkpoints=1 there is always one, and at times there are two."""
    write(tmp_path, 1)
    done = threading.Event()

    def train() -> None:
        for step in range(2, 300):
            write(tmp_path, step)
            prune_checkpoints(tmp_path, step, keep=1)
        done.set()

    trainer = threading.Thread(target=train)
    trainer.start()
    checkpoints = Checkpoints("j", tmp_path, set())
    fewest = 2
    while not done.is_set():
        fewest = min(fewest, len(checkpoints.infos()))
    trainer.join()
    assert fewest == 1


def test_a_pin_is_on_the_disk_before_it_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    info = Checkpoints("j", folder, set()).pin(10, True)
    assert synced == [folder]
    assert asdict(info)["is_pinned"]
