"""Checkpoints are written beside the steps, one at a time, in the order of the record."""

import threading
import types

import pytest
import torch

from nanogpt import checkpoint
from nanogpt.checkpoint import CheckpointMeta, load_model_state, load_train_state, read_meta
from nanogpt.checkpoint_folder import list_checkpoints, step_folder, step_of
from nanogpt.config import ModelConfig
from nanogpt.training.checkpoint_writer import CheckpointWriter
from nanogpt.training.events import (
    CheckpointWritten,
    EventReader,
    EventWriter,
    StepMetrics,
)
from nanogpt.training.report import Report

SHAPE = ModelConfig(block_size=16, vocab_size=65, n_layer=1, n_head=1, n_embd=8)


def meta_of(step, best_step=None):
    return CheckpointMeta(
        step=step, model_config=SHAPE, tokenizer={}, best_step=best_step, train={"seconds": 1.0}
    )


def step_event(number):
    return StepMetrics(number, 4.0, 1e-3, 0.5, True, 0.01, 6400.0, None, 64 * number, 1 << 20)


class Slow:
    """Keeps the disk busy until it may go on."""

    def __init__(self, monkeypatch):
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        real = checkpoint.save_checkpoint

        def save(*arguments):
            self.begun.set()
            assert self.may_go_on.wait(30)
            return real(*arguments)

        monkeypatch.setattr(checkpoint, "save_checkpoint", save)


@pytest.fixture
def world(tmp_path):
    """A writer, its record, and the state that it writes."""
    weights = {"transformer.wte.weight": torch.ones(65, 8)}
    state = {"rng.cpu": torch.get_rng_state()}
    lines = []
    with EventWriter(tmp_path / "metrics.jsonl") as events:
        tracking = types.SimpleNamespace(add=lambda *_: None)
        report = Report(events, tracking, lines.append)
        with CheckpointWriter(tmp_path / "checkpoints", 1, report, lines.append) as writer:
            yield types.SimpleNamespace(
                writer=writer,
                report=report,
                lines=lines,
                weights=weights,
                take=lambda: (weights, state),
                folder=tmp_path / "checkpoints",
                record=lambda: [e.body for e in EventReader(tmp_path / "metrics.jsonl").read()],
            )


def test_steps_do_not_wait_for_the_disk_and_the_record_keeps_its_order(world, monkeypatch):
    slow = Slow(monkeypatch)
    world.report.record(step_event(1))
    world.writer.save(meta_of(1), world.take, keep_steps=())
    assert slow.begun.wait(30)
    world.weights["transformer.wte.weight"].fill_(7.0)  # the next step changes the weights
    world.report.record(step_event(2))
    world.writer.poll()
    assert [body.step for body in world.record()] == [1]  # held back behind the checkpoint
    slow.may_go_on.set()
    world.writer.wait()
    assert [(type(body), body.step) for body in world.record()] == [
        (StepMetrics, 1),
        (CheckpointWritten, 1),
        (StepMetrics, 2),
    ]
    saved = load_model_state(step_folder(world.folder, 1))["transformer.wte.weight"]
    assert torch.equal(saved, torch.ones(65, 8))


def test_a_write_waits_for_the_one_before(world, monkeypatch):
    slow = Slow(monkeypatch)
    world.writer.save(meta_of(1), world.take, keep_steps=())
    threading.Timer(0.05, slow.may_go_on.set).start()
    world.writer.save(meta_of(2), world.take, keep_steps=())
    assert world.writer.saved.step == 1
    world.writer.wait()
    assert [step_of(folder) for folder in list_checkpoints(world.folder)] == [2]
    assert [body.step for body in world.record()] == [1, 2]


def test_a_step_that_has_a_checkpoint_gets_a_new_meta_only(world):
    world.writer.save(meta_of(3), world.take, keep_steps=())
    world.writer.wait()
    tensors = (step_folder(world.folder, 3) / "model.safetensors").stat()
    world.writer.save(meta_of(3, best_step=3), world.take, keep_steps=())
    world.writer.wait()
    assert read_meta(step_folder(world.folder, 3)).is_best
    assert (step_folder(world.folder, 3) / "model.safetensors").stat() == tensors
    assert load_train_state(step_folder(world.folder, 3)).keys() == {"rng.cpu"}


def test_a_full_disk_costs_neither_events_nor_the_best_checkpoint(world, monkeypatch):
    """The best one cannot be written; the best before it stays, whatever comes after."""
    world.writer.save(meta_of(1, best_step=1), world.take, keep_steps={1})
    world.writer.wait()

    def full(*arguments):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", full)
        world.writer.save(meta_of(2, best_step=2), world.take, keep_steps={2})
        world.report.record(step_event(3))
        world.writer.wait_quietly()
    assert "step 2: no checkpoint: No space left on device" in world.lines
    for step in (4, 5):
        world.writer.save(meta_of(step, best_step=2), world.take, keep_steps={2})
        world.writer.wait()
    assert [step_of(folder) for folder in list_checkpoints(world.folder)] == [1, 5]
    assert [body.step for body in world.record()] == [1, 3, 4, 5]


def test_the_last_write_tells_of_a_full_disk(world, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    world.writer.save(meta_of(1), world.take, keep_steps=())
    with pytest.raises(OSError, match="No space left"):
        world.writer.wait()
