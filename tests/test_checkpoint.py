"""Checkpoints come back bit for bit, or are refused by name; a crash leaves the others whole."""

import errno
import json
import os
import resource
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogpt import checkpoint, checkpoint_folder, durable
from nanogpt.checkpoint import (
    CheckpointDamaged,
    CheckpointMeta,
    load_model,
    load_model_state,
    load_train_state,
    publish_model,
    read_meta,
    save_checkpoint,
    sweep_unfinished,
    verify,
    write_meta,
)
from nanogpt.checkpoint_folder import (
    best_checkpoint,
    drop_newer,
    is_pinned,
    list_checkpoints,
    newest_valid,
    pin_checkpoint,
    prune_checkpoints,
    step_folder,
)
from nanogpt.config import ModelConfig
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer

CONFIG = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=True)
TOKENIZER = CharTokenizer("\n äbc").to_json()
TRAIN_STATE = {"optimizer.step": torch.tensor(3.0), "rng.cpu": torch.get_rng_state()}


def meta_of(step=250, **more):
    return CheckpointMeta(
        step=step,
        model_config=CONFIG,
        tokenizer=TOKENIZER,
        val_loss=1.5,
        best_val_loss=1.25,
        best_step=100,
        create_time=1.7e9,
        job_id="job",
        train={"dtype": "float32"},
        **more,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(CONFIG)


@pytest.fixture
def folder(tmp_path, model):
    """A whole checkpoint of step 250."""
    folder = step_folder(tmp_path / "checkpoints", 250)
    save_checkpoint(folder, meta_of(), model.state_dict(), TRAIN_STATE)
    return folder


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_comes_back_bit_for_bit(tmp_path, model):
    folder = step_folder(tmp_path, 250)
    saved = save_checkpoint(folder, meta_of(), model.state_dict(), TRAIN_STATE)
    assert folder.name == "step_000250"
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "model.safetensors",
        "state.safetensors",
    ]
    assert read_meta(folder) == saved == verify(folder)
    assert saved == replace(meta_of(), files=saved.files)
    assert saved.size_bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert equal(load_model_state(folder), model.state_dict())
    assert equal(load_train_state(folder), TRAIN_STATE)


def test_the_loaded_model_gives_the_same_logits(folder, model):
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.parameter_count() == model.parameter_count()
    assert loaded.config == CONFIG
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens)[0], model.eval()(tokens)[0])


def test_the_loaded_model_does_not_depend_on_the_files(folder, model):
    loaded = load_model(folder)
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert equal(loaded.state_dict(), model.state_dict())


def test_loading_draws_no_random_numbers(folder, monkeypatch):
    """Not even of weights without memory, for which PyTorch would import its compiler."""

    def drawn(*_, **__):
        pytest.fail("weights were drawn")

    before = torch.get_rng_state()
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, drawn)
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_are_stored_once_by_nanogpts_name(folder, model):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(model.state_dict()) - {"lm_head.weight"}
    state = load_model_state(folder)
    assert state["lm_head.weight"] is state["transformer.wte.weight"]


def test_a_head_of_its_own_comes_back(tmp_path):
    config = replace(CONFIG, bias=False, arch="modern")
    model = GPT(config)
    torch.nn.init.normal_(model.lm_head.weight)
    meta = replace(meta_of(), model_config=config)
    save_checkpoint(tmp_path / "step_000250", meta, model.state_dict(), None)
    loaded = load_model(tmp_path / "step_000250")
    assert loaded.config == config
    assert equal(loaded.state_dict(), model.state_dict())
    assert not torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)


def test_an_untied_head_is_refused(tmp_path, model):
    state = {**model.state_dict(), "lm_head.weight": torch.zeros(65, 32)}
    with pytest.raises(ValueError, match="the two are one tensor"):
        save_checkpoint(tmp_path / "step_000001", meta_of(1), state, None)


def test_half_precision_weights_are_loaded_in_full_precision(tmp_path, model):
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path / "step_000001", meta_of(1), state, None)
    assert load_model(tmp_path / "step_000001").lm_head.weight.dtype == torch.float32


