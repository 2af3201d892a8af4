"""Largest memory that a contender of the suite `training` takes, in a process of its own.

    python -m benchmarks.training_memory < JSON     what the suite does for each contender

Two steps: the second one has the optimizer's state beside activations and gradients. What the
process needs to import and to choose how it computes counts as well: a user pays it too.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict

import torch

from benchmarks.training_works import Work, batches_of, initial_weights, our_step, peer
from nanogpt.config import TrainConfig
from nanogpt.device import peak_memory_bytes, pick_dtype
from nanogpt.training.allocator import keep_freed_memory

STEPS = 2


def peak_memory(work: Work, contenders: Iterable[str]) -> dict[str, int]:
    """Bytes of each contender, by name. Raises CalledProcessError if one fails."""
    found = {}
    for name in contenders:
        asked = {**asdict(work), "config": work.config.to_mapping()}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.training_memory"],
            input=json.dumps({"contender": name, "work": asked}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[name] = int(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Takes the steps and prints the peak in bytes."""
    asked = json.load(sys.stdin)
    values = asked["work"]
    config = TrainConfig.from_mapping(values.pop("config"))
    work = Work(**values, config=config)
    if asked["contender"] == "ours":
        keep_freed_memory()
        dtype = pick_dtype(config.dtype, torch.device("cpu"))
        step, _ = our_step(work, initial_weights(work), dtype)
    else:
        step = peer(work, asked["contender"])
    batches = batches_of(work)
    for number in range(STEPS):
        step(*batches.at(number))
    print(peak_memory_bytes(torch.device("cpu")))


if __name__ == "__main__":
    main()
