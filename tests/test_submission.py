from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_trainer import ModelFolders, make_dataset, no_datasets

from nanogpt.checkpoint import CheckpointMeta, read_meta, save_checkpoint
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.datasets.dataset import Dataset
from nanogpt.ensemble import make_network
from nanogpt.preset import Preset
from nanogpt.training.memory import estimate_memory
from server.dataset_store import DatasetStore
from server.errors import DataLoss, InvalidArgument, NotFound
from server.jobs import submission as submission_module
from server.jobs.submission import Plan, Submission, free_name, plan
from server.names import is_name

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "bias": True}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    make_dataset(tmp_path)
    return tmp_path


@pytest.fixture
def base_model(data_dir: Path) -> Path:
    """A model of the vocabulary of `tiny`, with a window of 32 tokens."""
    tokenizer = Dataset.open(data_dir / "datasets" / "tiny").tokenizer
    return save_model(data_dir, "base", ModelConfig(32, tokenizer.vocab_size, **SHAPE))


def save_model(data_dir: Path, name: str, config: ModelConfig) -> Path:
    """A model of the vocabulary of `tiny`."""
    tokenizer = Dataset.open(data_dir / "datasets" / "tiny").tokenizer
    meta = CheckpointMeta(step=7, model_config=config, tokenizer=tokenizer.to_json())
    folder = data_dir / "models" / name
    save_checkpoint(folder, meta, make_network(config).state_dict(), None)
    return folder


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Preset:
    made = Preset("small", {"n_layer": 4, "block_size": 64, "batch_size": 12}, "tiny", "out-small")
    monkeypatch.setattr(submission_module, "load_preset", lambda name: made)
    return made


def planned(data_dir: Path, **changes: object) -> Plan:
    datasets = DatasetStore(data_dir, max_upload_bytes=1, in_use=no_datasets)
    values: dict[str, object] = {"dataset": "tiny", **changes}
    return plan(Submission(**values), datasets, ModelFolders(data_dir))


def fields(data_dir: Path, **changes: object) -> dict[str, str]:
    """The fields that are refused, and why."""
    with pytest.raises(InvalidArgument) as error:
        planned(data_dir, **changes)
    return {violation.field: violation.description for violation in error.value.violations}


def test_unset_fields_have_their_defaults(data_dir: Path) -> None:
    found = planned(data_dir)
    assert found.config == TrainConfig()
    assert set(found.config_origin.values()) == {"default"}
    assert found.config_origin.keys() == TrainConfig().to_mapping().keys()
    assert (found.names, found.dataset, found.init_checkpoint) == ("tiny", "tiny", None)


def test_a_request_goes_before_a_preset_and_a_preset_before_the_defaults(
    data_dir: Path, preset: Preset
) -> None:
    found = planned(data_dir, dataset="", preset="small", config={"batch_size": 3, "seed": 5})
    config, origin = found.config, found.config_origin
    assert (config.n_layer, config.batch_size, config.seed, config.n_head) == (4, 3, 5, 6)
    assert origin["n_layer"] == "preset small"
    assert origin["batch_size"] == "request"
    assert origin["seed"] == "request"
    assert origin["n_head"] == "default"
    assert (found.names, found.dataset) == ("out-small", "tiny")


def test_a_request_names_model_and_dataset_before_its_preset(
    data_dir: Path, preset: Preset
) -> None:
    make_dataset(data_dir, "other")
    found = planned(data_dir, dataset="other", preset="small", model="mine")
    assert (found.names, found.dataset) == ("mine", "other")


