"""llama.cpp's single file, out only: architecture gpt2, float32, either tokenizer.

    header, metadata (key, type, value), names and places of tensors, tensors aligned to 32 bytes

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, all numbers little-endian.
Names and keys: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py

llama.cpp computes the tanh approximation of GELU and this network the exact one; no key can tell
it to. The two differ by less than 5e-4 anywhere, as when nanoGPT loads GPT-2, so the logits of
another program are close to ours and not equal. The file says so in `general.description`.

Characters travel as a vocabulary of the kind that RWKV has: of a text llama.cpp takes the longest
token that fits, which is one character, and unlike its other kinds this one has no end of text
unless the file names one. Each byte of a character that the model does not know is read as a space,
or as the first character if there is no space: llama.cpp aborts where nothing stands for it.
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp (LLAMA_VOCAB_TYPE_RWKV)
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.interop.gpt2_vocabulary import merges, vocabulary
from nanogpt.interop.weights import EMBEDDING, with_biases
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer, tokenizer_from_json

Value = str | bool | int | float | Sequence[str] | Sequence[int]

VERSION = 3
ALIGNMENT_BYTES = 32  # the format's default
FLOAT32 = 0  # both as GGML_TYPE_F32 and as the file type ALL_F32
DESCRIPTION = (
    "Exported from nanogpt-service. The network was trained with the exact GELU; programs that "
    "compute the tanh approximation, as llama.cpp does for gpt2, give slightly other logits."
)

OF_THE_MODEL = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
OF_A_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


class ValueType(IntEnum):
    """Types of metadata that are used here, by their numbers in the format."""

    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9


class TokenType(IntEnum):
    """What a token is, by llama.cpp's numbers."""

    NORMAL = 1
    CONTROL = 3


def export_gguf(folder: Path, name: str, meta: CheckpointMeta, state: dict[str, Tensor]) -> None:
    """Writes NAME.gguf, which llama.cpp runs.

    Rows of the embedding beyond the tokenizer's tokens stay behind, since llama.cpp would sample
    them.
    """
    tokenizer = tokenizer_from_json(meta.tokenizer)
    tensors = {
        gguf_name(ours): weight for ours, weight in with_biases(meta.model_config, state).items()
    }
    embedding = gguf_name(EMBEDDING)
    tensors[embedding] = tensors[embedding][: tokenizer.vocab_size]
    metadata = {**_network(name, meta.model_config), **_vocabulary(tokenizer)}
    with (folder / f"{name}.gguf").open("wb") as file:
        write_gguf(file, metadata, tensors)


def gguf_name(ours: str) -> str:
    """llama.cpp's name of a weight: transformer.h.3.ln_1.bias -> blk.3.attn_norm.bias"""
    layer, _, kind = ours.rpartition(".")
    if layer in OF_THE_MODEL:
        return f"{OF_THE_MODEL[layer]}.{kind}"
    block, _, part = layer.removeprefix("transformer.h.").partition(".")
    return f"blk.{block}.{OF_A_BLOCK[part]}.{kind}"


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]
) -> None:
    """Writes a whole file. Tensors are written one by one, as float32; none is held twice."""
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    head += b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    offset = 0
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))  # the one that varies fastest comes first
        head += _text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", FLOAT32, offset)
        size_bytes = 4 * tensor.numel()
        offset += size_bytes + len(_padding(size_bytes))
    file.write(head + _padding(len(head)))
    for tensor in tensors.values():
        array = tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
        file.write(array.data)
        file.write(_padding(array.nbytes))


def _network(name: str, config: ModelConfig) -> dict[str, Value]:
    return {
        "general.architecture": "gpt2",
        "general.name": name,
        "general.description": DESCRIPTION,
        "general.file_type": FLOAT32,
        "gpt2.block_count": config.n_layer,
        "gpt2.context_length": config.block_size,
        "gpt2.embedding_length": config.n_embd,
        "gpt2.feed_forward_length": 4 * config.n_embd,
        "gpt2.attention.head_count": config.n_head,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Value]:
    return _characters(tokenizer) if isinstance(tokenizer, CharTokenizer) else _byte_pairs()


def _byte_pairs() -> dict[str, Value]:
    end = GPT2Tokenizer.end_of_text_id
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [TokenType.NORMAL] * end + [TokenType.CONTROL],
        "tokenizer.ggml.merges": [" ".join(halves) for halves in merges()],
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }


def _characters(tokenizer: CharTokenizer) -> dict[str, Value]:
    characters = tokenizer.characters
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": [_escaped(character) for character in characters],
        "tokenizer.ggml.token_type": [TokenType.NORMAL] * len(characters),
        "tokenizer.ggml.unknown_token_id": characters.index(" ") if " " in characters else 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def _escaped(character: str) -> str:
    """A character as RWKV's vocabularies write it: bytes beyond printable ASCII are `\\xNN`."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != ord("\\") else f"\\x{byte:02x}"
        for byte in character.encode()
    )


def _typed(value: Value) -> bytes:
    """A value of metadata, its type before it. Lists hold text or int32, and are not empty."""
    match value:
        case str():
            return struct.pack("<I", ValueType.STRING) + _text(value)
        case bool():
            return struct.pack("<I?", ValueType.BOOL, value)
        case int():
            return struct.pack("<II", ValueType.UINT32, value)
        case float():
            return struct.pack("<If", ValueType.FLOAT32, value)
    texts = [item for item in value if isinstance(item, str)]
    numbers = [item for item in value if isinstance(item, int)]
    kind = ValueType.STRING if texts else ValueType.INT32
    head = struct.pack("<IIQ", ValueType.ARRAY, kind, len(value))
    return head + b"".join(map(_text, texts)) + struct.pack(f"<{len(numbers)}i", *numbers)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padding(size_bytes: int) -> bytes:
    """Zeros up to the next multiple of the alignment."""
    return bytes(-size_bytes % ALIGNMENT_BYTES)
