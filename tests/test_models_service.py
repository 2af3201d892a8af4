"""ModelService as its clients see it."""

import json
import time

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from safetensors.torch import save_file
from serving import (
    CONFIG,
    damage,
    detail,
    refused,
    served,
    tiny_model,
    violations,
    write_checkpoint,
    write_job_checkpoint,
)

from nanogpt.flops import parameter_count
from nanogpt.interop.hugging_face import hugging_face_config, to_hugging_face
from nanogpt.tokenizer import GPT2Tokenizer
from protos.nanogpt.v1 import inference_pb2
from protos.nanogpt.v1 import models_pb2 as pb
from server.models import runners

Code = grpc.StatusCode
State = pb.Model.State


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny", job_id="j0")
    return tmp_path


async def test_a_model_is_described(folder):
    async with served(folder) as server:
        model = (await server.models.GetModel(pb.GetModelRequest(name="tiny"))).model
        assert (model.name, model.job_id, model.step, model.tokenizer) == ("tiny", "j0", 10, "char")
        assert model.state == State.STATE_UNLOADED
        assert model.parameter_count == parameter_count(CONFIG)
        assert not model.precision and not model.HasField("memory_bytes")
        assert model.val_loss == 4.0 and model.size_bytes > 4 * model.parameter_count
        assert abs(model.create_time.ToNanoseconds() / 1e9 - time.time()) < 60
        for field in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias"):
            assert getattr(model.config, field) == getattr(CONFIG, field)


async def test_models_are_listed_newest_first(folder):
    write_checkpoint(folder / "models" / "newer")
    write_checkpoint(folder / "models" / "torn")
    (folder / "models" / "torn" / "meta.json").write_text("{")
    async with served(folder) as server:
        await server.models.LoadModel(pb.LoadModelRequest(name="tiny"))
        models = (await server.models.ListModels(pb.ListModelsRequest())).models
        assert [(model.name, model.state) for model in models] == [
            ("newer", State.STATE_UNLOADED),
            ("tiny", State.STATE_LOADED),
        ]


async def test_load_unload_delete(folder):
    async with served(folder) as server:
        for _ in range(2):  # loading a loaded model is no error
            response = await server.models.LoadModel(pb.LoadModelRequest(name="tiny"))
            assert response.model.state == State.STATE_LOADED
        error = await refused(server.models.DeleteModel(pb.DeleteModelRequest(name="tiny")))
        assert error.code() is Code.FAILED_PRECONDITION
        failure = detail(error, error_details_pb2.PreconditionFailure)
        assert failure.violations[0].subject == "tiny"
        for _ in range(2):
            response = await server.models.UnloadModel(pb.UnloadModelRequest(name="tiny"))
            assert response.model.state == State.STATE_UNLOADED
        await server.models.DeleteModel(pb.DeleteModelRequest(name="tiny"))
        error = await refused(server.models.GetModel(pb.GetModelRequest(name="tiny")))
        assert error.code() is Code.NOT_FOUND


async def test_a_model_is_held_in_the_precision_asked_for(folder):
    async with served(folder) as server:
        request = pb.LoadModelRequest(name="tiny")
        model = (await server.models.LoadModel(request)).model
        assert model.precision == "float32"
        whole_bytes = model.memory_bytes
        request.precision = "bfloat16"
        model = (await server.models.LoadModel(request)).model  # anew
        assert model.precision == "bfloat16"
        assert whole_bytes - model.memory_bytes == 2 * model.parameter_count
        wanted = inference_pb2.GenerateRequest(model="tiny")
        async for message in server.inference.Generate(wanted):
            if message.HasField("started"):
                assert message.started.precision == "bfloat16"
        await server.models.UnloadModel(pb.UnloadModelRequest(name="tiny"))
        model = (await server.models.GetModel(pb.GetModelRequest(name="tiny"))).model
        assert not model.precision and not model.HasField("memory_bytes")