def test_all_faults_are_named_at_once(data_dir: Path) -> None:
    found = fields(
        data_dir,
        model="../x",
        dataset="UPPER",
        preset="no_such_preset",
        request_id="x" * 129,
        config={"n_layer": 0, "dropout": float("nan"), "device": "tpu"},
    )
    assert found.keys() == {
        "model",
        "dataset",
        "preset",
        "request_id",
        "config.n_layer",
        "config.dropout",
        "config.device",
    }


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"n_head": 5}, "config.n_head"),
        ({"min_lr": 1.0}, "config.min_lr"),
        ({"warmup_iters": 5000}, "config.lr_decay_iters"),
        ({"learning_rate": float("inf")}, "config.learning_rate"),
        ({"init_from": ""}, "config.init_from"),
    ],
)
def test_fields_that_do_not_fit_are_named_with_their_path(
    data_dir: Path, config: dict[str, object], field: str
) -> None:
    assert fields(data_dir, config=config).keys() == {field}


def test_a_dataset_must_be_named_and_there(data_dir: Path) -> None:
    assert fields(data_dir, dataset="").keys() == {"dataset"}
    with pytest.raises(NotFound):
        planned(data_dir, dataset="nowhere")


def test_both_splits_must_be_longer_than_a_sequence(data_dir: Path) -> None:
    meta = Dataset.open(data_dir / "datasets" / "tiny").meta
    assert meta.val_tokens < meta.train_tokens
    longest = meta.val_tokens - 1
    assert planned(data_dir, config={"block_size": longest}).config.block_size == longest
    found = fields(data_dir, config={"block_size": longest + 1})
    assert f"{meta.val_tokens} validation" in found["config.block_size"]
    assert "training" not in found["config.block_size"]


def test_resume_is_explained(data_dir: Path) -> None:
    assert "job:ID" in fields(data_dir, config={"init_from": "resume"})["config.init_from"]


def test_fine_tuning_takes_shape_and_window_of_its_model(data_dir: Path, base_model: Path) -> None:
    found = planned(data_dir, config={"init_from": "base", "learning_rate": 3e-5, "min_lr": 0.0})
    assert {key: getattr(found.config, key) for key in SHAPE} == SHAPE
    assert found.config.block_size == 32
    assert found.config_origin["n_embd"] == "model base"
    assert found.config_origin["block_size"] == "model base"
    assert found.config_origin["init_from"] == "request"
    assert found.init_checkpoint == base_model


def test_fine_tuning_may_shorten_the_window_and_repeat_the_shape(
    data_dir: Path, base_model: Path
) -> None:
    found = planned(data_dir, config={"init_from": "base", "block_size": 8, "n_head": 2})
    assert (found.config.block_size, found.config_origin["block_size"]) == (8, "request")


def test_fine_tuning_cannot_change_the_shape(data_dir: Path, base_model: Path) -> None:
    wanted = {"init_from": "base", "block_size": 33, "n_layer": 3, "n_head": 5, "bias": False}
    found = fields(data_dir, config=wanted)
    assert found.keys() == {
        "config.block_size",
        "config.n_layer",
        "config.n_head",
        "config.bias",
    }


def test_fine_tuning_keeps_the_architecture(data_dir: Path, base_model: Path) -> None:
    """Whatever a preset says, whose bias=false is not this model's either."""
    whole = read_meta(base_model).model_config
    modern = replace(whole, arch="modern", bias=False)
    save_model(data_dir, "modern", modern)
    found = planned(data_dir, config={"init_from": "modern"})
    assert (found.config.arch, found.config_origin["arch"]) == ("modern", "model modern")
    save_model(data_dir, "three", replace(modern, n_member=3))
    assert planned(data_dir, config={"init_from": "three"}).config.n_member == 3
    wanted = {"init_from": "base", "block_size": 8}
    found = planned(data_dir, preset="best_shakespeare_char", config=wanted)
    assert (found.config.arch, found.config.bias) == ("gpt2", True)
    refused = {
        **fields(data_dir, config={"init_from": "base", "arch": "modern"}),
        **fields(data_dir, config={"init_from": "modern", "sinusoidal_positions": True}),
    }
    assert refused == {
        "config.arch": "is gpt2 in model 'base'; leave it unset",
        "config.sinusoidal_positions": "must be false with arch modern, whose positions are "
        "rotations",
    }


