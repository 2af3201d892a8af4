"""A data folder has one server."""

import subprocess
import sys

import pytest

from server.data_dir import claim
from server.errors import CannotStart


def test_a_folder_is_made_held_and_let_go(tmp_path):
    folder = tmp_path / "a" / "b"
    with claim(folder):
        with pytest.raises(CannotStart, match="another server"):
            claim(folder)
    claim(folder).close()


def test_the_kernel_lets_go_of_a_killed_servers_folder(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from server.data_dir import claim\n"
        "lock = claim(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -9
    claim(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="file"):
        claim(tmp_path / "file")