def test_a_model_has_no_training_state(tmp_path, model):
    save_checkpoint(tmp_path / "step_000001", meta_of(1), model.state_dict(), None)
    with pytest.raises(CheckpointDamaged, match=r"step_000001 has no state\.safetensors"):
        load_train_state(tmp_path / "step_000001")


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_refused_by_name(folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "flip" and name == "meta.json":
        path.write_bytes(data.replace(b'"files": {', b'"flies": {'))
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"flip": flipped, "cut": data[:-9], "empty": b""}[damage])
    with pytest.raises(CheckpointDamaged) as raised:
        verify(folder)
    assert f"step_000250/{name}" in str(raised.value)
    assert str(folder.parent) not in str(raised.value)
    if name != "state.safetensors":
        with pytest.raises(CheckpointDamaged):
            load_model(folder)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(folder, data):
    path = folder / data.draw(st.sampled_from(["model.safetensors", "state.safetensors"]))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flipped = content[position] ^ (1 << data.draw(st.integers(0, 7)))
    path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
    with pytest.raises(CheckpointDamaged):
        verify(folder)
    path.write_bytes(content)
    verify(folder)


def test_weights_of_another_shape_are_damage(folder):
    meta = read_meta(folder)
    write_meta(folder, replace(meta, model_config=replace(CONFIG, n_layer=3)))
    with pytest.raises(
        CheckpointDamaged, match="step_000250: the weights do not have the stated shape"
    ):
        load_model(folder)


@pytest.mark.parametrize("load", [read_meta, verify, load_model_state, load_train_state])
def test_a_checkpoint_that_is_not_there(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="no checkpoint step_000007"):
        load(tmp_path / "step_000007")


def test_the_newest_valid_one_is_used(tmp_path, model):
    assert newest_valid(tmp_path / "none") is None
    for step in (5, 30, 1_000_000):
        save_checkpoint(step_folder(tmp_path, step), meta_of(step), model.state_dict(), None)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".writing-step_000099").mkdir()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [
        "step_000005",
        "step_000030",
        "step_1000000",
    ]
    heard = []
    (tmp_path / "step_1000000" / "model.safetensors").write_bytes(b"junk")
    assert newest_valid(tmp_path, heard.append) == tmp_path / "step_000030"
    assert "step_1000000/model.safetensors" in str(heard[0])
    for name in ("step_000030", "step_000005"):
        (tmp_path / name / "meta.json").unlink()
    assert newest_valid(tmp_path) is None


class Crash(BaseException):
    """A power cut."""


@pytest.mark.parametrize("step", [250, 251])
def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(tmp_path, model, monkeypatch, step):
    """Every disk operation of a write fails in turn, until a write passes."""
    save_checkpoint(step_folder(tmp_path, 200), meta_of(200), model.state_dict(), TRAIN_STATE)
    save_checkpoint(step_folder(tmp_path, 250), meta_of(250), model.state_dict(), TRAIN_STATE)
    operations = 0
    crash_at = 0

    def failing(original):
        def wrapper(*arguments, **more):
            nonlocal operations
            operations += 1
            if operations == crash_at:
                raise Crash
            return original(*arguments, **more)

        return wrapper

    for name in ("fsync", "rename", "mkdir", "open"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(checkpoint, "save_file", failing(checkpoint.save_file))
    # a crashed process deletes nothing
    real_rmtree = checkpoint.shutil.rmtree
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)
    while True:
        crash_at += 1
        operations = 0
        try:
            folder = step_folder(tmp_path, step)
            save_checkpoint(folder, meta_of(step), model.state_dict(), TRAIN_STATE)
            break
        except Crash:
            crash_at, crashed_at = 0, crash_at
            newest = newest_valid(tmp_path)
            assert newest is not None
            for found in list_checkpoints(tmp_path):
                verify(found)  # what has its name is whole
            with monkeypatch.context() as alive:
                alive.setattr(checkpoint.shutil, "rmtree", real_rmtree)
                sweep_unfinished(tmp_path)
            assert not list(tmp_path.glob(".*"))
            crash_at = crashed_at
    assert crash_at > 8
    assert newest_valid(tmp_path) == step_folder(tmp_path, step)


