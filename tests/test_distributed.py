"""Several processes train one run: against one process, against themselves killed and resumed."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from tiny_run import (
    bodies_of,
    events_of,
    final_state,
    make_run,
    record_of,
    run_to_end,
    trainer_process,
    wait_for_step,
)

from nanogpt import device
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.config import TrainConfig
from nanogpt.option import InvalidConfig
from nanogpt.training import __main__ as trainer_main
from nanogpt.training import distributed
from nanogpt.training.batches import Batches, Stream
from nanogpt.training.evaluate import Evaluator
from nanogpt.training.events import Action, Divergence, Evaluation, RunStarted, StepMetrics
from nanogpt.training.group import HOLD_FLAG, MEMBER_FLAG
from nanogpt.training.run_directory import ExitCode, RunDirectoryBusy
from nanogpt.training.trainer import train
from nanogpt.training.world import Place, World

# several interpreters start, each of which imports torch
SLOW = pytest.mark.timeout(400)

LONG = {"max_iters": 150, "lr_decay_iters": 150, "eval_interval": 50, "checkpoint_interval": 9}


@pytest.fixture
def alone(monkeypatch):
    """Trains in this process until `looks` questions whether to stop were answered with no."""
    monkeypatch.setattr(
        device, "measure_peak", lambda *_, bandwidth: device.Peak(1e12, None, "measured")
    )

    def run(directory, looks=sys.maxsize):
        counter = itertools.count()
        return train(
            directory,
            directory.read_spec(),
            should_stop=lambda: next(counter) >= looks,
            log=lambda line: None,
        )

    return run


def members(process):
    """The processes of a run by their rank, as soon as all are there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                if "RANK" in child.environ():
                    found[int(child.environ()["RANK"])] = child
        if sorted(found) == [0, 1]:
            return found
        time.sleep(0.01)
    raise AssertionError("the processes did not start")


def spec_changes(directory, **config):
    """The same run directory, to go on with another configuration."""
    return make_run(directory.path.parents[1], directory.path.name, **{**LONG, **config})


@SLOW
def test_a_dead_process_changes_nothing(tmp_path):
    """SIGKILL: all start again, and go on bit for bit.

    In torch 2.13 they would hang for ever unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE were set, see
    group.py.
    """
    hard = {**LONG, "processes": 2, "dropout": 0.1, "gradient_accumulation_steps": 3}
    killed, undisturbed = make_run(tmp_path, "killed", **hard), make_run(tmp_path, "whole", **hard)
    with trainer_process(undisturbed) as other, trainer_process(killed) as process:
        first = members(process)
        wait_for_step(killed, process, 20)
        with pytest.raises(RunDirectoryBusy), killed.lock():
            pass
        first[1].send_signal(signal.SIGKILL)
        assert process.wait(300) == ExitCode.DONE
        assert other.wait(300) == ExitCode.DONE
    assert killed.log_path.read_text().count("resuming from step_") == 1
    assert record_of(killed) == record_of(undisturbed)
    events = events_of(killed)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    one, other_state = final_state(killed), final_state(undisturbed)
    assert one.keys() == other_state.keys()
    assert "rng.cpu.1" in one
    assert not torch.equal(one["rng.cpu"], one["rng.cpu.1"])
    assert [name for name in one if not torch.equal(one[name], other_state[name])] == []