async def test_the_weights_in_memory_may_be_older_than_the_newest_of_a_job(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with served(tmp_path) as server:

        async def steps() -> tuple[int, int | None]:
            model = (await server.models.GetModel(pb.GetModelRequest(name="job:j1"))).model
            loaded = model.weight_version if model.HasField("weight_version") else None
            return model.step, loaded

        assert await steps() == (100, None)
        await server.models.LoadModel(pb.LoadModelRequest(name="job:j1"))
        write_job_checkpoint(tmp_path, "j1", 200)
        assert await steps() == (200, 100)
        await server.models.LoadModel(pb.LoadModelRequest(name="job:j1"))
        assert await steps() == (200, 200)


async def test_a_precision_that_cannot_be_had_leaves_the_model_as_it_is(folder, monkeypatch):
    async with served(folder) as server:
        monkeypatch.setattr(runners, "TORCH_PRECISIONS", {"float32": torch.float32})
        request = pb.LoadModelRequest(name="tiny", precision="bfloat16")
        for _ in range(2):  # not loaded, loaded
            error = await refused(server.models.LoadModel(request))
            assert error.code() is Code.FAILED_PRECONDITION
            failure = detail(error, error_details_pb2.PreconditionFailure)
            assert failure.violations[0].subject == "bfloat16"
            model = await server.models.LoadModel(pb.LoadModelRequest(name="tiny"))
            assert model.model.precision == "float32"
        request.precision = "float64"
        found = violations(await refused(server.models.LoadModel(request)))
        allowed = "must be float32, bfloat16, int8 or int4"
        assert found == {"precision": f"{allowed}, got 'float64'"}


async def test_checkpoints_of_a_job_can_be_loaded(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with served(tmp_path) as server:
        model = (await server.models.LoadModel(pb.LoadModelRequest(name="job:j1"))).model
        assert (model.name, model.step, model.state) == ("trained", 100, State.STATE_LOADED)
        write_job_checkpoint(tmp_path, "j1", 200)
        model = (await server.models.GetModel(pb.GetModelRequest(name="job:j1"))).model
        assert model.step == 200
        await server.models.UnloadModel(pb.UnloadModelRequest(name="job:j1"))


async def test_names_are_checked(folder):
    async with served(folder) as server:
        calls = {
            "GetModel": pb.GetModelRequest,
            "LoadModel": pb.LoadModelRequest,
            "UnloadModel": pb.UnloadModelRequest,
            "DeleteModel": pb.DeleteModelRequest,
        }
        for method, message in calls.items():
            call = getattr(server.models, method)
            assert (await refused(call(message(name="other")))).code() is Code.NOT_FOUND
            for name in ("", "../tiny", "/etc", "tiny/meta.json", "TINY"):
                assert set(violations(await refused(call(message(name=name))))) == {"name"}
        # files of checkpoints belong to jobs
        error = await refused(server.models.DeleteModel(pb.DeleteModelRequest(name="tiny@10")))
        assert set(violations(error)) == {"name"}


async def test_a_damaged_model_is_not_loaded(folder):
    damage(folder / "models" / "tiny")
    async with served(folder) as server:
        error = await refused(server.models.LoadModel(pb.LoadModelRequest(name="tiny")))
        assert error.code() is Code.DATA_LOSS
        assert str(folder) not in error.details()


async def test_a_model_that_does_not_fit(folder):
    async with served(folder, memory_bytes=1 << 20, num_slots=1000) as server:
        error = await refused(server.models.LoadModel(pb.LoadModelRequest(name="tiny")))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "MB" in error.details()


async def test_an_imported_model_generates(tmp_path):
    source = tmp_path / "imports" / "files"
    source.mkdir(parents=True)
    save_file(to_hugging_face(CONFIG, tiny_model().state_dict()), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(hugging_face_config(CONFIG)))
    async with served(tmp_path) as server:
        request = pb.ImportModelRequest(
            name="mine", source="files", format=pb.MODEL_FORMAT_HUGGING_FACE
        )
        # GPT-2's tokenizer has more tokens than this model
        error = await refused(server.models.ImportModel(request))
        assert str(GPT2Tokenizer.vocab_size) in violations(error)["dataset"]
        request.dataset = "text"
        error = await refused(server.models.ImportModel(request))
        assert error.code() is Code.NOT_FOUND
        _write_dataset(tmp_path)
        model = (await server.models.ImportModel(request)).model
        assert (model.name, model.step, model.job_id, model.tokenizer) == ("mine", 0, "", "char")
        call = server.inference.Generate(inference_pb2.GenerateRequest(model="mine"))
        assert len([response async for response in call]) > 2
        error = await refused(server.models.ImportModel(request))
        assert error.code() is Code.ALREADY_EXISTS


async def test_wrong_imports_are_refused_field_by_field(tmp_path):
    async with served(tmp_path) as server:
        request = pb.ImportModelRequest(
            name="../x", source="/etc", format=pb.MODEL_FORMAT_GGUF, dataset="../d"
        )
        found = violations(await refused(server.models.ImportModel(request)))
        assert set(found) == {"name", "source", "format", "dataset"}
        request = pb.ImportModelRequest(
            name="mine", source="nowhere", format=pb.MODEL_FORMAT_NANOGPT
        )
        assert (await refused(server.models.ImportModel(request))).code() is Code.NOT_FOUND


def _write_dataset(data_dir) -> None:
    """A dataset with the vocabulary of the tiny models."""
    from serving import TOKENIZER

    from nanogpt.datasets.prepare import prepare_text

    text = data_dir / "text.txt"
    text.write_text("".join(TOKENIZER.characters) * 100)
    (data_dir / "datasets").mkdir(exist_ok=True)
    prepare_text(text, data_dir / "datasets" / "text", tokenizer="char")