def test_a_full_disk_is_an_os_error_and_leaves_no_trace(tmp_path, model):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as caught:
            save_checkpoint(step_folder(tmp_path, 1), meta_of(1), model.state_dict(), None)
        assert caught.value.errno == errno.EFBIG, "what the system said"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_files_are_flushed_before_the_name_and_the_name_after(tmp_path, model, monkeypatch):
    log = []
    real_sync, real_rename = durable.sync_file, checkpoint.Path.rename
    monkeypatch.setattr(durable, "sync_file", lambda p: (log.append(p.name), real_sync(p)))

    def rename(path, target):
        log.append(f"-> {target.name}")
        return real_rename(path, target)

    monkeypatch.setattr(checkpoint.Path, "rename", rename)
    save_checkpoint(tmp_path / "step_000001", meta_of(1), model.state_dict(), TRAIN_STATE)
    name = log.index("-> step_000001")
    assert {"model.safetensors", "state.safetensors", "meta.json"} < set(log[:name])
    assert log[name - 1] == ".writing-step_000001"
    assert log[name + 1 :] == [tmp_path.name]


def test_a_new_folder_of_checkpoints_lasts_too(tmp_path, model, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    for step in (1, 2):
        folder = step_folder(tmp_path / "checkpoints", step)
        save_checkpoint(folder, meta_of(step), model.state_dict(), None)
    assert synced.count(tmp_path) == 1


def test_a_checkpoint_can_be_replaced(folder, model):
    torch.manual_seed(1)
    other = GPT(CONFIG)
    save_checkpoint(folder, meta_of(), other.state_dict(), None)
    assert equal(load_model_state(folder), other.state_dict())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("step", "keep", "best", "left"),
    [
        (50, 2, None, [40, 50]),
        (50, 2, 20, [20, 40, 50]),
        (50, 1, 50, [50]),
        (50, 9, 20, [10, 20, 30, 40, 50]),
        (30, 1, 10, [10, 30, 40, 50]),  # newer ones are damaged: the run went on from an older
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, step, keep, best, left):
    for number in (10, 20, 30, 40, 50):
        step_folder(tmp_path, number).mkdir()
    prune_checkpoints(tmp_path, step, keep, {best})
    assert [checkpoint_folder.step_of(folder) for folder in list_checkpoints(tmp_path)] == left


def test_a_failed_delete_does_not_stop_anything(tmp_path, monkeypatch):
    for number in (10, 20, 30):
        step_folder(tmp_path, number).mkdir()
    real_rename = checkpoint.Path.rename

    def rename(path, target):
        if path.name == "step_000010":
            raise PermissionError("no")
        return real_rename(path, target)

    monkeypatch.setattr(checkpoint.Path, "rename", rename)
    prune_checkpoints(tmp_path, 30, 1)
    assert [checkpoint_folder.step_of(folder) for folder in list_checkpoints(tmp_path)] == [10, 30]


def test_unfinished_folders_are_swept_and_nothing_else(tmp_path):
    for name in (".writing-step_000001", ".deleting-step_000002", ".git", "step_000003"):
        (tmp_path / name).mkdir()
    sweep_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".git", "step_000003"}


def test_a_model_is_published_without_copying(folder, tmp_path, model):
    target = tmp_path / "models" / "shakespeare"
    publish_model(folder, target)
    assert sorted(path.name for path in target.iterdir()) == ["meta.json", "model.safetensors"]
    assert (target / "model.safetensors").samefile(folder / "model.safetensors")
    meta = verify(target)
    assert meta == replace(read_meta(folder), train=None, files=meta.files)
    assert set(meta.files) == {"model.safetensors"}
    for path in folder.iterdir():
        path.unlink()
    assert equal(load_model(target).state_dict(), model.state_dict())


def test_publishing_copies_where_there_are_no_links(folder, tmp_path, model, monkeypatch):
    def link(source, target):
        raise OSError("cross-device")

    monkeypatch.setattr(os, "link", link)
    publish_model(folder, tmp_path / "models" / "a")
    publish_model(folder, tmp_path / "models" / "a")  # replaces
    assert equal(load_model(tmp_path / "models" / "a").state_dict(), model.state_dict())


