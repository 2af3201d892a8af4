"""The client stands alone and starts at once: what importing it pulls in, in a fresh process."""

import os
import subprocess
import sys
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


def test_version_takes_less_than_half_a_second_of_a_processor():
    before = os.times()
    run = subprocess.run(
        [sys.executable, "-m", "client", "version"], cwd=ROOT, capture_output=True, text=True
    )
    after = os.times()
    assert run.stdout == f"nanogpt-service {client.__version__}\n"
    user = after.children_user - before.children_user
    system = after.children_system - before.children_system
    assert user + system < 0.5  # 0.1 s where nothing else runs


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == client.__version__


def test_every_exported_name_exists():
    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    with pytest.raises(AttributeError, match="Clint"):
        _ = client.Clint
