"""A crash right before each durable operation: every flush, every rename, every commit, in turn.

A life of server and trainer ends before its first durable operation, then before its second, and
so on until one is never reached. After each, the next life goes on with what is on the disk; then
there is one job, it has succeeded, and its record and weights are those of a run without a crash.

    python -m pytest -m campaign -s tests/campaigns/test_crash_points.py
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from campaign import SCALE, SEED, Report, record_of, sha256
from fake_trainer import make_dataset

from nanogpt.training.run_directory import RunDirectory

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(7200)]

TESTS = Path(__file__).parent.parent


class Zygote:
    """The process whose forks live the lives."""

    def __init__(self, log: Path) -> None:
        self.log = log
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "campaigns")))
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(TESTS / "campaigns" / "crash_zygote.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                text=True,
            )

    def live(self, data_dir: Path, seed: int, crash_at: str | None = None) -> int:
        """How a life on that data folder ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        wish = {"data_dir": str(data_dir), "crash_at": crash_at, "seed": seed}
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.log.read_text()
        return int(answer)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote") / "log.txt")
    yield zygote
    zygote.close()


@dataclass
class Outcome:
    """What two equal lives must agree on, and how often a trainer was started."""

    record: list[dict[str, Any]]
    weights: str
    num_attempts: int


def outcome(data_dir: Path) -> Outcome:
    database = sqlite3.connect(data_dir / "jobs.sqlite")
    jobs = database.execute("SELECT id, state FROM jobs").fetchall()
    attempts = database.execute("SELECT COUNT(*) FROM attempts").fetchone()[0]
    database.close()
    assert [state for _, state in jobs] == ["SUCCEEDED"]
    run = RunDirectory(data_dir / "runs" / jobs[0][0])
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    weights = sha256(data_dir / "models" / "m" / "model.safetensors")
    return Outcome(record_of(run), weights, attempts)


def new_data_dir(folder: Path, datasets: Path) -> Path:
    folder.mkdir()
    (folder / "datasets").symlink_to(datasets)
    return folder


@pytest.mark.parametrize("process", ["server", "trainer"])
@pytest.mark.parametrize("repetition", range(SCALE))
def test_a_crash_before_any_durable_operation_loses_nothing(
    tmp_path: Path, zygote: Zygote, process: str, repetition: int
) -> None:
    report = Report(f"crash points of the {process}")
    seed = random.Random(f"{SEED} {repetition}").randrange(1 << 32)
    make_dataset(tmp_path / "shared")
    datasets = tmp_path / "shared" / "datasets"
    whole = new_data_dir(tmp_path / "whole", datasets)
    assert zygote.live(whole, seed) == 0, zygote.log.read_text()
    expected = outcome(whole)
    assert expected.num_attempts == 1

    number, crashed = 0, True
    while crashed:
        number += 1
        data_dir = new_data_dir(tmp_path / f"{process}-{number}", datasets)
        code = zygote.live(data_dir, seed, f"{process}:{number}")
        if process == "server":
            crashed = code == -signal.SIGKILL
            if crashed:
                code = zygote.live(data_dir, seed)
        assert code == 0, f"{process}:{number} in {data_dir}"
        found = outcome(data_dir)
        if process == "trainer":
            crashed = found.num_attempts > 1
        assert found.record == expected.record, f"{process}:{number}"
        assert found.weights == expected.weights, f"{process}:{number}"
    assert number > 10
    report.print(durable_operations=number - 1, crashes=number - 1, jobs_lost=0)