def test_a_process_obeys_the_one_that_leads():
    """It hears that it should stop; and it dies when that one is dead."""
    script = """
import threading
from nanogpt.training.group import obey_leader
stop = threading.Event()
obey_leader(stop)
print(stop.is_set(), flush=True)
stop.wait()
print("stops", flush=True)
threading.Event().wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"False\n"
        process.stdin.write(b".")
        process.stdin.flush()
        assert process.stdout.readline() == b"stops\n"
        process.stdin.close()
        assert process.wait(30) == 1


def test_a_first_process_whose_leader_holds_nothing_holds_the_run(tmp_path, monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    directory = make_run(tmp_path, **{**LONG, "max_iters": 10**6})
    with trainer_process(directory, MEMBER_FLAG, HOLD_FLAG, stdin=subprocess.PIPE) as process:
        wait_for_step(directory, process, 1)
        for other in (directory.lock, directory.follow):
            with pytest.raises(RunDirectoryBusy), other():
                pass
        assert directory.holder().pid == process.pid
        process.stdin.close()
        assert process.wait(30) == 1


@SLOW
def test_a_run_goes_on_with_any_number_of_processes(tmp_path, alone):
    """Two with DDP, stopped by SIGTERM; one; then two with FSDP: losses and norms are those of one.

    The norm of what FSDP spreads is that of the whole.
    """
    whole, run = make_run(tmp_path, "whole", **LONG), make_run(tmp_path, "run", **LONG)
    assert alone(whole) == ExitCode.DONE

    spec_changes(run, processes=2)
    with trainer_process(run) as process:
        wait_for_step(run, process, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == ExitCode.INTERRUPTED
    stopped = bodies_of(run, StepMetrics)[-1].step
    assert 5 <= stopped < 150
    assert f"step {stopped}: checkpoint of" in run.log_path.read_text()

    spec_changes(run)
    assert alone(run, looks=20) == ExitCode.INTERRUPTED
    spec_changes(run, processes=2, sharding="fsdp", gradient_accumulation_steps=1)
    assert run_to_end(run) == ExitCode.DONE

    ours, theirs = bodies_of(run, StepMetrics), bodies_of(whole, StepMetrics)
    assert [s.step for s in ours] == [s.step for s in theirs] == list(range(1, 151))
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in theirs], rel=1e-4)
    assert [s.loss for s in ours][:20] == pytest.approx([s.loss for s in theirs][:20], rel=1e-6)
    assert [s.grad_norm for s in ours] == pytest.approx([s.grad_norm for s in theirs], rel=1e-2)
    assert [e.val_loss for e in bodies_of(run, Evaluation)] == pytest.approx(
        [e.val_loss for e in bodies_of(whole, Evaluation)], rel=1e-4
    )
    assert {s.tokens for s in ours} == {64 * s.step for s in ours}
    one, other = final_state(run), final_state(whole)
    assert one.keys() - other.keys() == {"rng.cpu.1"}
    assert {n: t.shape for n, t in other.items()} == {n: one[n].shape for n in other}
    assert bodies_of(run, RunStarted)[0].peak_flops > 0


@SLOW
def test_processes_go_back_and_end_together(tmp_path, alone):
    """Which steps are left out, where the run goes back to, and when its time is up, all agree."""
    diverging = {
        "learning_rate": 1e3,  # weights overflow after the first step, until the rate is 1e-4
        "weight_decay": 1e3,
        "decay_lr": False,
        "rollback_lr_factor": 1e-7,
        "max_skips": 2,
        "eval_interval": 5,
    }
    one = make_run(tmp_path, "one", **diverging, max_iters=5)
    assert alone(one) == ExitCode.DONE
    limits = {
        "max_iters": 10**6,
        "max_seconds": 10,
    }  # long after it went back, on a busy machine too
    two = make_run(tmp_path, "two", **diverging, **limits, processes=2)
    assert run_to_end(two) == ExitCode.LIMIT_REACHED

    expected = bodies_of(one, Divergence)
    assert [e.action for e in expected] == [Action.SKIPPED, Action.SKIPPED, Action.ROLLED_BACK]
    found = bodies_of(two, Divergence)
    assert [(e.step, e.action, e.rolled_back_to_step, e.learning_rate_factor) for e in found] == [
        (e.step, e.action, e.rolled_back_to_step, e.learning_rate_factor) for e in expected
    ]
    ours, theirs = bodies_of(two, StepMetrics), bodies_of(one, StepMetrics)
    first = len(theirs)
    assert [s.step for s in ours[:first]] == [s.step for s in theirs] == [1, 1, 2, 3, 4, 5]
    assert [s.loss for s in ours[:first]] == pytest.approx([s.loss for s in theirs], rel=1e-5)

    last = ours[-1].step
    assert last >= 5
    assert bodies_of(two, Evaluation)[-1].step == last
    assert newest_valid(two.checkpoints_path).name == f"step_{last:06}"
    assert "resuming" not in two.log_path.read_text()  # nobody crashed on the way


def test_who_waits_for_nobody_ends_and_says_where():
    """A start that hangs becomes a crash."""
    script = """
from nanogpt.config import TrainConfig
from nanogpt.training import distributed
from nanogpt.training.world import Place
distributed.START_SECONDS = 1
distributed.join(Place(0, 2, 0), TrainConfig(device="cpu", processes=2))
raise AssertionError
"""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "2"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "Timeout (0:00:01)!" in result.stderr
    assert "in init_process_group" in result.stderr


def test_processes_without_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InvalidConfig, match=r"processes: must be at most 2 .*, got 4"):
        distributed.join(Place(0, 4, 0), TrainConfig(processes=4))


@pytest.mark.parametrize(
    ("config", "has_gpu", "code"),
    [
        ({"device": "cuda"}, True, ExitCode.OUT_OF_MEMORY),
        ({"device": "cuda", "backend": "gloo"}, True, 0),
        ({"device": "auto"}, False, 0),
    ],
)
def test_a_failure_that_others_would_not_notice_ends_them(
    tmp_path, monkeypatch, config, has_gpu, code
):
    """In NCCL they would wait: whoever started them has to see that one has failed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(trainer_main, "_take_place", lambda *rest: ExitCode.OUT_OF_MEMORY)
    directory = make_run(tmp_path, processes=2, max_iters=1, **config)
    hold, stop = contextlib.nullcontext(), threading.Event()
    assert trainer_main._be_member(directory, directory.read_spec(), stop, hold) == code
    assert directory.read_exit_code() == ExitCode.OUT_OF_MEMORY


