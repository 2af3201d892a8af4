"""Our server in a process of its own, as an operator starts it, on free ports and in a new folder.

The folder links to the models and datasets it is given, so nothing is copied and nothing changed.
Native kernels are those of earlier benchmarks, compiled first if there are none; only a server that
is asked to start as on a new machine has none.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runners import KERNELS

ADDRESS = re.compile(r"serves gRPC on (\S+)")
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that answers."""

    address: str
    pid: int
    started_at: float
    """Just before the process began, in seconds of `time.monotonic()`."""


@contextmanager
def served(
    models: Mapping[str, Path],
    *,
    datasets: Sequence[Path] = (),
    new_machine: bool = False,
    **settings: object,
) -> Iterator[ServerProcess]:
    """Checkpoints by the names to serve them under, all other settings by name.

    Raises RuntimeError if the server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as data:
        for name, checkpoint in models.items():
            _link_files(checkpoint, Path(data) / "models" / name)
        for dataset in datasets:
            _link_files(dataset, Path(data) / "datasets" / dataset.name)
        if not new_machine:
            KERNELS.mkdir(parents=True, exist_ok=True)
            (Path(data) / "kernels").symlink_to(KERNELS.resolve())
            settings = {"kernels": "native", **settings}
        command = [
            sys.executable,
            "-m",
            "server",
            f"--data_dir={data}",
            "--grpc_address=127.0.0.1:0",
            "--http_address=127.0.0.1:0",
            "--log_level=warning",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]
        started_at = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := ADDRESS.search(line):
                    break
            else:
                raise RuntimeError(f"the server ended with exit code {process.wait()}")
            yield ServerProcess(found[1], process.pid, started_at)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _link_files(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).symlink_to(file.resolve())
