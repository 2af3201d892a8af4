"""What all campaigns share: how much of them to run, and the seed that repeats one.

CAMPAIGN_SCALE=10 multiplies every count, CAMPAIGN_SEED=1234 repeats what printed that seed.
"""

import hashlib
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanogpt.training.events import EventReader
from nanogpt.training.run_directory import RunDirectory

SCALE = int(os.environ.get("CAMPAIGN_SCALE", "1"))
SEED = int(os.environ.get("CAMPAIGN_SEED", random.randrange(1 << 32)))

MEASURED = {
    "time",
    "create_time",
    "seconds",
    "step_seconds",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "peak_flops",
    "estimated_memory_bytes",
}
"""Fields of events that tell how fast something went, or when: no two runs agree on them."""


def record_of(run: RunDirectory) -> list[dict[str, Any]]:
    """A run's events, without what is measured. Raises ValueError for a gap or a repetition."""
    return [
        {
            "sequence": event.sequence,
            "kind": type(event.body).__name__,
            **{k: v for k, v in asdict(event.body).items() if k not in MEASURED},
        }
        for event in EventReader(run.metrics_path).read()
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Report:
    """Prints one line about a campaign: what docs/guarantees.md lists."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()
        print(f"\n{name}: seed {SEED}", flush=True)

    def print(self, **figures: object) -> None:
        words = [f"{value} {key.replace('_', ' ')}" for key, value in figures.items()]
        seconds = time.monotonic() - self._start
        print(f"\n{self._name}: seed {SEED}; {', '.join(words)}; {seconds:.0f} s")
