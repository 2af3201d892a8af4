"""Exported files arrive whole or not at all, from a server with canned answers."""

import asyncio
from pathlib import Path

import pytest
from fake_server import FakeServer

from client import AsyncClient, Client
from client.errors import DataLoss, NanoGPTError, NotFound
from client.export import write_files
from protos.nanogpt.v1.models_pb2 import (
    MODEL_FORMAT_GGUF,
    MODEL_FORMAT_NANOGPT,
    ExportModelRequest,
    ExportModelResponse,
    ImportModelRequest,
)

WHOLE = {"config.json": b"{}", "model.safetensors": b"one two"}


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_arrive(server, tmp_path):
    folder, moved = tmp_path / "new" / "bard", []
    with Client(server.address) as client:
        paths = client.export_model("bard", "gguf", folder, progress=moved.append)
        assert client.import_model("poet", "files", "nanogpt", dataset="plays").name == "poet"
    assert paths == [folder / name for name in WHOLE]
    assert contents(folder) == WHOLE
    assert moved == [2, 4, 3]
    (request,) = server.asked(ExportModelRequest)
    assert (request.name, request.format) == ("bard", MODEL_FORMAT_GGUF)
    (request,) = server.asked(ImportModelRequest)
    assert (request.source, request.format, request.dataset) == (
        "files",
        MODEL_FORMAT_NANOGPT,
        "plays",
    )


def test_files_arrive_at_the_async_client(server, tmp_path):
    async def run() -> list[Path]:
        async with AsyncClient(server.address) as client:
            return await client.export_model("bard", "nanogpt", tmp_path)

    assert asyncio.run(run()) == [tmp_path / name for name in WHOLE]
    assert contents(tmp_path) == WHOLE


def test_files_of_the_same_names_are_replaced_and_others_stay(server, tmp_path):
    (tmp_path / "config.json").write_bytes(b"old")
    (tmp_path / "notes").write_bytes(b"mine")
    with Client(server.address) as client:
        client.export_model("bard", "hugging_face", tmp_path)
    assert contents(tmp_path) == {**WHOLE, "notes": b"mine"}


def test_half_an_export_leaves_nothing(server, tmp_path):
    (tmp_path / "config.json").write_bytes(b"old")
    with Client(server.address) as client:
        with pytest.raises(DataLoss):
            client.export_model("damaged", "hugging_face", tmp_path)
        assert contents(tmp_path) == {"config.json": b"old"}
        with pytest.raises(NotFound):
            client.export_model("nobody", "hugging_face", tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(ValueError, match="MODEL_FORMAT_ONNX"):
            client.export_model("bard", "onnx", tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "a\\b", "..", ".hidden", ""])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    pieces = [ExportModelResponse(file="first"), ExportModelResponse(file=name, data=b"x")]
    with pytest.raises(NanoGPTError, match="which is no file's"):
        write_files(pieces, tmp_path / "in")
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]
