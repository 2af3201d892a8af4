"""Hugging Face GPT-2 folders come in and go out again, or are refused clearly."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    NanoChatConfig,
    NanoChatForCausalLM,
)

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.flops import parameter_count
from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Delta
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.torch_runner import TorchRunner
from nanogpt.interop import gpt2_layout
from nanogpt.interop.hugging_face import (
    export_hugging_face,
    hugging_face_config,
    import_hugging_face,
    to_hugging_face,
)
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer

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


def meta_of(config: ModelConfig, tokenizer: Tokenizer) -> CheckpointMeta:
    return CheckpointMeta(step=250, model_config=config, tokenizer=tokenizer.to_json())


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


def test_what_came_in_goes_out_equal(tmp_path: Path) -> None:
    theirs = their_model(activation_function="gelu")
    theirs.save_pretrained(tmp_path / "in")
    (tmp_path / "out").mkdir()
    config, state = import_hugging_face(tmp_path / "in")
    meta = meta_of(config, CharTokenizer([chr(i) for i in range(30, 95)]))
    export_hugging_face(tmp_path / "out", "any", meta, state)
    expected = load_file(tmp_path / "in" / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, theirs(TOKENS).logits)


# https://huggingface.co/openai-community/gpt2 and its siblings -medium, -large, -xl
PUBLISHED = {
    "gpt2": ((12, 12, 768), 124_439_808),
    "gpt2-medium": ((24, 16, 1024), 354_823_168),
    "gpt2-large": ((36, 20, 1280), 774_030_080),
    "gpt2-xl": ((48, 25, 1600), 1_557_611_200),
}


def published_header(folder: Path, size: str, embedding_rows: int) -> None:
    """A folder as OpenAI's weights are published in, zeros that take no room on the disk.

    The embedding comes last, so it is the last tensor whose shape is looked at.
    """
    (n_layer, n_head, n_embd), _ = PUBLISHED[size]
    values = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_ctx": 1024,
        "n_positions": 1024,
        "vocab_size": 50257,
        "layer_norm_epsilon": 1e-5,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
    }
    (folder / "config.json").write_text(json.dumps(values))
    c = n_embd
    shapes = {"wpe.weight": (1024, c), "ln_f.weight": (c,), "ln_f.bias": (c,)}
    block = {
        "ln_1.weight": (c,),
        "ln_1.bias": (c,),
        "attn.bias": (1, 1, 1024, 1024),  # the mask, which is no weight
        "attn.c_attn.weight": (c, 3 * c),
        "attn.c_attn.bias": (3 * c,),
        "attn.c_proj.weight": (c, c),
        "attn.c_proj.bias": (c,),
        "ln_2.weight": (c,),
        "ln_2.bias": (c,),
        "mlp.c_fc.weight": (c, 4 * c),
        "mlp.c_fc.bias": (4 * c,),
        "mlp.c_proj.weight": (4 * c, c),
        "mlp.c_proj.bias": (c,),
    }
    for i in range(n_layer):
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    shapes["wte.weight"] = (embedding_rows, c)
    write_zeros(folder / "model.safetensors", shapes)


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]], **header: Any) -> None:
    """A safetensors file of float32 zeros, one tensor after another, as a hole in the disk."""
    end, entries = 0, {}
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({**entries, **header}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_published_size_has_the_shapes_of_its_configuration(
    tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole table is compared, and nothing is read before that."""
    published_header(tmp_path, size, embedding_rows=50256)
    with pytest.raises(ValueError, match=r"wte\.weight has shape \[50256, .* asks for \[50257, "):
        import_hugging_face(tmp_path)

    published_header(tmp_path, size, embedding_rows=50257)

    class Compared(Exception):
        """The shapes are right."""

    def takes_weights(config: ModelConfig, stored: dict[str, Tensor]) -> None:
        raise Compared

    monkeypatch.setattr(gpt2_layout, "to_ours", takes_weights)
    with pytest.raises(Compared):
        import_hugging_face(tmp_path)
    (n_layer, n_head, n_embd), parameters = PUBLISHED[size]
    config = ModelConfig(1024, 50257, n_layer, n_head, n_embd, bias=True)
    assert parameter_count(config) == parameters


WHOLE = {"dtype": "F32", "shape": [16, 32], "data_offsets": [0, 2048]}


@pytest.mark.parametrize(
    "lie",
    [
        {"data_offsets": [0, 1 << 50]},  # beyond the file
        {"data_offsets": [2048, 0]},
        {"data_offsets": [-1, 2047]},
        {"data_offsets": [0, 1024]},  # less than the shape needs
        {"shape": [1 << 40, 1 << 40]},  # the product overflows
        {"shape": [-16, 32]},
        {"dtype": "F1024"},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: dict[str, Any]) -> None:
    save_folder(tmp_path, hugging_face_state())
    write_zeros(tmp_path / "model.safetensors", {"a": (16, 32)}, a={**WHOLE, **lie})
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        import_hugging_face(tmp_path)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, hugging_face_state())
    write_zeros(tmp_path / "model.safetensors", {"a": (16, 32)}, b=WHOLE)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        import_hugging_face(tmp_path)


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
        ({"n_layer": 1}, "tensors do not belong there, such as transformer.h.1"),
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


