"""Killed trainers go on as if nothing had happened: same losses, weights and record, bit for bit.

Each experiment runs the real trainer in one of the ways that it can compute, kills it (SIGKILL) at
random moments, starts it again, and compares the outcome with that of a run which was never
disturbed. Of several processes any may be the victim: the one that leads, or one that it started.

    python -m pytest -m campaign -s tests/campaigns/test_resume_campaign.py
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from campaign import SCALE, SEED, record_of
from torch import Tensor

from nanogpt.checkpoint import load_model_state, load_train_state
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.config import TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.training.events import EventReader
from nanogpt.training.run_directory import ExitCode, RunDirectory, RunSpec

pytestmark = pytest.mark.campaign

COUNT = (SCALE + 1) // 2
"""Experiments with each configuration."""
MAX_KILLS = min(SCALE, 3)
END_SECONDS = 300

PLAIN = TrainConfig(
    n_layer=2,
    n_head=2,
    n_embd=32,
    block_size=32,
    batch_size=8,
    dropout=0.0,
    max_iters=120,
    lr_decay_iters=120,
    warmup_iters=10,
    eval_interval=40,
    eval_iters=2,
    log_interval=1,
    checkpoint_interval=15,
    device="cpu",
    dtype="float32",
    compile="off",
)
CONFIGS = {
    "plain": PLAIN,
    "accumulation": replace(PLAIN, gradient_accumulation_steps=3),
    "dropout": replace(PLAIN, dropout=0.1, gradient_accumulation_steps=2),
    "bfloat16": replace(PLAIN, dtype="bfloat16", dropout=0.1),
    "modern": replace(PLAIN, arch="modern", optimizer="muon", dtype="bfloat16", dropout=0.1),
    "compiled": replace(PLAIN, compile="on", n_layer=1, dropout=0.1),
    "ensemble": replace(PLAIN, n_member=2, dropout=0.1),
    "two processes": replace(PLAIN, processes=2, dropout=0.1, gradient_accumulation_steps=3),
    "two processes, sharded": replace(
        PLAIN, processes=2, sharding="fsdp", dropout=0.1, arch="modern", n_member=2
    ),
}


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


@dataclass
class Laboratory:
    """Where runs are: a dataset, and what compilers made."""

    folder: Path
    _undisturbed: dict[str, Outcome] = field(default_factory=dict)

    def new_run(self, name: str, config: TrainConfig) -> RunDirectory:
        run = RunDirectory(self.folder / "runs" / name)
        run.write_spec(RunSpec("job", "tiny", "../../datasets/words", config))
        return run

    @contextmanager
    def trainer(self, run: RunDirectory) -> Iterator["subprocess.Popen[bytes]"]:
        """The real trainer at work; nothing of it is left afterwards."""
        with run.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanogpt.training", run.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",  # sums depend on how work is divided among threads
                    "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled"),
                },
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def finish(self, run: RunDirectory) -> None:
        with self.trainer(run) as process:
            assert process.wait(END_SECONDS) == ExitCode.DONE, run.log_path.read_text()

    def finish_in_spite_of_kills(
        self, run: RunDirectory, steps: list[int], choose: random.Random
    ) -> int:
        """Kills a process a moment after each of these steps was recorded; returns how many.

        From a late step the run may reach its end first.
        """
        reader, reached, kills, remaining = EventReader(run.metrics_path), -1, 0, list(steps)
        while remaining:
            with self.trainer(run) as process:
                while remaining and process.poll() is None:
                    reached = max([reached, *(getattr(e.body, "step", -1) for e in reader.read())])
                    if reached < remaining[0]:
                        time.sleep(0.001)
                        continue
                    remaining.pop(0)
                    time.sleep(choose.uniform(0, 0.03))  # anywhere in a step or a checkpoint
                    victims = [psutil.Process(process.pid), *members(process)]
                    victim = choose.choice(victims)
                    victim.kill()
                    kills += 1
                    if victim is victims[0]:
                        psutil.wait_procs(victims[1:], END_SECONDS)  # they see that it is dead
                        break
                code = process.wait(END_SECONDS)
            assert code in (-signal.SIGKILL, ExitCode.DONE), run.log_path.read_text()
            if code == ExitCode.DONE:
                return kills
        self.finish(run)
        return kills

    def undisturbed(self, name: str) -> Outcome:
        """What a run of this configuration ends with if nobody kills it."""
        if name not in self._undisturbed:
            self._undisturbed[name] = self._run_undisturbed(name)
        return self._undisturbed[name]

    def _run_undisturbed(self, name: str) -> Outcome:
        config = CONFIGS[name]
        run = self.new_run(f"undisturbed, {name}", config)
        self.finish(run)
        assert "compiling failed" not in run.log_path.read_text()
        result = outcome(run)
        sequences = [entry["sequence"] for entry in result.record]
        assert sequences == list(range(1, len(result.record) + 1))
        steps = [entry["step"] for entry in result.record if entry["kind"] == "StepMetrics"]
        assert steps == list(range(1, config.max_iters + 1))
        return result


def members(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes that train for this one, if it leads some."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "RANK" in child.environ()]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    folder = tmp_path_factory.mktemp("data")
    words = ["sun", "moon", "star", "night", "day", "shines", "rises", "and", "the", "over"]
    picks = random.Random(0)
    (folder / "words.txt").write_text(" ".join(picks.choice(words) for _ in range(20_000)))
    prepare_text(folder / "words.txt", folder / "datasets" / "words", tokenizer="char")
    print(f"\ncampaign seed {SEED}, {COUNT} experiments with each of {len(CONFIGS)} configurations")
    return Laboratory(folder)


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_run_equals_undisturbed_run(name: str, number: int, laboratory: Laboratory) -> None:
    config = CONFIGS[name]
    if config.compile == "on" and shutil.which("g++") is None:
        pytest.skip("compiling needs g++")
    choose = random.Random(f"{SEED} {name} {number}")
    num_kills = choose.randint(1, MAX_KILLS)
    steps = sorted(choose.randrange(1, config.max_iters) for _ in range(num_kills))
    run = laboratory.new_run(f"killed, {name}, {number}", config)
    with ThreadPoolExecutor(1) as thread:  # there are processors enough for two runs
        undisturbed = thread.submit(laboratory.undisturbed, name)
        kills = laboratory.finish_in_spite_of_kills(run, steps, choose)
    expected, result = undisturbed.result(), outcome(run)
    print(f"{name}, {number}: {kills} kills, after steps {steps}; {len(result.record)} events")
    assert result.record == expected.record
    for found, wanted in [
        (result.weights, expected.weights),
        (result.trainer_state, expected.trainer_state),
    ]:
        assert found.keys() == wanted.keys()
        assert [n for n, t in wanted.items() if not torch.equal(t, found[n])] == []