def test_a_damaged_checkpoint_is_not_published(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointDamaged):
        publish_model(folder, tmp_path / "models" / "a")
    assert not (tmp_path / "models").exists()


def test_meta_is_replaced_at_once(folder):
    meta = replace(read_meta(folder), val_loss=1.0, best_step=250)
    write_meta(folder, meta)
    assert read_meta(folder) == meta
    assert meta.is_best
    assert json.loads((folder / "meta.json").read_text())["tokenizer"] == TOKENIZER
    assert len(list(folder.iterdir())) == 3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_of_the_meta_goes_unnoticed(folder, data):
    path = folder / "meta.json"
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 2))  # the last newline means nothing
    flipped = content[position] ^ (1 << data.draw(st.integers(0, 7)))
    changed = content[:position] + bytes([flipped]) + content[position + 1 :]
    path.write_bytes(changed)
    whitespace = bytes([flipped]).isspace() and content[position : position + 1].isspace()
    try:
        if not whitespace:
            with pytest.raises(CheckpointDamaged, match=r"meta\.json"):
                read_meta(folder)
    finally:
        path.write_bytes(content)


def test_a_meta_of_before_there_was_a_digest_is_read(folder):
    values = json.loads((folder / "meta.json").read_text())
    assert len(values.pop("meta_sha256")) == 64
    before = read_meta(folder)
    (folder / "meta.json").write_text(json.dumps(values))
    assert read_meta(folder) == before


def test_what_was_written_after_going_back_is_newer(tmp_path, model):
    for step, rollbacks in [(30, 0), (10, 0), (20, 1)]:
        meta = replace(meta_of(step), rollbacks=rollbacks)
        save_checkpoint(step_folder(tmp_path, step), meta, model.state_dict(), None)
    assert newest_valid(tmp_path) == step_folder(tmp_path, 20)


def test_pinned_checkpoints_are_kept_and_stay_pinned(tmp_path, model):
    for step in (10, 20, 30):
        save_checkpoint(step_folder(tmp_path, step), meta_of(step), model.state_dict(), None)
    pin_checkpoint(step_folder(tmp_path, 10))
    pin_checkpoint(step_folder(tmp_path, 30))
    prune_checkpoints(tmp_path, 40, 1)
    assert [checkpoint_folder.step_of(f) for f in list_checkpoints(tmp_path)] == [10, 30]
    drop_newer(tmp_path, 5)
    assert [checkpoint_folder.step_of(f) for f in list_checkpoints(tmp_path)] == [10, 30]
    save_checkpoint(step_folder(tmp_path, 30), meta_of(30), model.state_dict(), None)
    assert is_pinned(step_folder(tmp_path, 30))
    verify(step_folder(tmp_path, 30))


def test_the_best_on_disk_is_found_and_kept(tmp_path, model):
    for step, best_step in [(10, 10), (20, 20), (30, 30), (40, 30)]:
        meta = replace(meta_of(step), best_step=best_step)
        save_checkpoint(step_folder(tmp_path, step), meta, model.state_dict(), None)
    assert best_checkpoint(tmp_path) == step_folder(tmp_path, 30)
    checkpoint.delete_checkpoint(step_folder(tmp_path, 30))
    assert best_checkpoint(tmp_path) == step_folder(tmp_path, 20)
    prune_checkpoints(tmp_path, 40, 1, {30})
    assert [checkpoint_folder.step_of(f) for f in list_checkpoints(tmp_path)] == [20, 40]


def test_the_best_is_none_that_the_run_went_back_behind(tmp_path, model):
    """It may be there still, pinned."""
    for step, best_step, rollbacks in [(10, 10, 0), (20, 10, 1), (30, 30, 0)]:
        meta = replace(meta_of(step), best_step=best_step, rollbacks=rollbacks)
        save_checkpoint(step_folder(tmp_path, step), meta, model.state_dict(), None)
    assert best_checkpoint(tmp_path) == step_folder(tmp_path, 10)
    meta = replace(meta_of(20), best_step=None, rollbacks=1)
    save_checkpoint(step_folder(tmp_path, 20), meta, model.state_dict(), None)
    assert best_checkpoint(tmp_path) is None
