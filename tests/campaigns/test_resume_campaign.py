"""Killed trainers go on as if nothing had happened: same losses, weights and record, bit for bit.

Each experiment runs the real trainer, kills it (SIGKILL) once to three times at random moments,
starts it again each time, and compares the outcome with that of a run which was never disturbed.

    python -m pytest -m campaign -s tests/campaigns/test_resume_campaign.py
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import SCALE, SEED, record_of
from torch import Tensor

from nanogpt.checkpoint import load_model_state, load_train_state, newest_valid
from nanogpt.config import TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.training.run_directory import EventReader, ExitCode, RunDirectory, RunSpec

pytestmark = pytest.mark.campaign

COUNT = 3 * SCALE

CONFIG = TrainConfig(
    n_layer=2,
    n_head=2,
    n_embd=32,
    block_size=32,
    batch_size=8,
    gradient_accumulation_steps=2,
    dropout=0.1,
    max_iters=200,
    lr_decay_iters=200,
    warmup_iters=10,
    eval_interval=40,
    eval_iters=2,
    log_interval=1,
    checkpoint_interval=15,
    device="cpu",
    dtype="float32",
    compile="off",
)


@dataclass
class Outcome:
    """All that two equal runs must agree on."""

    record: list[dict[str, Any]]
    weights: dict[str, Tensor]
    trainer_state: dict[str, Tensor]


def outcome(run: RunDirectory) -> Outcome:
    newest = newest_valid(run.checkpoints_path)
    assert newest is not None
    record = record_of(run)
    return Outcome(record, load_model_state(newest), load_train_state(newest))


def start(run: RunDirectory) -> "subprocess.Popen[bytes]":
    with run.log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "nanogpt.training", run.path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # sums depend on how work is divided among threads
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def finish(run: RunDirectory) -> None:
    trainer = start(run)
    try:
        code = trainer.wait(timeout=100)
    finally:
        trainer.kill()
    assert code == ExitCode.DONE, run.log_path.read_text()


def kill_after(run: RunDirectory, step: int, delay_seconds: float) -> bool:
    """Starts the trainer and kills it a moment after it recorded `step`.

    Returns whether it was alive then: from a late step it may reach its end first.
    """
    trainer, reader, reached = start(run), EventReader(run.metrics_path), -1
    try:
        while reached < step and trainer.poll() is None:
            time.sleep(0.001)
            reached = max([reached, *(getattr(e.body, "step", -1) for e in reader.read())])
        time.sleep(delay_seconds)  # part of the experiment: anywhere in a step or a checkpoint
    finally:
        trainer.kill()
        code = trainer.wait()
    assert code in (-signal.SIGKILL, ExitCode.DONE), run.log_path.read_text()
    return code == -signal.SIGKILL


def new_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.write_spec(RunSpec("job", "tiny", "../../datasets/words", CONFIG))
    return run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = ["sun", "moon", "star", "night", "day", "shines", "rises", "and", "the", "over"]
    picks = random.Random(0)
    (folder / "words.txt").write_text(" ".join(picks.choice(words) for _ in range(20_000)))
    prepare_text(folder / "words.txt", folder / "datasets" / "words", tokenizer="char")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data_dir: Path) -> Outcome:
    run = new_run(data_dir / "runs" / "undisturbed")
    finish(run)
    result = outcome(run)
    assert [entry["sequence"] for entry in result.record] == list(range(1, len(result.record) + 1))
    steps = [entry["step"] for entry in result.record if entry["kind"] == "StepMetrics"]
    assert steps == list(range(1, CONFIG.max_iters + 1))
    print(f"\ncampaign seed {SEED}, {COUNT} experiments, {CONFIG.max_iters} steps each")
    return result


@pytest.mark.parametrize("number", range(COUNT))
def test_killed_run_equals_undisturbed_run(
    number: int, data_dir: Path, undisturbed: Outcome
) -> None:
    choose = random.Random(f"{SEED} {number}")
    steps = sorted(choose.randrange(1, CONFIG.max_iters) for _ in range(choose.randint(1, 3)))
    run = new_run(data_dir / "runs" / f"killed-{number}")
    kills = sum(kill_after(run, step, choose.uniform(0, 0.03)) for step in steps)
    finish(run)

    result = outcome(run)
    print(f"experiment {number}: {kills} kills, after steps {steps}; {len(result.record)} events")
    assert result.record == undisturbed.record
    for found, expected in [
        (result.weights, undisturbed.weights),
        (result.trainer_state, undisturbed.trainer_state),
    ]:
        assert found.keys() == expected.keys()
        assert [n for n, t in expected.items() if not torch.equal(t, found[n])] == []
