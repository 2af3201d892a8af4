"""The trainer's process: killed, stopped, refused; and its exit codes and last words."""

import random
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from tiny_run import (
    bodies_of,
    events_of,
    final_state,
    make_dataset,
    make_run,
    record_of,
    run_to_end,
    trainer_process,
    wait_for_step,
)

from nanogpt.checkpoint import read_meta
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.training import __main__ as main_module
from nanogpt.training import trainer as trainer_module
from nanogpt.training.events import CheckpointWritten, StepMetrics
from nanogpt.training.run_directory import ExitCode, RunDirectory
from nanogpt.training.step import TrainingStep

LONG = {"max_iters": 100_000, "lr_decay_iters": 100_000, "log_interval": 1}


@pytest.mark.parametrize(
    "more", [{}, {"gradient_accumulation_steps": 2, "dropout": 0.1}], ids=["plain", "hard"]
)
def test_a_killed_trainer_goes_on_bit_for_bit(tmp_path, more):
    """SIGKILL at a random step, twice; then the same losses, weights and record."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    config = {"max_iters": 120, "lr_decay_iters": 120, "eval_interval": 25, **more}
    config["checkpoint_interval"] = 9
    killed = make_run(tmp_path, "killed", **config)
    undisturbed = make_run(tmp_path, "undisturbed", **config)
    with trainer_process(undisturbed) as other:
        for step in sorted(draw.sample(range(1, 100), 2)):
            with trainer_process(killed) as process:
                wait_for_step(killed, process, step)
                process.send_signal(signal.SIGKILL)
                assert process.wait(timeout=30) == -signal.SIGKILL
        assert run_to_end(killed) == ExitCode.DONE
        assert other.wait(timeout=60) == ExitCode.DONE
    assert "resuming from step_" in killed.log_path.read_text()
    assert record_of(killed) == record_of(undisturbed)
    assert [event.sequence for event in events_of(killed)] == list(
        range(1, len(events_of(killed)) + 1)
    )
    one, other_state = final_state(killed), final_state(undisturbed)
    assert one.keys() == other_state.keys()
    assert all(torch.equal(one[name], other_state[name]) for name in one)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "end of stdin"])
def test_a_stopped_trainer_leaves_a_checkpoint_of_its_last_step(tmp_path, how):
    # an evaluation that is interrupted is still to come, and the checkpoint's event with it
    directory = make_run(tmp_path, **LONG, eval_interval=100_000)
    options = ["--watch-stdin"] if how == "end of stdin" else []
    stdin = subprocess.PIPE if how == "end of stdin" else subprocess.DEVNULL
    with trainer_process(directory, *options, stdin=stdin) as process:
        wait_for_step(directory, process, 3)
        if how == "end of stdin":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    meta = read_meta(newest_valid(directory.checkpoints_path))
    assert meta.step == bodies_of(directory, StepMetrics)[-1].step
    last = events_of(directory)[-1].body
    assert isinstance(last, CheckpointWritten)
    assert (last.step, last.size_bytes) == (meta.step, meta.size_bytes)
    assert not list(directory.checkpoints_path.glob(".*"))


def test_without_being_asked_the_end_of_stdin_means_nothing(tmp_path):
    directory = make_run(tmp_path)
    assert run_to_end(directory) == ExitCode.DONE  # its stdin is /dev/null
    assert re.search(r"^step 12/12: loss \d", directory.log_path.read_text(), re.MULTILINE)


def last_line(directory):
    return directory.log_path.read_text().splitlines()[-1]


def test_a_second_trainer_is_refused(tmp_path):
    directory = make_run(tmp_path)
    with directory.lock():
        assert run_to_end(directory) == ExitCode.BUSY
    assert last_line(directory) == "error: another trainer is at work in run"


FULL = Path("/dev/full")  # a file on a disk that is full


@pytest.mark.skipif(not FULL.exists(), reason="Linux has it")
def test_a_log_that_cannot_be_written_changes_nothing(tmp_path):
    directory, undisturbed = make_run(tmp_path), make_run(tmp_path, "undisturbed")
    directory.log_path.symlink_to(FULL)
    assert run_to_end(directory) == ExitCode.DONE
    assert run_to_end(undisturbed) == ExitCode.DONE
    assert record_of(directory) == record_of(undisturbed)
    (tmp_path / "datasets" / "tiny" / "train.bin").unlink()
    assert run_to_end(directory) == ExitCode.BAD_DATASET


def test_a_dataset_that_is_too_short_ends_the_process_with_the_numbers(tmp_path):
    make_dataset(tmp_path / "datasets" / "tiny", "abcdefghij" * 10)
    directory = make_run(tmp_path)
    assert run_to_end(directory) == ExitCode.BAD_DATASET
    assert last_line(directory) == (
        "error: the validation split has 10 tokens, but block_size 16 needs at least 17"
    )


@pytest.fixture
def main(monkeypatch, capfd):
    """Runs `main` in this process; returns the exit code and the lines that it printed."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def call(directory):
        code = main_module.main([str(directory.path)])
        captured = capfd.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return call


