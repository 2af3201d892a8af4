"""The client stands alone and starts at once: what importing it pulls in, in a fresh process."""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import client

ROOT = Path(__file__).parent.parent


def modules_after(code: str) -> set[str]:
    """Top-level names of all modules that a fresh process has after running the code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import client",
        "from client import Client, AsyncClient, NanoGPTError, Generation, TrainingBenchmark",
        "import client.cli",
        "from client.commands.table import COMMANDS\nfor c in COMMANDS: c.load()",
    ],
)
def test_the_client_needs_no_part_of_the_server(code):
    heavy = {"torch", "numpy", "tiktoken", "safetensors", "nanogpt", "server"}
    assert not modules_after(code) & heavy


def test_what_calls_no_server_loads_no_grpc():
    loaded = modules_after(
        "from client.cli import main\nmain(['version'])\nmain(['help', 'train'])"
    )
    assert not loaded & {"grpc", "google", "rich", "protos", "pydantic", "asyncio"}


def test_version_prints_within_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "client", "version"], cwd=ROOT, capture_output=True, text=True
        )
        assert run.stdout == f"nanogpt-service {client.__version__}\n"
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == client.__version__


def test_every_exported_name_exists():
    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    with pytest.raises(AttributeError, match="Clint"):
        _ = client.Clint
