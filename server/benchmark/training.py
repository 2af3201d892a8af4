"""Times optimizer steps in a process of their own: `python -m nanogpt.training.benchmark`.

The two speak JSON: options on its standard input, the result on its standard output. The process
ends when whoever asked for the benchmark goes away. Knows nothing about protobuf.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanogpt.option import Violation
from nanogpt.training.benchmark import BenchmarkOptions
from nanogpt.training.run_directory import ERROR_PREFIX, ExitCode
from server.benchmark.inference import DeviceInfo
from server.dataset_store import DatasetStore
from server.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from server.jobs.launcher import end_first_without_memory
from server.serving.figures import Percentiles

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "nanogpt.training.benchmark")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What was measured; fields are those of the message of the same name."""

    step_seconds: Percentiles
    tokens_per_second: float
    flops_per_step: float
    mfu: float | None
    loss: float
    peak_memory_bytes: int
    parameter_count: int


class TrainingBenchmarkFailed(Exception):
    """The process ended in a way that it does not document."""


class TrainingBenchmark:
    """Runs one training benchmark at a time, while no job trains."""

    def __init__(
        self,
        data_dir: Path,
        *,
        datasets: DatasetStore,
        models_in_training: Callable[[], Awaitable[set[str]]],
        device: str = "auto",
        threads: int | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`models_in_training` tells which models jobs train or are about to."""
        self._data_dir = data_dir
        self._datasets = datasets
        self._models_in_training = models_in_training
        self._device = device
        self._command = list(command)
        self._environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)
        self._running = asyncio.Lock()

    async def run(self, values: Mapping[str, Any]) -> tuple[TrainingResult, DeviceInfo]:
        """Takes the steps that fields of the message TrainingBenchmark ask for, absent ones being
        defaults; returns what they took, and on what.

        Raises InvalidConfig naming fields out of range, InvalidArgument if the network cannot be
        trained on the dataset, NotFound if there is no such dataset, FailedPrecondition while a
        job or another benchmark trains, ResourceExhausted if memory runs out.
        """
        values = {**values, "device": self._device}
        if dataset := values.get("dataset"):
            values["dataset_dir"] = str((self._data_dir / "datasets" / dataset).absolute())
        options = BenchmarkOptions.from_mapping(values)
        if dataset:
            await asyncio.to_thread(self._datasets.get, dataset)
        if training := await self._models_in_training():
            model = min(training)
            raise FailedPrecondition(
                "job_training",
                model,
                f"the job of model {model!r} has not ended; wait for it or cancel it",
            )
        if self._running.locked():
            raise FailedPrecondition(
                "benchmark_running", "training", "another training benchmark runs; wait for it"
            )
        async with self._running:
            exit_code, output, errors = await self._run_process(json.dumps(asdict(options)))
        if exit_code == ExitCode.DONE:
            return _parse(output)
        raise _explain(exit_code, errors)

    async def _run_process(self, options: str) -> tuple[int, str, str]:
        """Exit code and all output of the process, which does not outlive this call."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C in the server's terminal is not for it
        )
        end_first_without_memory(process.pid)
        try:
            output, errors = await process.communicate(options.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")


def _parse(output: str) -> tuple[TrainingResult, DeviceInfo]:
    answer = json.loads(output.splitlines()[-1])
    result = {**answer["result"], "step_seconds": Percentiles(**answer["result"]["step_seconds"])}
    return TrainingResult(**result), DeviceInfo(**answer["device"])


def _explain(exit_code: int, errors: str) -> Exception:
    """The error of a process that gave no result. Its last line is written for the caller."""
    sentence = errors.strip().rpartition("\n")[2].removeprefix(ERROR_PREFIX)
    match exit_code:
        case ExitCode.BAD_CONFIG | ExitCode.DIVERGED:
            return InvalidArgument([Violation("training", sentence)])
        case ExitCode.BAD_DATASET:
            return InvalidArgument([Violation("training.dataset", sentence)])
        case ExitCode.OUT_OF_MEMORY:
            return ResourceExhausted(sentence, limit="memory")
    logger.error("the training benchmark ended with exit code %d:\n%s", exit_code, errors)
    return TrainingBenchmarkFailed(f"exit code {exit_code}")
