"""nanoGPT checkpoints come in and go out again, or are refused clearly; none runs code."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta, load_model_state, save_checkpoint
from nanogpt.config import ModelConfig
from nanogpt.interop.nanogpt_checkpoint import export_nanogpt, import_nanogpt
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

CONFIG = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32)
TOKENS = torch.arange(24).reshape(2, 12)


def our_model(config: ModelConfig = CONFIG) -> GPT:
    torch.manual_seed(0)
    model = GPT(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def logits_of(config: ModelConfig, state: dict[str, Tensor]) -> Tensor:
    model = GPT(config)
    model.load_state_dict(state)
    with torch.no_grad():
        return model.eval()(TOKENS, TOKENS)[0]


def nanogpt_checkpoint(config: ModelConfig = CONFIG, prefix: str = "") -> dict[str, Any]:
    """What nanoGPT's train.py saves, with the names that torch.compile makes if asked."""
    model = our_model(config)
    arguments = asdict(config)
    del arguments["arch"], arguments["n_member"]  # which nanoGPT's GPTConfig does not have
    return {
        "model": {prefix + name: weight for name, weight in model.state_dict().items()},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "model_args": arguments,
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3},
    }


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_checkpoint(tmp_path: Path, prefix: str, bias: bool) -> None:
    config = ModelConfig(
        block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, dropout=0.2, bias=bias
    )
    checkpoint = nanogpt_checkpoint(config, prefix)
    checkpoint["model"][prefix + "transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    if not prefix:
        del checkpoint["config"]
    torch.save(checkpoint, tmp_path / "ckpt.pt")

    imported_config, state = import_nanogpt(tmp_path / "ckpt.pt")

    assert imported_config == config
    expected = our_model(config).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["lm_head.weight"] is state["transformer.wte.weight"]
    logits_of(imported_config, state)


@pytest.mark.parametrize("bias", [True, False])
def test_what_came_in_goes_out_equal(tmp_path: Path, bias: bool) -> None:
    config = ModelConfig(16, 65, 2, 2, 32, dropout=0.2, bias=bias)
    came = nanogpt_checkpoint(config)
    torch.save(came, tmp_path / "ckpt.pt")
    imported_config, state = import_nanogpt(tmp_path / "ckpt.pt")
    tokenizer = CharTokenizer([chr(i) for i in range(30, 95)]).to_json()
    meta = CheckpointMeta(250, imported_config, tokenizer, best_val_loss=1.5)
    (tmp_path / "out").mkdir()
    export_nanogpt(tmp_path / "out", "shakespeare_char", meta, state)
    went = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert went["model"].keys() == came["model"].keys()
    assert all(torch.equal(went["model"][name], came["model"][name]) for name in came["model"])
    for name in ("model_args", "iter_num"):
        assert went[name] == came[name]
    assert went["best_val_loss"] == came["best_val_loss"].item()


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save(nanogpt_checkpoint(), tmp_path / "whole.pt")
    path = tmp_path / "ckpt.pt"
    with ZipFile(tmp_path / "whole.pt") as whole, ZipFile(path, "w") as lying:
        for name in whole.namelist():
            data = whole.read(name)
            lying.writestr(name, data[:4] if "/data/" in name else data)
    with pytest.raises(ValueError, match=r"ckpt\.pt"):
        import_nanogpt(path)


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = tmp_path / "ckpt.pt"
    torch.save({**nanogpt_checkpoint(), "config": RunsCode(victim)}, path)
    with pytest.raises(ValueError, match=r"ckpt\.pt holds more than tensors and plain values"):
        import_nanogpt(path)
    path.write_bytes(pickle.dumps(RunsCode(victim)))
    with pytest.raises(ValueError, match=r"ckpt\.pt"):
        import_nanogpt(path)
    assert not victim.exists()


def test_nanogpt_checkpoints_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    with pytest.raises(ValueError, match=r"ckpt\.pt is missing"):
        import_nanogpt(path)

    def refused(message: str, **change: Any) -> None:
        torch.save({**nanogpt_checkpoint(), **change}, path)
        with pytest.raises(ValueError, match=message):
            import_nanogpt(path)

    good = nanogpt_checkpoint()
    arguments, model = good["model_args"], good["model"]
    refused("has no 'model' and 'model_args'", model=None)
    refused("are not those of a GPT", model_args={**arguments, "rotary": True})
    refused("are not those of a GPT", model_args={**arguments, "n_member": 2})
    refused("n_head: must divide", model_args={**arguments, "n_head": 3})
    refused(r"wte\.weight has shape \[65, 32\].*\[65, 64\]", model_args={**arguments, "n_embd": 64})
    refused("missing, the first is transformer.h.2", model_args={**arguments, "n_layer": 3})
    refused("not a mapping from names to tensors", model={**model, "note": "hello"})
    refused(
        "not a contiguous tensor of floats",
        model={**model, "transformer.wte.weight": torch.zeros(1, 1).expand(65, 32)},
    )

    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        import_nanogpt(path)
    torch.save(good, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"ckpt\.pt is damaged"):
        import_nanogpt(path)


@pytest.mark.parametrize("bias", [True, False])
def test_an_exported_checkpoint_is_what_sample_py_reads(tmp_path: Path, bias: bool) -> None:
    config = ModelConfig(
        block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, dropout=0.1, bias=bias
    )
    characters = [chr(i) for i in range(30, 93)] + ["é", "𓂀"]
    meta = CheckpointMeta(
        step=250,
        model_config=config,
        tokenizer=CharTokenizer(characters).to_json(),
        best_val_loss=1.5,
    )
    save_checkpoint(tmp_path / "model", meta, our_model(config).state_dict(), None)
    state = load_model_state(tmp_path / "model")  # tensors that share a file, as the server has

    export_nanogpt(tmp_path, "bard", meta, state)

    path = tmp_path / "ckpt.pt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.keys() == {"model", "model_args", "iter_num", "best_val_loss", "config"}
    assert {**checkpoint["model_args"], "arch": "gpt2", "n_member": 1} == asdict(config)
    assert (checkpoint["iter_num"], checkpoint["best_val_loss"]) == (250, 1.5)
    assert checkpoint["config"] == {"dataset": "bard"}
    expected = our_model(config).state_dict()
    weight_bytes = sum(4 * w.numel() for name, w in expected.items() if name != "lm_head.weight")
    assert weight_bytes < path.stat().st_size < weight_bytes + 50_000  # each weight is there once
    imported_config, imported = import_nanogpt(path)
    assert imported_config == config
    assert imported.keys() == expected.keys()
    assert all(torch.equal(imported[name], expected[name]) for name in expected)

    vocabulary = json.loads((tmp_path / "meta.json").read_text("utf-8"))
    assert vocabulary["vocab_size"] == len(vocabulary["itos"]) == len(characters)
    ids = [vocabulary["stoi"][character] for character in characters]
    assert ids == list(range(len(characters)))
    assert [vocabulary["itos"][i] for i in ids] == characters


def test_an_export_that_was_never_measured_says_so_as_nanogpt_does(tmp_path: Path) -> None:
    meta = CheckpointMeta(step=0, model_config=CONFIG, tokenizer=GPT2Tokenizer().to_json())
    export_nanogpt(tmp_path, "bard", meta, our_model().state_dict())
    assert torch.load(tmp_path / "ckpt.pt", weights_only=True)["best_val_loss"] == 1e9
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]