def test_fine_tuning_needs_the_vocabulary_of_its_model(data_dir: Path, base_model: Path) -> None:
    make_dataset(data_dir, "digits", "0123456789\n" * 200)
    assert "base" in fields(data_dir, dataset="digits", config={"init_from": "base"})["dataset"]


def test_fine_tuning_needs_a_model_that_is_whole(data_dir: Path, base_model: Path) -> None:
    with pytest.raises(NotFound):
        planned(data_dir, config={"init_from": "nobody"})
    (base_model / "meta.json").write_text("{")
    with pytest.raises(DataLoss) as error:
        planned(data_dir, config={"init_from": "base"})
    assert str(data_dir) not in error.value.message


def test_the_same_request_reads_the_same_whatever_its_id() -> None:
    one = Submission(dataset="d", config={"seed": 1, "n_layer": 2}, request_id="a")
    two = Submission(dataset="d", config={"n_layer": 2, "seed": 1}, request_id="b")
    other = Submission(dataset="d", config={"n_layer": 2, "seed": 2}, request_id="a")
    assert one.canonical() == two.canonical() != other.canonical()


def test_a_free_name_is_numbered_and_stays_a_name() -> None:
    taken: set[str] = set()
    for _ in range(12):
        taken.add(free_name("x" * 63, taken.__contains__))
    assert len(taken) == 12
    assert all(is_name(name) for name in taken)
    assert free_name("a", {"a", "a-2"}.__contains__) == "a-3"


def test_what_does_not_fit_the_memory_is_refused_with_the_numbers(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of sequences that it names is accepted, one more is not."""
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: 2 * 10**9)
    config = {"device": "cpu", "batch_size": 64}
    problem = fields(data_dir, config=config)["config.batch_size"]
    assert "this machine has 2.0 GB" in problem
    fitting = int(problem.split("at most ")[1].split()[0])
    assert 1 <= fitting < 64
    planned(data_dir, config={**config, "batch_size": fitting})
    assert "config.batch_size" in fields(data_dir, config={**config, "batch_size": fitting + 1})
    planned(data_dir, config={**config, "batch_size": 1, "gradient_accumulation_steps": 64})
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: 10**8)
    assert "not even 1 fits" in fields(data_dir, config=config)["config.batch_size"]


def test_a_gpu_need_not_hold_what_its_host_does(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the copy of a checkpoint nor PyTorch itself, and each process has a GPU."""
    monkeypatch.setattr(submission_module, "pick_device", lambda name: torch.device("cuda"))
    config = {"batch_size": 8, "processes": 2, "compile": "off"}
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: 1 << 40)
    plan = planned(data_dir, config=config)
    tokenizer = Dataset.open(data_dir / "datasets" / "tiny").tokenizer
    shape = plan.config.model_config(tokenizer.vocab_size)
    room = estimate_memory(shape, plan.config).on_gpu
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: room)
    planned(data_dir, config=config)
    assert "config.batch_size" in fields(data_dir, config={**config, "batch_size": 12})


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 4}, {"sharding": "fsdp"}])
def test_what_processes_take_together_is_refused_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    """On a processor they share its memory, and the batch that is named can be shared."""
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: 4 * 10**9)
    config = {"device": "cpu", "batch_size": 128, "processes": 2, **more}
    problem = fields(data_dir, config=config)["config.batch_size"]
    assert "in 2 processes" in problem
    fitting = int(problem.split("at most ")[1].split()[0])
    planned(data_dir, config={**config, "batch_size": fitting})
    step = 1 if "gradient_accumulation_steps" in more else 2
    larger = {**config, "batch_size": fitting + step}
    assert "config.batch_size" in fields(data_dir, config=larger)
    monkeypatch.setattr(submission_module, "total_memory_bytes", lambda device: 10**8)
    assert f"not even {step} fits" in fields(data_dir, config=config)["config.batch_size"]
    planned(data_dir, config={**config, "launcher": "ray"})  # whose memory is not known here