@pytest.mark.parametrize("bias", [True, False])
def test_an_exported_model_is_the_same_in_transformers(tmp_path: Path, bias: bool) -> None:
    """Logits, and greedy tokens of our engine, of a model with padding rows and a tokenizer."""
    config = ModelConfig(block_size=32, vocab_size=50304, n_layer=2, n_head=2, n_embd=32, bias=bias)
    ours, tokenizer = our_model(config), GPT2Tokenizer()
    with torch.no_grad():
        ours.lm_head.weight[tokenizer.vocab_size :] = 0  # as training leaves rows without a token

    export_hugging_face(tmp_path, "any", meta_of(config, tokenizer), ours.state_dict())

    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.config.activation_function, theirs.config.eos_token_id) == ("gelu", 50256)
    text = "To be, or not to be:\n\nthat's the 1st question… 𓂀 \t d'être"
    prompt = tokenizer.encode(text)[:12]
    assert their_tokenizer.encode(text) == tokenizer.encode(text)
    assert their_tokenizer.decode(prompt) == tokenizer.decode(prompt)
    with torch.no_grad():
        inputs = torch.tensor([prompt])
        expected = ours(inputs, inputs)[0]
        torch.testing.assert_close(theirs(inputs).logits, expected, rtol=0, atol=1e-4)
        answer = theirs.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=tokenizer.end_of_text_id,
        )
    engine = Engine(TorchRunner(ours, tokenizer.vocab_size), tokenizer)
    stopping = StoppingParams(max_new_tokens=16)
    engine.add(Request("r", prompt, SamplingParams(temperature=0.0), stopping))
    chosen: list[int] = []
    while engine.has_work():
        for event in engine.step().events:
            chosen += event.token_ids if isinstance(event, Delta) else []
    assert len(chosen) == 16
    assert answer[0].tolist() == prompt + chosen

    imported_config, state = import_hugging_face(tmp_path)
    assert imported_config == ModelConfig(**{**asdict(config), "bias": True})
    for name, weight in ours.state_dict().items():
        assert torch.equal(state[name], weight), name


def modern_model() -> GPT:
    return our_model(replace(CONFIG, bias=False, arch="modern"))


def test_a_modern_network_goes_out_and_comes_back(tmp_path: Path) -> None:
    ours, tokenizer = modern_model(), CharTokenizer([chr(i) for i in range(33, 98)])
    export_hugging_face(tmp_path, "any", meta_of(ours.config, tokenizer), ours.state_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(theirs, NanoChatForCausalLM)
    with torch.no_grad():
        expected = ours(TOKENS, TOKENS)[0]
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-4)
    imported_config, state = import_hugging_face(tmp_path)
    assert imported_config == ours.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(state[name], weight), name


def test_a_nanochat_of_transformers_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = hugging_face_config(modern_model().config)
    theirs = NanoChatForCausalLM(NanoChatConfig(**settings)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    config, state = import_hugging_face(tmp_path)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    torch.testing.assert_close(logits_of(config, state), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'; must be 'relu2'"),
        ({"num_key_value_heads": 1}, "has num_key_value_heads 1; must be 2"),
        ({"intermediate_size": 96}, "has intermediate_size 96; must be 128"),
        ({"final_logit_softcapping": None}, "has final_logit_softcapping None; must be 15.0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "has rope_parameters"),
        ({"rope_theta": 500_000.0}, "has rope_theta 500000.0; must be 10000.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "has rope_scaling"),
        ({"num_attention_heads": 32, "num_key_value_heads": 32}, "n_head: must leave an even"),
    ],
)
def test_another_nanochat_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    ours = modern_model()
    values = {**hugging_face_config(ours.config), **change}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(to_hugging_face(ours.config, ours.state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(problem)):
        import_hugging_face(tmp_path)


def test_the_vocabulary_of_a_char_model_goes_along(tmp_path: Path) -> None:
    tokenizer = CharTokenizer([chr(i) for i in range(30, 93)] + ["é", "𓂀"])
    export_hugging_face(tmp_path, "any", meta_of(CONFIG, tokenizer), our_model().state_dict())
    assert {path.name for path in tmp_path.iterdir()} == {
        "chars.json",
        "config.json",
        "model.safetensors",
    }
    characters = json.loads((tmp_path / "chars.json").read_text("utf-8"))["characters"]
    assert characters == tokenizer.characters
    _, state = import_hugging_face(tmp_path)
    expected = our_model().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.eos_token_id is None
