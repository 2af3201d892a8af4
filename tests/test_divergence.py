"""What cannot be used is left out; a run goes back and on, and its record is the same however often
it was stopped or crashed on the way."""

import itertools
import math
import random

import pytest
import torch
from tiny_run import bodies_of, events_of, make_run, record_of

from nanogpt import device
from nanogpt.checkpoint import load_model_state, load_train_state
from nanogpt.checkpoint_folder import list_checkpoints, newest_valid
from nanogpt.training import events as events_module
from nanogpt.training.divergence import WINDOW_STEPS, Window
from nanogpt.training.evaluate import Evaluator
from nanogpt.training.events import Action, CheckpointWritten, Divergence, StepMetrics
from nanogpt.training.run_directory import ExitCode
from nanogpt.training.step import Diverged, TrainingStep
from nanogpt.training.trainer import train

BAD_STEPS = (8, 9, 10)
"""Steps whose gradient is not finite as long as the learning rate is the first one."""

CONFIG = {
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 8,
    "dropout": 0.1,
    "decay_lr": False,
    "learning_rate": 1e-3,
    "max_iters": 14,
    "eval_interval": 6,
    "eval_iters": 1,
    "sample_tokens": 2,
    "checkpoint_interval": 3,
    "max_skips": 3,
    "rollback_lr_factor": 0.25,
}


@pytest.fixture(autouse=True)
def listed_peak(monkeypatch):
    monkeypatch.setattr(
        device, "measure_peak", lambda *_, bandwidth: device.Peak(1e12, None, "measured")
    )


@pytest.fixture
def poison(monkeypatch):
    """Makes the batches of some steps useless, at rates above a bound."""
    real = TrainingStep._backward

    def install(directory, steps, above_rate):
        spec = directory.read_spec()
        from nanogpt.datasets.dataset import Dataset
        from nanogpt.training.batches import Batches, Stream

        tokens = Dataset.open(directory.path / spec.dataset_dir).tokens("train")
        config = spec.config
        shape = (config.gradient_accumulation_steps, config.batch_size, config.block_size)
        batches = Batches(tokens, shape=shape, seed=config.seed, stream=Stream.TRAIN)
        bad = [batches.at(step - 1)[0] for step in steps]

        def backward(self, inputs, targets):
            loss, norm = real(self, inputs, targets)
            high = self._optimizer.param_groups[0]["lr"] > above_rate
            if high and any(torch.equal(inputs, x) for x in bad):
                return loss, math.inf
            return loss, norm

        monkeypatch.setattr(TrainingStep, "_backward", backward)

    return install


def run(directory, should_stop=lambda: False, log=lambda line: None):
    return train(directory, directory.read_spec(), should_stop=should_stop, log=log)


def final_state(directory):
    newest = list_checkpoints(directory.checkpoints_path)[-1]
    return {**load_model_state(newest), **load_train_state(newest)}


