"""Seconds until the trainer, run as a user would, brings a recipe to a validation loss.

    python -m benchmarks.time_to_quality --text=input.txt

trains `fast_shakespeare_char` and nanoGPT's recipe for a CPU in turns, three seeds each, and prints
the median time of each. The text, Tiny Shakespeare for these, is cut 90 : 10 into training and
validation. The loss is over the whole validation part, in windows that do not overlap. Time is that
of the run, evaluations and checkpoints included; the start of the process and the dataset are not.

    --presets=NAMES    separated by commas: ours, then those beside it; `nanogpt_cpu` is no preset
                       but nanoGPT's own line for a CPU, in float32
    --seeds=1,2,3      one run each
    --target=1.8857    loss at which a run ends: what nanoGPT's CPU recipe ended with
    --goal=20          seconds that are good enough, for the table
    --key=value        any other hyperparameter, in place of the first preset's

Each run is kept in benchmarks/out/time_to_quality.json when it is over, and not run again while it
is there: remove the file when the trainer has changed. The median goes to the other results:
`python -m benchmarks.table --write` shows it, `python -m benchmarks.training_picture` draws the
losses.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cell import Cell
from benchmarks.networks import CPU_SHAPE
from benchmarks.results import RESULTS, read_results, write_result, write_results
from nanogpt.config import TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.device import device_name
from nanogpt.preset import load_preset
from nanogpt.training.allocator import keep_freed_memory
from nanogpt.training.events import Evaluation, EventReader
from nanogpt.training.run_directory import RunDirectory, RunSpec
from nanogpt.training.trainer import train

RUNS = RESULTS.with_name("time_to_quality.json")
TARGET = 1.8857

NANOGPT_CPU = {
    **CPU_SHAPE,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "eval_iters": 20,
    "dtype": "float32",
    "compile": "off",
    "spike_threshold": 0.0,
}
"""On top of train_shakespeare_char: https://github.com/karpathy/nanoGPT#i-only-have-a-macbook"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run that is over."""

    recipe: str
    config: dict[str, Any]
    """All hyperparameters that it was given: another preset is another run."""
    curve: list[tuple[int, float, float]]
    """Step, seconds and validation loss of each evaluation."""
    cpu_seconds: float
    device: str
    threads: int

    @property
    def target(self) -> float:
        """Loss at which it ends."""
        return float(self.config["target_val_loss"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def seconds(self) -> float:
        """When the loss was at the target for the first time; infinite if never."""
        return next((at for _, at, loss in self.curve if loss <= self.target), math.inf)

    @property
    def lowest(self) -> float:
        """The lowest loss that it came to."""
        return min(loss for _, _, loss in self.curve)


def config_of(recipe: str, values: dict[str, Any], target: float, seed: int) -> dict[str, Any]:
    """All hyperparameters of a run; `values` are in place of the recipe's."""
    ends = {"eval_whole_split": True, "target_val_loss": target, "seed": seed}
    return {**recipe_values(recipe), **values, **ends}


def is_of_recipe(run: Run) -> bool:
    """Whether a run that is kept is one of its recipe as that is now."""
    return run.config == config_of(run.recipe, {}, run.target, run.seed)


def is_kept(run: Run, recipe: str, config: dict[str, Any]) -> bool:
    """Whether this run is of that recipe, with those hyperparameters, on this machine."""
    return (run.recipe, run.config, run.device, run.threads) == (recipe, config, *_machine())


def _machine() -> tuple[str, int]:
    return device_name(torch.device("cpu")), torch.get_num_threads()


def read_runs(path: Path) -> list[Run]:
    """All runs that are kept."""
    return [Run(**run) for run in read_results(path)]


def keep_run(run: Run, path: Path) -> None:
    """Adds a run to the file."""
    write_results([*read_results(path), asdict(run)], path)


def recipe_values(name: str) -> dict[str, Any]:
    """Hyperparameters of a preset, or of nanoGPT's line for a CPU."""
    if name == "nanogpt_cpu":
        return {**load_preset("train_shakespeare_char").config, **NANOGPT_CPU}
    return dict(load_preset(name).config)


def measure(text: Path, recipe: str, config: dict[str, Any]) -> Run:
    """Trains until the target, or the recipe's end."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_text(text, Path(folder) / "dataset", tokenizer="char")
        run = RunDirectory(Path(folder) / "run")
        run.write_spec(RunSpec("run", "model", "../dataset", TrainConfig.from_mapping(config)))
        keep_freed_memory()  # as the process of a run does
        began, cpu = time.time(), time.process_time()
        train(run, run.read_spec())
        cpu = time.process_time() - cpu
        curve = [
            (event.body.step, event.time - began, event.body.val_loss)
            for event in EventReader(run.metrics_path).read()
            if isinstance(event.body, Evaluation)
        ]
    return Run(recipe, config, curve, cpu, *_machine())


def cell(recipes: Sequence[str], runs: Sequence[Run], goal: float | None) -> Cell | None:
    """The medians as a result; None if ours did not reach the target in the median run."""
    seconds = {name: median(r.seconds for r in runs if r.recipe == name) for name in recipes}
    ours, target = recipes[0], runs[0].target
    if not math.isfinite(seconds[ours]):
        return None
    reached = [name for name in recipes[1:] if math.isfinite(seconds[name])]
    lowest = {name: median(r.lowest for r in runs if r.recipe == name) for name in recipes}
    return Cell(
        suite="quality",
        cell=f"{ours} to a loss of {target:g}",
        ours=seconds[ours],
        peers={name: seconds[name] for name in reached},
        bound=None,
        guards=(),
        device=runs[0].device,
        threads=runs[0].threads,
        missing={
            name: f"ends at {lowest[name]:.4f}" for name in recipes[1:] if name not in reached
        },
        goal=goal,
        notes=tuple(
            f"{r.recipe}, seed {r.seed}: {r.lowest:.4f} at the lowest, ended after "
            f"{r.curve[-1][1]:.0f} s"
            for r in runs
        ),
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.time_to_quality",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--presets", default="fast_shakespeare_char,nanogpt_cpu")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--goal", type=float)
    options, rest = parser.parse_known_args(arguments)
    recipes, values = options.presets.split(","), _values(rest)
    kept, runs = read_runs(RUNS), []
    for seed in map(int, options.seeds.split(",")):
        for recipe in recipes:  # in turns
            changed = values if recipe == recipes[0] else {}
            config = config_of(recipe, changed, options.target, seed)
            run = next((r for r in kept if is_kept(r, recipe, config)), None)
            if run is None:
                print(f"\n{recipe}, seed {seed}", flush=True)
                run = measure(options.text, recipe, config)
                keep_run(run, RUNS)
            runs.append(run)
    print(f"\n{'recipe':<28} {'seed':>5} {'steps':>6} {'seconds':>8} {'CPU s':>8} {'lowest':>8}")
    for run in runs:
        step, _, _ = run.curve[-1]
        figures = f"{step:6} {run.seconds:8.1f} {run.cpu_seconds:8.0f} {run.lowest:8.4f}"
        print(f"{run.recipe:<28} {run.seed:5} {figures}")
    for recipe in recipes:
        seconds = median(r.seconds for r in runs if r.recipe == recipe)
        reached = f"reached after {seconds:.1f} s" if math.isfinite(seconds) else "not reached"
        print(f"{recipe}: {options.target:g} {reached}, median of {len(runs) // len(recipes)}")
    result = cell(recipes, runs, options.goal)
    if result is None:
        return 1
    write_result(result)
    return 0


def _values(words: Sequence[str]) -> dict[str, Any]:
    """`--key=value` by the type of the key's default."""
    defaults = TrainConfig().to_mapping()
    values: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.removeprefix("--").partition("=")
        if key not in defaults or not separator:
            raise SystemExit(f"{word}: not --key=value with a hyperparameter as the key")
        kind = type(defaults[key])
        values[key] = text == "true" if kind is bool else kind(text)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
