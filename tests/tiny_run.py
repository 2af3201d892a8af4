"""What tests of training share: a dataset of a few thousand characters and runs of a second."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanogpt.checkpoint import load_model_state, load_train_state
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.config import TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.training.events import Event, EventReader, StepMetrics
from nanogpt.training.run_directory import RunDirectory, RunSpec

TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 16,
    "batch_size": 4,
    "dropout": 0.0,
    "max_iters": 12,
    "lr_decay_iters": 12,
    "warmup_iters": 2,
    "eval_interval": 5,
    "eval_iters": 2,
    "log_interval": 1,
    "device": "cpu",
    "dtype": "float32",
}
MEASURED = {
    "time",
    "create_time",
    "seconds",
    "step_seconds",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "peak_flops",
}
"""Fields that tell how fast or when: no two runs agree on them."""


def make_dataset(folder: Path, text: str = "the quick brown fox jumps over the lazy dog\n" * 60):
    source = folder.with_suffix(".txt")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    prepare_text(source, folder, tokenizer="char")


def make_run(data_dir: Path, name: str = "run", *, init: str | None = None, **config: Any):
    """A run directory below data_dir/runs, on the dataset data_dir/datasets/tiny."""
    if not (data_dir / "datasets" / "tiny").exists():
        make_dataset(data_dir / "datasets" / "tiny")
    directory = RunDirectory(data_dir / "runs" / name)
    directory.write_spec(
        RunSpec(
            job_id=name,
            model="tiny",
            dataset_dir="../../datasets/tiny",
            config=TrainConfig.from_mapping({**TINY, **config}),
            init_checkpoint=init,
        )
    )
    return directory


def events_of(directory: RunDirectory) -> list[Event]:
    return EventReader(directory.metrics_path).read()


def record_of(directory: RunDirectory) -> list[dict[str, Any]]:
    """The events without what is measured: equal for two equal runs."""
    return [
        {"sequence": event.sequence, "kind": type(event.body).__name__}
        | {name: value for name, value in asdict(event.body).items() if name not in MEASURED}
        for event in events_of(directory)
    ]


def bodies_of(directory: RunDirectory, kind: type) -> list[Any]:
    return [event.body for event in events_of(directory) if isinstance(event.body, kind)]


@contextmanager
def trainer_process(
    directory: RunDirectory, *options: str, stdin: int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[bytes]"]:
    """The real trainer, with one thread, its output in log.txt; killed if the test fails."""
    with directory.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nanogpt.training", str(directory.path), *options],
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def run_to_end(directory: RunDirectory) -> int:
    """The exit code of the real trainer."""
    with trainer_process(directory) as process:
        return process.wait(timeout=90)


def wait_for_step(directory, process, step):
    """Returns once the trainer has recorded a step not before this one."""
    reader = EventReader(directory.metrics_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = [e.body.step for e in reader.read() if isinstance(e.body, StepMetrics)]
        if steps and steps[-1] >= step:
            return
        assert process.poll() is None, directory.log_path.read_text()
        time.sleep(0.001)
    raise AssertionError(directory.log_path.read_text())


def final_state(directory):
    folder = newest_valid(directory.checkpoints_path)
    return {**load_model_state(folder), **load_train_state(folder)}