def assert_same_state(one, other):
    one, other = final_state(one), final_state(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_nothing_is_a_spike_before_the_window_is_full():
    window = Window(threshold=10.0)
    for _ in range(WINDOW_STEPS - 1):
        window.add(2.0, 1.0)
    assert window.accepts(1e9, 1e9)
    window.add(2.0, 1.0)
    assert not window.accepts(1e9, 1.0)
    assert not window.accepts(2.0, 1e9)


def test_a_spike_is_far_above_the_mean_and_above_twice_it():
    draws = random.Random(0)
    window = Window(threshold=5.0)
    for _ in range(1000):
        window.add(draws.gauss(2.0, 0.5), draws.gauss(1.0, 0.01))
    assert window.accepts(4.0, 1.0)  # 4 deviations
    assert not window.accepts(5.0, 1.0)  # 6 deviations
    assert window.accepts(2.0, 1.4)  # 40 deviations, but not far above a calm mean
    assert not window.accepts(2.0, 1.6)
    assert window.accepts(-100.0, 0.0)  # lower is never a spike
    assert Window(threshold=0.0).accepts(1e9, 1e9)


def test_a_window_comes_back_exactly():
    draws = random.Random(1)
    window, other = Window(10.0), Window(10.0)
    for _ in range(300):
        window.add(draws.random(), draws.random())
    other.load_state(window.state())
    assert other.state() == window.state()
    assert len(window.state()["losses"]) == WINDOW_STEPS


def test_a_bad_step_is_left_out_and_the_run_goes_on(tmp_path, poison):
    directory = make_run(tmp_path, **CONFIG)
    poison(directory, steps=(5,), above_rate=0)
    assert run(directory) == ExitCode.DONE
    assert [s.step for s in bodies_of(directory, StepMetrics)] == [
        step for step in range(1, 15) if step != 5
    ]
    (left_out,) = bodies_of(directory, Divergence)
    assert (left_out.step, left_out.action) == (4, Action.SKIPPED)
    assert (left_out.grad_norm, left_out.learning_rate_factor) == (None, 1.0)
    assert math.isfinite(left_out.loss)
    steps = {int(t) for n, t in final_state(directory).items() if n.startswith("optimizer.step.")}
    assert steps == {13}  # the optimizer never saw it


@pytest.fixture
def undisturbed(tmp_path, poison):
    directory = make_run(tmp_path, "undisturbed", **CONFIG)
    poison(directory, BAD_STEPS, above_rate=0.5e-3)
    assert run(directory) == ExitCode.DONE
    return directory


def test_a_run_goes_back_with_a_lower_rate(undisturbed):
    events = events_of(undisturbed)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    found = bodies_of(undisturbed, Divergence)
    assert [(d.step, d.action) for d in found] == [
        (7, Action.SKIPPED),
        (8, Action.SKIPPED),
        (9, Action.SKIPPED),
        (10, Action.ROLLED_BACK),
    ]
    assert [d.learning_rate_factor for d in found] == [1.0, 1.0, 1.0, 0.25]
    assert found[-1].rolled_back_to_step == 6
    steps = bodies_of(undisturbed, StepMetrics)
    assert [s.step for s in steps] == [*range(1, 8), *range(7, 15)]
    assert [s.learning_rate for s in steps] == [1e-3] * 7 + [0.25e-3] * 8
    assert steps[6].loss == steps[7].loss  # the same batch, weights and random numbers
    assert [(e.rollbacks, type(e.body)) for e in events if type(e.body) is Divergence][-1][0] == 0
    assert events[-1].rollbacks == 1


@pytest.mark.parametrize("looks", [16, 20, 22, 26])
def test_a_run_stopped_around_its_way_back_ends_the_same(undisturbed, tmp_path, looks):
    directory = make_run(tmp_path, "stopped", **CONFIG)
    counter = itertools.count()
    run(directory, should_stop=lambda: next(counter) >= looks)
    assert run(directory) == ExitCode.DONE
    # stopping writes checkpoints of its own
    assert numbered(without_checkpoints(directory)) == numbered(without_checkpoints(undisturbed))
    assert_same_state(directory, undisturbed)


class Crash(BaseException):
    """A power cut."""


@pytest.mark.parametrize("crash_at", [12, 14, 15, 16, 17, 18, 19, 22])
def test_a_run_that_crashed_around_its_way_back_ends_the_same(
    undisturbed, tmp_path, monkeypatch, crash_at
):
    """Before each of its events in turn: among them the steps left out, and the way back."""
    directory = make_run(tmp_path, "crashed", **CONFIG)
    real_append, calls = events_module.EventWriter.append, itertools.count(1)

    def append(self, *arguments):
        if next(calls) == crash_at:
            raise Crash
        return real_append(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(events_module.EventWriter, "append", append)
        with pytest.raises(Crash):
            run(directory)
    assert run(directory) == ExitCode.DONE
    assert record_of(directory) == record_of(undisturbed)
    assert_same_state(directory, undisturbed)


def without_checkpoints(directory):
    return [e for e in record_of(directory) if e["kind"] != CheckpointWritten.__name__]


def numbered(record):
    return [{**event, "sequence": number} for number, event in enumerate(record)]


def test_a_run_that_does_not_recover_fails_and_keeps_a_checkpoint(tmp_path, poison):
    directory = make_run(tmp_path, **CONFIG, max_rollbacks=2)
    poison(directory, BAD_STEPS, above_rate=0)
    with pytest.raises(Diverged, match=r"it went back 2 times; .* good checkpoint is step 6"):
        run(directory)
    actions = [d.action for d in bodies_of(directory, Divergence)]
    assert actions == ["skipped"] * 3 + (["rolled_back"] + ["skipped"] * 3) * 2
    record = record_of(directory)
    with pytest.raises(Diverged):  # started again it comes to the same end, and says nothing new
        run(directory)
    assert record_of(directory) == record
    assert newest_valid(directory.checkpoints_path) is not None


def test_a_run_never_goes_back_to_weights_that_an_update_has_ruined(tmp_path):
    """The first update overflows them, until the rate is 1e-4; a checkpoint follows at once."""
    directory = make_run(
        tmp_path,
        learning_rate=1e3,
        weight_decay=1e3,
        decay_lr=False,
        rollback_lr_factor=1e-7,
        max_skips=2,
        max_iters=3,
        checkpoint_interval=1,
        keep_checkpoints=1,
    )
    assert run(directory) == ExitCode.DONE
    assert [
        (d.step, d.action, d.rolled_back_to_step) for d in bodies_of(directory, Divergence)
    ] == [
        (1, Action.SKIPPED, None),
        (2, Action.SKIPPED, None),
        (3, Action.ROLLED_BACK, 0),
    ]


def test_a_run_that_took_no_step_goes_back_to_the_same_checkpoint(tmp_path, monkeypatch):
    """Not further: whether there is an older one depends on what else was saved."""
    real, calls = TrainingStep._backward, itertools.count(1)

    def backward(self, inputs, targets):
        loss, norm = real(self, inputs, targets)
        return (loss, math.inf) if 8 <= next(calls) <= 13 else (loss, norm)

    monkeypatch.setattr(TrainingStep, "_backward", backward)
    directory = make_run(tmp_path, **CONFIG, keep_checkpoints=9)
    assert run(directory) == ExitCode.DONE
    found = [d for d in bodies_of(directory, Divergence) if d.action == Action.ROLLED_BACK]
    assert [(d.step, d.rolled_back_to_step) for d in found] == [(10, 6), (9, 6)]


def test_an_evaluation_that_is_not_finite_makes_the_run_go_back(tmp_path, monkeypatch):
    losses = iter([(3.0, 3.0), (2.0, math.nan), (2.0, 2.5), (2.0, 2.0), (2.0, 1.9)])
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: next(losses))
    directory = make_run(tmp_path, **CONFIG)
    assert run(directory) == ExitCode.DONE
    (back,) = bodies_of(directory, Divergence)
    assert (back.step, back.action, back.rolled_back_to_step) == (6, Action.ROLLED_BACK, 3)


def test_spikes_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("nanogpt.training.divergence.WINDOW_STEPS", 4)
    real = TrainingStep._backward
    calls = itertools.count(1)

    def backward(self, inputs, targets):
        loss, norm = real(self, inputs, targets)
        return (100.0, norm) if next(calls) == 9 else (loss, norm)

    monkeypatch.setattr(TrainingStep, "_backward", backward)
    directory = make_run(tmp_path, **CONFIG)
    assert run(directory) == ExitCode.DONE
    (left_out,) = bodies_of(directory, Divergence)
    assert (left_out.step, left_out.loss, left_out.action) == (8, 100.0, Action.SKIPPED)
