"""GPT-2 weights come in from Hugging Face and nanoGPT and go out again, or are refused clearly."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from nanogpt.config import ModelConfig
from nanogpt.interop import (
    hugging_face_config,
    import_hugging_face,
    import_nanogpt,
    to_hugging_face,
)
from nanogpt.model import GPT

CONFIG = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32)
TOKENS = torch.arange(24).reshape(2, 12)


def their_model(kind: type = GPT2LMHeadModel, **settings: Any) -> Any:
    """A small random GPT-2 of the transformers package, biases and norms random too."""
    torch.manual_seed(0)
    model = kind(
        GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=16,
            vocab_size=65,
            bos_token_id=None,
            eos_token_id=None,
            **settings,
        )
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


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


def save_folder(folder: Path, state: dict[str, Tensor], **settings: Any) -> None:
    values = {**hugging_face_config(CONFIG), **settings}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(state, folder / "model.safetensors")


def hugging_face_state() -> dict[str, Tensor]:
    return to_hugging_face(CONFIG, our_model().state_dict())


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_logits_equal_those_of_transformers(tmp_path: Path, shard_size: str) -> None:
    theirs = their_model(activation_function="gelu")
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_size == "1GB" else 7)

    config, state = import_hugging_face(tmp_path)

    assert config == CONFIG
    assert all(weight.dtype == torch.float32 for weight in state.values())
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    torch.testing.assert_close(logits_of(config, state), expected, rtol=0, atol=1e-4)


def test_gelu_new_is_accepted_and_its_difference_is_small(tmp_path: Path) -> None:
    theirs = their_model(activation_function="gelu_new")
    theirs.save_pretrained(tmp_path)
    config, state = import_hugging_face(tmp_path)
    with torch.no_grad():
        difference = (logits_of(config, state) - theirs(TOKENS).logits).abs().max().item()
    assert 0 < difference < 2e-2


def test_weights_without_prefix_and_with_masks_are_read(tmp_path: Path) -> None:
    """The layout of the files that OpenAI's weights are published in."""
    their_model(GPT2Model).save_pretrained(tmp_path)
    config, expected = import_hugging_face(tmp_path)
    assert config == CONFIG

    published = {
        name.removeprefix("transformer."): weight
        for name, weight in to_hugging_face(config, expected).items()
    }
    published["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    published["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(published, tmp_path / "model.safetensors")
    _, state = import_hugging_face(tmp_path)

    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_through_hugging_face(tmp_path: Path, bias: bool) -> None:
    config = ModelConfig(
        block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, dropout=0.1, bias=bias
    )
    ours = our_model(config)
    save_folder(tmp_path, to_hugging_face(config, ours.state_dict()), **hugging_face_config(config))

    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    imported_config, state = import_hugging_face(tmp_path)

    assert imported_config == CONFIG  # biases are there now, and dropout is for who fine-tunes
    for name, weight in ours.state_dict().items():
        assert torch.equal(state[name], weight), name
    for name in state.keys() - ours.state_dict().keys():
        assert not state[name].any(), f"{name} is a bias that the model did not have"
    expected = logits_of(config, ours.state_dict())
    torch.testing.assert_close(logits_of(imported_config, state), expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-4)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    narrow = {name: weight.bfloat16() for name, weight in hugging_face_state().items()}
    save_folder(tmp_path, narrow)
    _, state = import_hugging_face(tmp_path)
    assert torch.equal(
        state["transformer.wpe.weight"], narrow["transformer.wpe.weight"].to(torch.float32)
    )


def test_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    state = hugging_face_state()
    save_folder(tmp_path, {**state, "lm_head.weight": state["transformer.wte.weight"].clone()})
    _, imported = import_hugging_face(tmp_path)
    assert imported["lm_head.weight"] is imported["transformer.wte.weight"]

    save_folder(tmp_path, {**state, "lm_head.weight": state["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        import_hugging_face(tmp_path)


def test_wrong_shape_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    state = hugging_face_state()
    untransposed = state["transformer.h.1.mlp.c_fc.weight"].t().contiguous()
    save_folder(tmp_path, {**state, "transformer.h.1.mlp.c_fc.weight": untransposed})
    message = r"transformer\.h\.1\.mlp\.c_fc\.weight has shape \[128, 32\].* asks for \[32, 128\]"
    with pytest.raises(ValueError, match=message):
        import_hugging_face(tmp_path)


def test_a_lying_config_allocates_nothing(tmp_path: Path) -> None:
    """The largest network that a configuration may name would take terabytes."""
    save_folder(tmp_path, hugging_face_state(), n_embd=65536, vocab_size=1 << 24)
    with pytest.raises(ValueError, match=r"has shape .* asks for"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function 'relu'; must be 'gelu_new' or"),
        ({"model_type": "llama"}, "model_type 'llama'; must be 'gpt2'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_inner": 100}, "n_inner 100; must be 4 \\* n_embd = 128"),
        ({"n_head": 5}, "n_head: must divide n_embd"),
        ({"n_layer": "2"}, "n_layer: must be int, got '2'"),
        ({"n_layer": 3}, "tensors are missing, the first is transformer.h.2"),
        ({"n_layer": 1}, "tensors are not a GPT-2's, such as transformer.h.1"),
    ],
)
def test_refuses_what_it_could_not_compute(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_folder(tmp_path, hugging_face_state(), **change)
    with pytest.raises(ValueError, match=message):
        import_hugging_face(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        import_hugging_face(tmp_path)
    save_folder(tmp_path, hugging_face_state())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        import_hugging_face(tmp_path)
    weights.write_bytes((1 << 40).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="has a header of 1099511627776 bytes"):
        import_hugging_face(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        import_hugging_face(tmp_path)
    for text, message in [("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("[]", "object")]:
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            import_hugging_face(tmp_path)
    config.write_text('{"model_type": "gpt2", "n_layer": 2}')
    with pytest.raises(ValueError, match="lacks n_positions, vocab_size, n_head, n_embd"):
        import_hugging_face(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = hugging_face_state()
    position = "transformer.wpe.weight"
    save_folder(tmp_path, {**state, position: state[position].to(torch.int32)})
    with pytest.raises(ValueError, match="has type I32; allowed: BF16, F16, F32"):
        import_hugging_face(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", 3])
def test_an_index_stays_in_its_folder(tmp_path: Path, name: object) -> None:
    save_folder(tmp_path, hugging_face_state())
    index = {"weight_map": {"transformer.wte.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"not a \.safetensors file beside it"):
        import_hugging_face(tmp_path)


def nanogpt_checkpoint(config: ModelConfig = CONFIG, prefix: str = "") -> dict[str, Any]:
    """What nanoGPT's train.py saves, with the names that torch.compile makes if asked."""
    model = our_model(config)
    arguments = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
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
