import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt import durable

WRITES = """
import sys
from pathlib import Path
from nanogpt import durable
durable.crash_at(sys.argv[2] or None, "trainer")
durable.write_file(Path(sys.argv[1]), b"new")
"""


def write_in_a_process(path: Path, crash_at: str) -> int:
    return subprocess.run([sys.executable, "-c", WRITES, str(path), crash_at]).returncode


@pytest.mark.parametrize(("number", "content"), [(1, b"old"), (2, b"old"), (3, b"new")])
def test_a_crash_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, number: int, content: bytes
) -> None:
    """A flush of the file, the rename, a flush of the folder."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert write_in_a_process(path, f"trainer:{number}") == -signal.SIGKILL
    assert path.read_bytes() == content


@pytest.mark.parametrize("crash_at", ["", "trainer:4", "server:1"])
def test_no_crash_but_at_its_own_number_and_process(tmp_path: Path, crash_at: str) -> None:
    path = tmp_path / "file"
    assert write_in_a_process(path, crash_at) == 0
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("point", ["", "7", "trainer", "trainer:0", "trainer:-1", "client:1"])
def test_a_point_that_is_none_is_refused(point: str) -> None:
    with pytest.raises(ValueError, match="must be server:NUMBER or trainer:NUMBER"):
        durable.crash_at(point, "trainer")