def test_a_folder_or_spec_that_is_not_there_is_a_bad_config(main, tmp_path):
    code, lines = main(RunDirectory(tmp_path / "nothing"))
    assert code == ExitCode.BAD_CONFIG
    assert lines == [f"error: there is no run directory {tmp_path / 'nothing'}"]
    code, lines = main(RunDirectory(tmp_path))
    assert (code, lines) == (ExitCode.BAD_CONFIG, ["error: spec.json: there is none"])


def test_a_wrong_key_or_device_is_a_bad_config(main, tmp_path):
    directory = make_run(tmp_path)
    directory.spec_path.write_text(directory.spec_path.read_text().replace("n_head", "n_heads"))
    code, lines = main(directory)
    assert code == ExitCode.BAD_CONFIG
    assert lines[-1].startswith("error: n_heads: unknown key; did you mean 'n_head'?")
    code, lines = main(make_run(tmp_path, "mps", device="mps"))
    if not torch.backends.mps.is_available():
        assert code == ExitCode.BAD_CONFIG
        assert lines[-1].startswith("error: device: there is no mps here")


def test_a_dataset_that_is_not_there_is_a_bad_dataset(main, tmp_path):
    directory = make_run(tmp_path)
    (tmp_path / "datasets" / "tiny" / "train.bin").unlink()
    assert main(directory) == (ExitCode.BAD_DATASET, ["error: train.bin is missing"])


def test_divergence(main, tmp_path):
    directory = make_run(
        tmp_path, learning_rate=1e3, weight_decay=1e3, decay_lr=False, max_iters=100
    )
    code, lines = main(directory)
    assert code == ExitCode.DIVERGED
    assert re.match(
        r"error: training diverged: .+, after step \d+; it went back \d times; "
        r"the last good checkpoint is step \d+; a lower learning_rate",
        lines[-1],
    )


@pytest.mark.parametrize("error", ["torch", "python", "cpu"])
def test_running_out_of_memory(main, tmp_path, monkeypatch, error):
    def step(self, inputs, targets, accept):
        if error == "torch":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if error == "python":
            raise MemoryError
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    code, lines = main(make_run(tmp_path))
    assert code == ExitCode.OUT_OF_MEMORY
    assert lines[-1].startswith("error: memory ran out with batch_size 4 and block_size 16")
    assert any("Traceback" in line for line in lines)  # for whoever operates it


@pytest.mark.parametrize("name", ["metrics.jsonl", "trainer.lock"])
def test_a_run_directory_that_cannot_be_written_is_a_crash_with_words(main, tmp_path, name):
    directory = make_run(tmp_path)
    (directory.path / name).mkdir()
    code, lines = main(directory)
    assert code == 1
    assert lines[-1] == "error: a file cannot be read or written: Is a directory"
    assert any("Traceback" in line for line in lines)  # for whoever operates it


def test_a_bug_is_a_crash(main, tmp_path, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer_module, "train", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(make_run(tmp_path))
