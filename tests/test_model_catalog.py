"""What references lead to on disk; deleting and importing."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from serving import (
    CONFIG,
    TOKENIZER,
    damage,
    go_back,
    tiny_model,
    write_checkpoint,
    write_job_checkpoint,
)

from nanogpt.checkpoint import load_model, publish_model, read_meta
from nanogpt.checkpoint_folder import (
    hold_checkpoint,
    is_held,
    list_checkpoints,
    pin_checkpoint,
    prune_checkpoints,
)
from nanogpt.flops import parameter_count
from nanogpt.interop.hugging_face import hugging_face_config, to_hugging_face
from nanogpt.model import GPT
from nanogpt.tokenizer import GPT2Tokenizer
from server.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from server.models import catalog as module
from server.models.catalog import ModelCatalog


@pytest.fixture
def catalog(tmp_path):
    return ModelCatalog(tmp_path)


def test_a_name_leads_to_a_model(catalog, tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    ref = catalog.resolve("tiny")
    assert (ref.reference, ref.name, ref.folder) == ("tiny", "tiny", tmp_path / "models" / "tiny")
    assert catalog.read(ref).step == 10
    assert catalog.has("tiny") and not catalog.has("other") and not catalog.has("..")


def test_what_does_not_exist_is_not_found(catalog, tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    for reference in ("other", "other@3", "job:other", "job:other@3", "tiny@11"):
        with pytest.raises(NotFound):
            catalog.resolve(reference)
    with pytest.raises(InvalidArgument):
        catalog.resolve("../models/tiny")


def test_nothing_at_all(catalog):
    assert catalog.list() == []
    with pytest.raises(NotFound, match="no model yet"):
        catalog.resolve("")


def test_a_step_leads_to_a_checkpoint_of_the_job(catalog, tmp_path):
    for step in (100, 200, 300):
        folder = write_job_checkpoint(tmp_path, "j1", step)
    publish_model(folder, tmp_path / "models" / "trained")
    assert catalog.resolve("trained@100").folder.name == "step_000100"
    assert catalog.resolve("trained@100").name == "trained"
    # the model itself: it stays when the job's checkpoints are gone
    assert catalog.resolve("trained@300").folder == tmp_path / "models" / "trained"
    with pytest.raises(NotFound, match="there are 100, 200, 300"):
        catalog.resolve("trained@150")


def test_a_job_leads_to_its_newest_checkpoint(catalog, tmp_path):
    write_job_checkpoint(tmp_path, "j1", 9)
    write_job_checkpoint(tmp_path, "j1", 1_000_000)
    write_job_checkpoint(tmp_path, "j1", 200)
    ref = catalog.resolve("job:j1")
    assert (ref.reference, ref.name, ref.folder.name) == ("job:j1", "trained", "step_1000000")


def test_the_newest_of_a_job_that_went_back_is_not_of_the_highest_step(catalog, tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    abandoned = write_job_checkpoint(tmp_path, "j1", 150)
    before = catalog.resolve("job:j1")
    pin_checkpoint(abandoned)
    go_back(tmp_path, "j1", 100)
    assert catalog.resolve("job:j1").folder.name == "step_000100"
    assert catalog.resolve("job:j1@150").folder == abandoned  # as asked for
    for step in (125, 150):
        folder = write_job_checkpoint(tmp_path, "j1", step, rollbacks=1)
        ref = catalog.resolve("job:j1")
        assert ref.folder == folder
        assert ref.is_as_new_as(before) and not before.is_as_new_as(ref)
    folder = write_job_checkpoint(tmp_path, "j1", 150, rollbacks=1)
    again = catalog.resolve("job:j1")
    assert again.folder == folder and not ref.is_as_new_as(again)


def test_a_look_at_a_job_reads_no_checkpoint_twice(catalog, tmp_path, monkeypatch):
    for step in (100, 200, 300):
        write_job_checkpoint(tmp_path, "j1", step)
    found = catalog.resolve("job:j1")
    monkeypatch.setattr(module, "read_meta", None)
    assert catalog.resolve("job:j1") == found
    monkeypatch.undo()
    go_back(tmp_path, "j1", 200)
    assert catalog.resolve("job:j1").folder.name == "step_000200"


def test_a_job_leads_past_a_checkpoint_that_cannot_be_described(catalog, tmp_path):
    for step in (100, 200):
        folder = write_job_checkpoint(tmp_path, "j1", step)
        (folder / "meta.json").write_text("{")
    with pytest.raises(DataLoss):
        catalog.find("job:j1")
    write_job_checkpoint(tmp_path, "j1", 100)
    assert catalog.find("job:j1")[1].step == 100


def test_a_job_and_a_step_lead_to_that_checkpoint(catalog, tmp_path):
    for step in (100, 200, 300):
        write_job_checkpoint(tmp_path, "j1", step)
    ref = catalog.resolve("job:j1@200")
    assert (ref.reference, ref.name) == ("job:j1@200", "trained")
    assert ref.folder.name == "step_000200"
    with pytest.raises(NotFound, match="of step 150; there are 100, 200, 300"):
        catalog.resolve("job:j1@150")


def test_checkpoints_of_a_certain_step_are_kept_while_they_are_used(catalog, tmp_path):
    for step in (100, 200, 300):
        folder = write_job_checkpoint(tmp_path, "j1", step)
    first, second, newest = map(catalog.resolve, ("job:j1@100", "job:j1@200", "job:j1"))

    def prune():
        prune_checkpoints(folder.parent, 300, keep=1)
        return [path.name for path in list_checkpoints(folder.parent)]

    with catalog.kept(first), catalog.kept(newest):
        with catalog.kept(first), catalog.kept(second):
            assert prune() == ["step_000100", "step_000200", "step_000300"]
        assert prune() == ["step_000100", "step_000300"]  # the first is in use still
        with pytest.raises(NotFound), catalog.kept(second):
            pass
        assert list(folder.parent.glob("*.held")) == [folder.parent / "step_000100.held"]
    assert prune() == ["step_000300"]


def test_what_a_server_held_that_died_is_free_at_the_next_start(catalog, tmp_path):
    folder = write_job_checkpoint(tmp_path, "j1", 100)
    hold_checkpoint(folder)
    ModelCatalog(tmp_path)
    assert not is_held(folder)


def test_a_job_without_a_checkpoint(catalog, tmp_path):
    (tmp_path / "runs" / "j1").mkdir(parents=True)
    for reference in ("job:j1", "job:j1@5"):
        with pytest.raises(NotFound, match="no checkpoint yet"):
            catalog.resolve(reference)


def test_the_newest(catalog, tmp_path):
    write_job_checkpoint(tmp_path, "0001", 5)
    write_job_checkpoint(tmp_path, "0002", 3)
    (tmp_path / "runs" / "0003").mkdir()
    assert catalog.resolve("").reference == "job:0002"
    write_checkpoint(tmp_path / "models" / "older")
    write_checkpoint(tmp_path / "models" / "newer")
    assert catalog.resolve("").reference == "newer"
    assert [ref.name for ref, _ in catalog.list()] == ["newer", "older"]


def test_a_look_for_the_newest_reads_no_model_twice(catalog, tmp_path, monkeypatch):
    for name in ("older", "newer"):
        write_checkpoint(tmp_path / "models" / name)
    found = catalog.resolve("")
    monkeypatch.setattr(module, "read_meta", None)
    assert catalog.resolve("") == found
    monkeypatch.undo()
    write_checkpoint(tmp_path / "models" / "older")  # replaces it
    assert catalog.resolve("").reference == "older"
    catalog.delete("older")
    assert catalog.resolve("").reference == "newer"


def test_a_damaged_model_hides_no_other(catalog, tmp_path):
    write_checkpoint(tmp_path / "models" / "whole")
    write_checkpoint(tmp_path / "models" / "torn")
    (tmp_path / "models" / "torn" / "meta.json").write_text('{"step":')
    assert [ref.name for ref, _ in catalog.list()] == ["whole"]
    with pytest.raises(DataLoss) as lost:
        catalog.find("torn")
    assert str(tmp_path) not in lost.value.message
    catalog.delete("torn")
    assert not catalog.has("torn")


def test_deleting_leaves_the_checkpoints_of_the_job(catalog, tmp_path):
    folder = write_job_checkpoint(tmp_path, "j1", 5)
    publish_model(folder, tmp_path / "models" / "trained")
    catalog.delete("trained")
    assert list((tmp_path / "models").iterdir()) == []
    load_model(folder)
    with pytest.raises(NotFound):
        catalog.delete("trained")


def test_an_interrupted_delete_is_swept_at_the_next_start(tmp_path):
    (tmp_path / "models" / ".deleting-old").mkdir(parents=True)
    ModelCatalog(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_importing_hugging_face_files(catalog, tmp_path):
    folder = tmp_path / "imports" / "files"
    folder.mkdir(parents=True)
    model = tiny_model()
    save_file(to_hugging_face(CONFIG, model.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hugging_face_config(CONFIG)))
    catalog.import_model("mine", "files", "hugging_face", TOKENIZER)
    ref, meta = catalog.find("mine")
    assert (meta.step, meta.job_id, meta.tokenizer) == (0, "", TOKENIZER.to_json())
    tokens = torch.arange(CONFIG.block_size)[None] % CONFIG.vocab_size
    with torch.no_grad():
        ours, theirs = model.eval()(tokens)[0], load_model(ref.folder)(tokens)[0]
    assert torch.equal(ours, theirs)
    with pytest.raises(AlreadyExists):
        catalog.import_model("mine", "files", "hugging_face", TOKENIZER)
    with pytest.raises(InvalidArgument, match="50257"):
        catalog.import_model("gpt2", "files", "hugging_face", GPT2Tokenizer())
    assert not catalog.has("gpt2")


def test_importing_a_nanogpt_checkpoint(catalog, tmp_path):
    folder = tmp_path / "imports" / "run"
    folder.mkdir(parents=True)
    arguments = asdict(CONFIG)
    del arguments["arch"], arguments["n_member"]
    checkpoint = {"model": tiny_model().state_dict(), "model_args": arguments}
    torch.save(checkpoint, folder / "ckpt.pt")
    catalog.import_model("mine", "run", "nanogpt", TOKENIZER)
    assert catalog.find("mine")[1].model_config == CONFIG
    (folder / "ckpt.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidArgument) as refused:
        catalog.import_model("other", "run", "nanogpt", TOKENIZER)
    assert refused.value.violations[0].field == "source"
    assert str(tmp_path) not in refused.value.message
    with pytest.raises(NotFound):
        catalog.import_model("other", "nowhere", "nanogpt", TOKENIZER)


def test_the_number_of_weights_is_the_networks():
    assert parameter_count(CONFIG) == GPT(CONFIG).parameter_count()


def test_damage_helper_damages(catalog, tmp_path):
    """The other tests rely on it."""
    write_checkpoint(tmp_path / "models" / "tiny")
    damage(tmp_path / "models" / "tiny")
    read_meta(tmp_path / "models" / "tiny")
    with pytest.raises(ValueError, match="SHA-256"):
        load_model(tmp_path / "models" / "tiny")