MEMBER = """
import itertools, os, sys
import torch
from nanogpt.datasets.dataset import BadDataset, Dataset
from nanogpt.training.__main__ import main
from nanogpt.training.step import TrainingStep

real, calls = TrainingStep._backward, itertools.count(1)

def fail(path):
    raise BadDataset("train.bin is missing")

def backward(self, inputs, targets):
    if next(calls) == 2:
        raise torch.OutOfMemoryError("out of memory")
    return real(self, inputs, targets)

if os.environ["RANK"] == "1":
    if sys.argv[1] == "BAD_DATASET":
        Dataset.open = fail
    else:
        TrainingStep._backward = backward
try:
    code = main([*sys.argv[2:], "--member"])
except RuntimeError:  # as a connection that is lost is
    code = 1
os._exit(code)
"""


@SLOW
@pytest.mark.parametrize("failure", [ExitCode.BAD_DATASET, ExitCode.OUT_OF_MEMORY])
def test_what_one_process_alone_cannot_go_on_with_ends_the_run(tmp_path, failure):
    """It says so and ends, and the other one, which waits for it in the middle of things, too."""
    directory = make_run(tmp_path, processes=2, max_iters=10**6)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(2):
            one = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", MEMBER, failure.name, str(directory.path)],
                env={**os.environ, **place, **one},
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        first, second = processes
        assert second.wait(60) == 0
        assert directory.read_exit_code() == failure
        assert first.wait(60) == 1
        assert "error: " in second.stderr.read()


@pytest.mark.parametrize(("accumulation", "sequences"), [(1, 6), (2, 6), (6, 5), (4, 2)])
def test_shares_are_equally_large_and_make_up_the_batch(accumulation, sequences):
    tokens = torch.randint(65, (500,)).to(torch.uint16).numpy()
    config = TrainConfig(batch_size=sequences, gradient_accumulation_steps=accumulation)

    def inputs(place):
        batches = Batches(
            tokens,
            shape=(accumulation, sequences, 8),
            seed=1,
            stream=Stream.TRAIN,
            share=place.share(config),
        )
        return batches.at(3)[0].flatten(0, 1)

    shares = [inputs(Place(rank, 2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    assert sorted(torch.cat(shares).tolist()) == sorted(inputs(Place()).tolist())


def test_a_batch_that_cannot_be_shared_is_refused():
    for make in (
        lambda: TrainConfig(batch_size=3, gradient_accumulation_steps=5, processes=2),
        lambda: Place(1, 2).share(TrainConfig(batch_size=3, gradient_accumulation_steps=5)),
    ):
        with pytest.raises(InvalidConfig) as caught:
            make()
        assert [(v.field, v.description) for v in caught.value.violations] == [
            (
                "processes",
                "must divide batch_size (3) or gradient_accumulation_steps (5), got 2",
            )
        ]
    with pytest.raises(InvalidConfig, match="dtype: must not be float16 with sharding fsdp"):
        TrainConfig(sharding="fsdp", dtype="float16")


class Turns(World):
    """One of several processes, with nobody to add up with."""

    def __init__(self, place):
        super().__init__(place)
        self.sums = []

    def sum(self, value):
        self.sums.append(value)
        return value


def test_processes_take_turns_with_the_batches_of_an_evaluation(monkeypatch):
    config = TrainConfig(batch_size=2, block_size=8, eval_iters=5)
    tokens = torch.randint(65, (500,)).to(torch.uint16).numpy()

    class Model(torch.nn.Module):
        device = torch.device("cpu")

    calls = []

    def forward(inputs, targets):
        calls.append(inputs)
        return inputs, inputs.double().mean()

    def evaluate(world):
        calls.clear()
        return Evaluator(tokens, tokens, config, lambda: False, world)(
            Model(), forward, torch.float32
        )

    expected = evaluate(World())
    worlds = [Turns(Place(rank, 2)) for rank in range(2)]
    for world in worlds:
        evaluate(world)
        assert len(calls) == 2 * 3  # both run as often, though there are five batches
    added = [sum(parts) for parts in zip(*(world.sums for world in worlds), strict=True)]
    train_loss, train_sequences, val_loss, val_sequences = added
    assert (train_sequences, val_sequences) == (5 * 2, 5 * 2)
    assert (train_loss / 10, val_loss / 10) == pytest.approx(expected, rel=1e-12)
