"""Suite `training`: what checkpoints cost the steps beside which they are written.

The trainer, run as a user would, writes a checkpoint every 2·N steps. The N steps that begin with
one are compared with the N steps after them, which have none: they take turns in one run. Waiting
for the copy of the state and sharing the processor with the writer both count.
"""

import random
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.cell import Cell, Guard
from benchmarks.networks import CPU_SHAPE
from benchmarks.plan import Options, Plan, single
from nanogpt.config import TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.device import device_name
from nanogpt.training.events import CheckpointWritten, EventReader, StepMetrics
from nanogpt.training.run_directory import RunDirectory, RunSpec
from nanogpt.training.trainer import train

MOST = 1.05
"""How many times as long steps beside a checkpoint may take."""

SMALL = TrainConfig(**CPU_SHAPE)
CHARACTERS = TrainConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=4, dropout=0.0)


def plans(options: Options) -> list[Plan]:
    """About three minutes; of the small network, some seconds."""
    if options.quick:
        return [single("steps with a checkpoint, 4/4/128", partial(run, SMALL, 20, 2))]
    return [single("steps with a checkpoint, 6/6/384", partial(run, CHARACTERS, 30, 8))]


def run(config: TrainConfig, steps: int, turns: int) -> Cell:
    """Measures `turns` times so many steps with a checkpoint, and without; one turn warms up."""
    shape = f"{config.n_layer}/{config.n_head}/{config.n_embd}"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "words.txt"
        picks = random.Random(1337)
        words = ("sun", "moon", "star", "night", "day", "shines", "rises", "and", "the", "over")
        text.write_text(" ".join(picks.choice(words) for _ in range(50_000)))
        prepare_text(text, Path(folder) / "dataset", tokenizer="char")
        directory = RunDirectory(Path(folder) / "run")
        values = {
            **config.to_mapping(),
            "max_iters": 2 * steps * (turns + 1),
            "checkpoint_interval": 2 * steps,
            "eval_interval": 1_000_000,
            "eval_iters": 1,
            "log_interval": 1,
            "compile": "off",
        }
        directory.write_spec(
            RunSpec("run", "model", "../dataset", TrainConfig.from_mapping(values))
        )
        train(directory, directory.read_spec())
        events = EventReader(directory.metrics_path).read()
    # when each step was over, whenever its event was recorded
    over = {e.body.step: e.time for e in events if isinstance(e.body, StepMetrics)}
    saved = {e.body.step: e for e in events if isinstance(e.body, CheckpointWritten)}
    firsts = [2 * steps * turn for turn in range(1, turns + 1)]
    with_one = [(over[first + steps] - over[first]) / steps for first in firsts]
    without = [(over[first + 2 * steps] - over[first + steps]) / steps for first in firsts]
    late = sum(saved[first].time > over[first + steps] for first in firsts)
    megabytes = max(e.body.size_bytes for e in saved.values()) / 1e6
    ours, plain = median(with_one), median(without)
    return Cell(
        suite="training",
        cell=f"steps with a checkpoint, {shape}",
        ours=ours,
        peers={"steps without": plain},
        bound=None,
        guards=(Guard("checkpoints not on the disk before their steps were over", late, 0),),
        device=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        amount=config.tokens_per_step,
        unit="tokens",
        goal=MOST * plain,
        notes=(
            f"a checkpoint of {megabytes:,.0f} MB in every {steps} steps makes "
            f"them {ours / plain:.3f} times as long, {MOST:g} are allowed",
        ),
    )
