"""ExportModel as its callers see it, and that nothing of an export stays on the server's disk."""

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace

import anyio
import grpc
import pytest
import torch
from serving import (
    CONFIG,
    TOKENIZER,
    damage,
    model_store,
    refused,
    served,
    tiny_model,
    until,
    violations,
    write_checkpoint,
    write_job_checkpoint,
)

from nanogpt.checkpoint import load_model_state, publish_model
from nanogpt.datasets.prepare import prepare_text
from nanogpt.interop.nanogpt_checkpoint import import_nanogpt
from nanogpt.tokenizer import GPT2Tokenizer
from protos.nanogpt.v1 import models_pb2 as pb
from server.models import exports
from server.services import models as service

Code = grpc.StatusCode
CHARS = {"hugging_face": "chars.json", "nanogpt": "meta.json"}


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(service, "PIECE_BYTES", 1000)


def request(name: str = "tiny", format: str = "nanogpt") -> pb.ExportModelRequest:
    return pb.ExportModelRequest(name=name, format=f"MODEL_FORMAT_{format.upper()}")


async def export(server, to, *wanted: str) -> list[str]:
    """Writes an export to a folder and returns the names of its files in the order they came."""
    to.mkdir(parents=True, exist_ok=True)
    names = []
    async for piece in server.models.ExportModel(request(*wanted)):
        assert 0 < len(piece.data) <= service.PIECE_BYTES
        if piece.file not in names:
            names.append(piece.file)
            (to / piece.file).write_bytes(b"")
        assert piece.file == names[-1]
        with (to / piece.file).open("ab") as file:
            file.write(piece.data)
    return names


def left(folder) -> list:
    return list((folder / "exports").iterdir())


def same(state, expected) -> bool:
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("format", ["hugging_face", "nanogpt"])
async def test_an_export_comes_back_as_the_same_model(folder, small_pieces, format):
    text = folder / "text.txt"
    text.write_text("".join(TOKENIZER.characters) * 100)
    (folder / "datasets").mkdir()
    prepare_text(text, folder / "datasets" / "text", tokenizer="char")
    async with served(folder) as server:
        names = await export(server, folder / "imports" / "back", "tiny", format)
        assert names == sorted(names) and CHARS[format] in names
        await until(lambda: not left(folder))
        answer = await server.models.ImportModel(
            pb.ImportModelRequest(
                name="copy", source="back", format=request(format=format).format, dataset="text"
            )
        )
        assert answer.model.tokenizer == "char"
        state = load_model_state(folder / "models" / "copy")
        expected = tiny_model().state_dict()
        assert same({name: state[name] for name in expected}, expected)
        assert not any(state[name].any() for name in state.keys() - expected.keys())  # biases


async def test_models_go_out_as_gguf(folder):
    write_checkpoint(folder / "models" / "small", tokenizer=GPT2Tokenizer())
    async with served(folder) as server:
        for name in ("tiny", "small"):  # characters, GPT-2's tokens
            assert await export(server, folder / "out", name, "gguf") == [f"{name}.gguf"]
            assert (folder / "out" / f"{name}.gguf").read_bytes()[:8] == b"GGUF\x03\0\0\0"
        await until(lambda: not left(folder))


async def test_a_modern_model_goes_out_where_there_is_a_place_for_it(folder):
    config = replace(CONFIG, bias=False, arch="modern")
    write_checkpoint(folder / "models" / "modern", config=config)
    async with served(folder) as server:
        assert "config.json" in await export(server, folder / "out", "modern", "hugging_face")
        for format in ("nanogpt", "gguf"):
            error = await refused(server.models.ExportModel(request("modern", format)))
            assert error.code() == Code.FAILED_PRECONDITION
            assert f"the format {format} cannot hold" in error.details()


async def test_an_ensemble_goes_nowhere(folder):
    config = replace(CONFIG, bias=False, arch="modern", n_member=2)
    write_checkpoint(folder / "models" / "two", config=config)
    async with served(folder) as server:
        for format in ("hugging_face", "nanogpt", "gguf"):
            error = await refused(server.models.ExportModel(request("two", format)))
            assert error.code() == Code.FAILED_PRECONDITION
            assert "is an ensemble" in error.details()


async def test_every_reference_leads_to_its_weights(folder):
    for step in (100, 200):
        publish_model(write_job_checkpoint(folder, "j1", step), folder / "models" / "trained")
    write_job_checkpoint(folder, "j1", 300)
    async with served(folder) as server:
        for reference, step in [
            ("trained", 200),
            ("trained@100", 100),
            ("job:j1", 300),
            ("job:j1@200", 200),
        ]:
            await export(server, folder / "out", reference)
            assert torch.load(folder / "out" / "ckpt.pt", weights_only=True)["iter_num"] == step
            _, state = import_nanogpt(folder / "out" / "ckpt.pt")
            assert same(state, tiny_model(seed=step).state_dict())


async def test_wrong_requests(folder):
    async with served(folder) as server:
        for format in (pb.MODEL_FORMAT_UNSPECIFIED, 99):
            wrong = pb.ExportModelRequest(name="tiny", format=format)
            found = violations(await refused(server.models.ExportModel(wrong)))
            assert set(found) == {"format"} and "MODEL_FORMAT_GGUF" in found["format"]
        for name in ("", "../tiny", "TINY"):
            error = await refused(server.models.ExportModel(request(name)))
            assert set(violations(error)) == {"name"}
        for name in ("nobody", "tiny@11", "job:nobody"):
            error = await refused(server.models.ExportModel(request(name)))
            assert error.code() is Code.NOT_FOUND
        damage(folder / "models" / "tiny")
        error = await refused(server.models.ExportModel(request()))
        assert error.code() is Code.DATA_LOSS
        assert left(folder) == []


async def test_a_full_disk(folder, monkeypatch):
    monkeypatch.setattr(exports.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    async with served(folder) as server:
        error = await refused(server.models.ExportModel(request()))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "disk" in error.details()


async def test_a_caller_that_leaves_while_it_reads(folder, small_pieces):
    async with served(folder) as server:
        call = server.models.ExportModel(request())
        assert (await call.read()).file == "ckpt.pt"
        call.cancel()
        await until(lambda: not left(folder))


async def test_a_caller_that_leaves_while_files_are_written(folder, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(to, *model) -> None:
        begun.set()
        go_on.wait(20)
        (to / "late").write_bytes(b"late")

    async with served(folder) as server:
        with monkeypatch.context() as patch:
            patch.setitem(exports.EXPORTERS, "nanogpt", slow)
            call = server.models.ExportModel(request())
            await asyncio.to_thread(begun.wait, 20)
            call.cancel()
            assert len(left(folder)) == 1
            go_on.set()
            await until(lambda: not left(folder))
        assert "ckpt.pt" in await export(server, folder / "out")  # the next one is not held up


async def test_one_that_is_cancelled_again_and_again_leaves_nothing(folder):
    """As Starlette ends the answer to a visitor who has left: every await is cancelled."""
    async with model_store(folder) as store:
        with anyio.CancelScope() as leaving:
            async with store.export("tiny", "nanogpt"):
                leaving.cancel()
                await asyncio.Event().wait()
        await until(lambda: not list((folder / "exports").iterdir()))


async def test_a_start_deletes_what_a_killed_server_left(folder):
    (folder / "exports" / "old").mkdir(parents=True)
    (folder / "exports" / "old" / "ckpt.pt").write_bytes(b"half")
    async with served(folder):
        assert left(folder) == []
