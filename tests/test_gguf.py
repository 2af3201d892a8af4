"""GGUF files, read by the package of those who made the format, hold what we put there."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.interop.gguf import NotRepresentable, export_gguf, gguf_name
from nanogpt.interop.gpt2_vocabulary import merges, vocabulary
from nanogpt.interop.weights import with_biases
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer

# a width whose vectors do not end where the alignment wants the next to begin; padding rows
CONFIG = ModelConfig(block_size=17, vocab_size=50304, n_layer=2, n_head=2, n_embd=6, bias=False)


def our_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return GPT(CONFIG).state_dict()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUFReader:
    """An exported file; reading its vocabulary takes the package seconds."""
    folder = tmp_path_factory.mktemp("gguf")
    meta = CheckpointMeta(step=250, model_config=CONFIG, tokenizer=GPT2Tokenizer().to_json())
    export_gguf(folder, "bard", meta, our_weights())
    return gguf.GGUFReader(folder / "bard.gguf")


def test_tensors_are_equal(reader: gguf.GGUFReader) -> None:
    weights = with_biases(CONFIG, our_weights())
    expected = {gguf_name(name): weight.numpy() for name, weight in weights.items()}
    expected["token_embd.weight"] = expected["token_embd.weight"][: GPT2Tokenizer.vocab_size]
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.data_offset % 32 == 0
        np.testing.assert_array_equal(tensor.data, expected[tensor.name], strict=True)


def test_names_are_those_of_the_architecture() -> None:
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, CONFIG.n_layer)
    for ours in with_biases(CONFIG, our_weights()):
        known = theirs.get_name(ours.removesuffix(".weight").removesuffix(".bias"))
        assert gguf_name(ours) == f"{known}.{ours.rpartition('.')[2]}"


def test_metadata(reader: gguf.GGUFReader) -> None:
    def value(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    keys, end = gguf.Keys, GPT2Tokenizer.end_of_text_id
    assert value(keys.General.ARCHITECTURE) == "gpt2"
    assert value(keys.General.NAME) == "bard"
    assert value(keys.General.FILE_TYPE) == gguf.LlamaFileType.ALL_F32
    assert "exact GELU" in value(keys.General.DESCRIPTION)
    shape = {
        keys.LLM.BLOCK_COUNT: 2,
        keys.LLM.CONTEXT_LENGTH: 17,
        keys.LLM.EMBEDDING_LENGTH: 6,
        keys.LLM.FEED_FORWARD_LENGTH: 24,
        keys.Attention.HEAD_COUNT: 2,
    }
    assert {key: value(key.format(arch="gpt2")) for key in shape} == shape
    assert value(keys.Attention.LAYERNORM_EPS.format(arch="gpt2")) == pytest.approx(1e-5)
    assert value(keys.Tokenizer.MODEL) == "gpt2"
    assert value(keys.Tokenizer.PRE) == "gpt-2"
    assert value(keys.Tokenizer.LIST) == vocabulary()
    assert value(keys.Tokenizer.MERGES) == [" ".join(halves) for halves in merges()]
    assert value(keys.Tokenizer.TOKEN_TYPE) == [gguf.TokenType.NORMAL] * end + [
        gguf.TokenType.CONTROL
    ]
    assert value(keys.Tokenizer.BOS_ID) == value(keys.Tokenizer.EOS_ID) == end
    assert value(keys.Tokenizer.ADD_BOS) is False


def test_a_char_model_is_refused(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["a", "b"])
    meta = CheckpointMeta(step=1, model_config=CONFIG, tokenizer=tokenizer.to_json())
    with pytest.raises(NotRepresentable, match="single characters"):
        export_gguf(tmp_path, "bard", meta, our_weights())
    assert list(tmp_path.iterdir()) == []
