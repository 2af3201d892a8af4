"""Runs one run on a Ray cluster: `python -m nanogpt.training.ray_driver RUN_DIR`, on a node of it.

Places as many workers as the spec says, wherever the cluster has room, each of which starts
`python -m nanogpt.training RUN_DIR` as one process of the run. If one dies, or its machine, all
start again and go on from the newest checkpoint. SIGTERM lets them finish the step and write one.
How the run ended stands in RUN_DIR/exit_code.

The run directory and the dataset are on a folder that all nodes share under the same path. Needs
the extra `ray`, on the cluster only; the model and the data it does not know.
https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nanogpt.option import InvalidConfig
from nanogpt.training.group import HOLD_FLAG, LEAVE_SECONDS, MAX_RESTARTS, MEMBER_FLAG
from nanogpt.training.run_directory import ERROR_PREFIX, ExitCode, RunDirectory

POLL_SECONDS = 0.5
"""How often the driver looks for a stop that was asked for."""


class Worker:
    """One process of the run, on whichever node. An actor: two of its calls run at a time."""

    def address(self) -> tuple[str, int]:
        """Where the first process can wait for the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, run_dir: str, variables: dict[str, str]) -> int:
        """The exit code of the process; its output goes to the run's log.

        The process dies with this actor: its standard input ends.
        """
        directory = RunDirectory(Path(run_dir))
        with directory.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nanogpt.training", run_dir, MEMBER_FLAG, HOLD_FLAG],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            )
        return self._process.wait()

    def stop(self) -> None:
        """Asks the process to finish its step and leave."""
        with suppress(OSError):  # it has left
            assert self._process.stdin is not None
            self._process.stdin.write(b".")
            self._process.stdin.flush()


def main(run_dir: Path) -> int:
    """0 if it is known how the run ended, else 1."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    directory = RunDirectory(run_dir)
    directory.exit_code_path.unlink(missing_ok=True)
    try:
        config = directory.read_spec().config
    except InvalidConfig as error:
        _log(directory, f"{ERROR_PREFIX}{error}")
        directory.write_exit_code(ExitCode.BAD_CONFIG)
        return 0
    ray.init(address="auto", log_to_driver=False)
    signal.signal(signal.SIGTERM, handle)  # only now: Ray has set a handler of its own
    signal.signal(signal.SIGINT, handle)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    on_gpu = config.device == "cuda" or (config.device == "auto" and has_gpus)
    needs = {"CPU": 1.0, "GPU": 1.0} if on_gpu else {"CPU": 1.0}
    for _ in range(MAX_RESTARTS + 1):
        _run_once(directory, config.processes, needs, stop)
        if directory.read_exit_code() is not None:
            return 0
        if stop.is_set():  # before there was anything to stop
            directory.write_exit_code(ExitCode.INTERRUPTED)
            return 0
    _log(directory, f"{MAX_RESTARTS} restarts were not enough")
    return 1


def _run_once(
    directory: RunDirectory, size: int, needs: dict[str, float], stop: threading.Event
) -> None:
    """Starts all processes and returns when all have left, one way or another."""
    room = placement_group([needs] * size, strategy="SPREAD")
    ready, waited = room.ready(), False
    while not ray.wait([ready], timeout=POLL_SECONDS)[0]:
        if stop.is_set():
            remove_placement_group(room)
            return
        if not waited:
            _log(directory, f"waiting for {size} times {needs} on the cluster")
            waited = True
    make = ray.remote(Worker)
    workers: list[Any] = [
        make.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0.0),
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(room, rank),
        ).remote()
        for rank in range(size)
    ]
    try:
        host, port = ray.get(workers[0].address.remote())
        variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        runs = [
            worker.run.remote(
                str(directory.path), {**variables, "RANK": str(rank), "LOCAL_RANK": "0"}
            )
            for rank, worker in enumerate(workers)
        ]
        _follow(workers, runs, stop)
    except ray.exceptions.RayError as error:  # a worker is gone, or its node
        _log(directory, f"a worker was lost: {type(error).__name__}")
    finally:
        for worker in workers:
            ray.kill(worker)
        remove_placement_group(room)


def _follow(workers: list[Any], runs: list[Any], stop: threading.Event) -> None:
    """Returns when all processes have left, or some time after the first that crashed."""
    asked, deadline = False, float("inf")
    while runs and time.monotonic() < deadline:
        done, runs = ray.wait(runs, timeout=POLL_SECONDS)
        if any(code != 0 for code in ray.get(done)):
            deadline = min(deadline, time.monotonic() + LEAVE_SECONDS)
        if stop.is_set() and not asked:
            asked = True
            for worker in workers:
                worker.stop.remote()


def _log(directory: RunDirectory, line: str) -> None:
    print(line, flush=True)
    with suppress(OSError), directory.log_path.open("a") as log:
        log.write(line + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except Exception:  # whatever Ray may raise: the run's log is where one looks
        _log(RunDirectory(Path(sys.argv[1])), traceback.format_exc())
        raise
