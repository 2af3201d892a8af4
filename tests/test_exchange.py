"""The commands export and import against a server with canned answers."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import FakeServer

from client.cli import main
from protos.nanogpt.v1.models_pb2 import (
    MODEL_FORMAT_HUGGING_FACE,
    MODEL_FORMAT_NANOGPT,
    ExportModelRequest,
    ImportModelRequest,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with FakeServer() as server:
        monkeypatch.setenv("NANOGPT_SERVER", server.address)
        yield server


def test_export(server, tmp_path, capsys):
    assert main(["export", "job:j1"]) == 0
    assert capsys.readouterr().out == ("job_j1/config.json: 2 B\njob_j1/model.safetensors: 7 B\n")
    assert (tmp_path / "job_j1" / "model.safetensors").read_bytes() == b"one two"
    assert main(["export", "bard", "--format=nanogpt", "--output=there", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == {"file": "there/model.safetensors", "size_bytes": 7}
    formats = [request.format for request in server.asked(ExportModelRequest)]
    assert formats == [MODEL_FORMAT_HUGGING_FACE, MODEL_FORMAT_NANOGPT]


def test_export_that_fails(server, tmp_path, capsys):
    assert main(["export", "damaged"]) == 1
    assert "model damaged is damaged" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["export", "bard", "--output=file"]) == 2
    assert "cannot write to file: File exists" in capsys.readouterr().err
    assert main(["export", "bard", "--format=onnx"]) == 2
    assert "must be hugging_face or nanogpt or gguf" in capsys.readouterr().err


def test_import(server, capsys):
    assert main(["import", "poet"]) == 0
    assert capsys.readouterr().out.startswith("model poet: 10,745,088 parameters")
    words = ["--source=files", "--format=nanogpt", "--dataset=plays", "--json"]
    assert main(["import", "bard", *words]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "bard"
    first, second = server.asked(ImportModelRequest)
    assert (first.name, first.source, first.dataset) == ("poet", "poet", "")
    assert (second.name, second.source, second.dataset) == ("bard", "files", "plays")
    assert (first.format, second.format) == (MODEL_FORMAT_HUGGING_FACE, MODEL_FORMAT_NANOGPT)


def test_a_terminal_shows_a_progress_bar(server, tmp_path):
    screen, terminal = pty.openpty()
    words = [sys.executable, "-m", "client", "export", "bard", f"--output={tmp_path / 'out'}"]
    with subprocess.Popen(words, cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL) as process:
        assert process.wait(20) == 0
    os.close(terminal)
    with open(screen, "rb", closefd=True) as shown:
        assert b"exporting bard" in shown.read1()
