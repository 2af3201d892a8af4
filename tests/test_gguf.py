"""GGUF files, read by the package of those who made the format, hold what we put there."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.interop.gguf import export_gguf, gguf_name
from nanogpt.interop.gpt2_vocabulary import merges, vocabulary
from nanogpt.interop.weights import with_biases
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer

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


def test_a_char_model_keeps_its_ids(tmp_path: Path) -> None:
    characters = ["\0", "\n", " ", "!", "\\", "a", "é", "𓂀"]
    config = replace(CONFIG, vocab_size=16)
    torch.manual_seed(0)
    weights = GPT(config).state_dict()
    tokenizer = CharTokenizer(characters).to_json()
    export_gguf(tmp_path, "bard", CheckpointMeta(1, config, tokenizer), weights)
    reader = gguf.GGUFReader(tmp_path / "bard.gguf")

    def value(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    escaped = ["\\x00", "\\x0a", " ", "!", "\\x5c", "a", "\\xc3\\xa9", "\\xf0\\x93\\x82\\x80"]
    assert value(gguf.Keys.Tokenizer.LIST) == escaped
    assert value(gguf.Keys.Tokenizer.MODEL) == "rwkv"
    assert value(gguf.Keys.Tokenizer.UNK_ID) == 2
    assert reader.get_field(gguf.Keys.Tokenizer.EOS_ID) is None
    [embedding] = [t.data for t in reader.tensors if t.name == "token_embd.weight"]
    np.testing.assert_array_equal(embedding, weights["transformer.wte.weight"][:8].numpy())


# llama.cpp itself

TEXT = "To be, or not to be: that is the question.\n"

LLAMA_CPP = """
import json, sys, urllib.request
import xllamacpp

path, prompt, text, count = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)

def post(method, **values):
    request = urllib.request.Request(
        f"{server.listening_address}/{method}",
        json.dumps(values).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)

found = [
    post("completion", prompt=p, n_predict=count, temperature=0, return_tokens=True)
    for p in (prompt, text)
]
found += [post("tokenize", content=content) for content in (text, "To 😀be")]
print(json.dumps([[answer["tokens"], answer.get("content")] for answer in found]))
"""


def trained_model(tokenizer: Tokenizer) -> GPT:
    """A small network that has seen TEXT often enough to be sure of it."""
    torch.manual_seed(0)
    config = ModelConfig(
        block_size=128, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32, bias=False
    )
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor(tokenizer.encode(TEXT * 5)[:129])
    for _ in range(80):
        _, loss = model(ids[None, :-1], ids[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def greedy(model: GPT, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The likeliest continuation, and by how much each token of it was the likeliest, at least."""
    ids, margins = list(prompt), []
    for _ in range(count):
        inputs = torch.tensor([ids])
        logits, likeliest = model(inputs, inputs)[0][0, -1].topk(2)
        margins.append(float(logits[0] - logits[1]))
        ids.append(int(likeliest[0]))
    return ids[len(prompt) :], min(margins)


@pytest.mark.skipif(
    find_spec("xllamacpp") is None,
    reason="llama.cpp is not installed: pip install 'nanogpt-service[bench]'",
)
@pytest.mark.parametrize("tokenizer", [CharTokenizer.from_text(TEXT), GPT2Tokenizer()])
def test_llama_cpp_gives_the_same_greedy_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of token ids and of text. llama.cpp approximates GELU, which moves logits by less than 0.01
    here, so the network has to be surer than that. In a process of its own, which it may stop."""
    model, text = trained_model(tokenizer), TEXT[:20]
    prompt = tokenizer.encode(text)
    expected, margin = greedy(model, prompt, 24)
    assert margin > 0.1
    meta = CheckpointMeta(80, model.config, tokenizer.to_json())
    export_gguf(tmp_path, "bard", meta, model.state_dict())
    request = json.dumps([str(tmp_path / "bard.gguf"), prompt, text, 24])
    ran = subprocess.run(
        (sys.executable, "-c", LLAMA_CPP, request), capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    of_ids, of_text, tokenized, unknown = json.loads(ran.stdout.splitlines()[-1])
    assert of_ids == of_text == [expected, tokenizer.decode(expected)]
    assert tokenized[0] == prompt
    read_as = "To 😀be" if tokenizer.kind == "gpt2" else "To " + " " * len("😀".encode()) + "be"
    assert unknown[0] == tokenizer.encode(read_as)
