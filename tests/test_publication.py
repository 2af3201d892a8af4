from pathlib import Path

import pytest
import torch

from nanogpt.checkpoint import CheckpointMeta, load_model_state, read_meta, save_checkpoint
from nanogpt.checkpoint_folder import step_folder
from nanogpt.config import ModelConfig
from nanogpt.model import GPT
from nanogpt.training.run_directory import RunDirectory
from server.errors import DataLoss
from server.jobs.publication import NameTaken, publish_best

CONFIG = ModelConfig(block_size=8, vocab_size=5, n_layer=1, n_head=1, n_embd=8)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Checkpoints of steps 10, 20 and 30; that of step 20 is the best."""
    run = RunDirectory(tmp_path / "runs" / "a")
    for step, best_step in [(10, 10), (20, 20), (30, 20)]:
        torch.manual_seed(step)
        meta = CheckpointMeta(
            step=step,
            model_config=CONFIG,
            tokenizer={"kind": "char", "characters": list("abcde")},
            best_step=best_step,
            job_id="a",
            train={"state": 1},
        )
        state = {"moment": torch.zeros(3)}
        save_checkpoint(
            step_folder(run.checkpoints_path, step), meta, GPT(CONFIG).state_dict(), state
        )
    return run


def damage(run: RunDirectory, step: int) -> None:
    weights = step_folder(run.checkpoints_path, step) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def test_the_best_checkpoint_becomes_the_model(run: RunDirectory, tmp_path: Path) -> None:
    model = tmp_path / "models" / "m"
    publish_best(run, "a", model)
    best = step_folder(run.checkpoints_path, 20)
    weights = load_model_state(best)
    assert all(torch.equal(tensor, weights[k]) for k, tensor in load_model_state(model).items())
    meta = read_meta(model)
    assert (meta.step, meta.train, meta.job_id) == (20, None, "a")
    assert sorted(file.name for file in model.iterdir()) == ["meta.json", "model.safetensors"]


def test_publishing_again_changes_nothing(run: RunDirectory, tmp_path: Path) -> None:
    model = tmp_path / "models" / "m"
    publish_best(run, "a", model)
    before = (model / "meta.json").stat().st_mtime_ns
    publish_best(run, "a", model)
    assert (model / "meta.json").stat().st_mtime_ns == before


def test_the_last_one_stands_in_for_a_damaged_best(run: RunDirectory, tmp_path: Path) -> None:
    damage(run, 20)
    publish_best(run, "a", tmp_path / "models" / "m")
    assert read_meta(tmp_path / "models" / "m").step == 30


def test_the_best_is_found_without_the_last(run: RunDirectory, tmp_path: Path) -> None:
    damage(run, 30)
    publish_best(run, "a", tmp_path / "models" / "m")
    assert read_meta(tmp_path / "models" / "m").step == 20


def test_nothing_whole_is_data_loss(run: RunDirectory, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        damage(run, step)
    with pytest.raises(DataLoss) as error:
        publish_best(run, "a", tmp_path / "models" / "m")
    assert str(tmp_path) not in error.value.message
    assert not (tmp_path / "models" / "m").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_model_of_another_origin_is_never_replaced(
    run: RunDirectory, tmp_path: Path, damaged: bool
) -> None:
    model = tmp_path / "models" / "m"
    publish_best(run, "a", model)
    if damaged:
        (model / "meta.json").write_text("{")
    before = (model / "meta.json").read_bytes()
    with pytest.raises(NameTaken):
        publish_best(run, "b", model)
    assert (model / "meta.json").read_bytes() == before
