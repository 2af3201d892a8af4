"""Hugging Face GPT-2 folders, in and out: config.json, model.safetensors, tokenizer files.

Shapes are compared with the configuration before any weight is read, so a file that lies costs a
header, not memory. Knows nothing about names of models or where folders are kept.

    config, state = import_hugging_face(Path("gpt2"))
    model = GPT(config)
    model.load_state_dict(state)

The layout is that of https://huggingface.co/openai-community/gpt2: linear weights of a block are
stored as (in, out), the transpose of ours, and there is no weight for the output layer, which is
the token embedding again.

GPT-2 was trained with the tanh approximation of GELU (`gelu_new`) and ours is the exact one. The
two differ by less than 5e-4 anywhere; nanoGPT loads GPT-2 into the exact one too.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import InvalidConfig, ModelConfig
from nanogpt.interop.gpt2_vocabulary import END_OF_TEXT, merges, vocabulary
from nanogpt.interop.weights import (
    CAUSAL_MASKS,
    Shape,
    compare_shapes,
    own,
    shapes_of,
    tie,
    with_biases,
)
from nanogpt.tokenizer import CharTokenizer, tokenizer_from_json

HEADER_LIMIT_BYTES = 10_000_000  # GPT-2 XL has a header of 50 kB
JSON_LIMIT_BYTES = 10_000_000
FLOAT_TYPES = {"F32", "F16", "BF16"}  # names of the safetensors format

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

ACCEPTED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Settings of GPT2Config that change the arithmetic, the first value being GPT2Config's default.

https://huggingface.co/docs/transformers/model_doc/gpt2#transformers.GPT2Config
"""


def import_hugging_face(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and the float32 weights, under our names, of a saved GPT2LMHeadModel or GPT2Model.

    Reads config.json and model.safetensors, or the shards that model.safetensors.index.json
    names. Raises ValueError if a file is missing, damaged or not a GPT-2 of that shape.
    """
    config = _shape_of_hugging_face(_read_json(folder / "config.json"))
    expected = {
        name: shape[::-1] if name.endswith(TRANSPOSED) else shape
        for name, shape in shapes_of(config).items()
    }
    where: dict[str, tuple[Path, str]] = {}  # our name -> (file, its name there)
    found: dict[str, Shape] = {}
    for path in _weight_files(folder):
        with _open_safetensors(path) as weights:
            for stored in weights.keys():
                if stored.endswith(CAUSAL_MASKS):
                    continue
                name = _our_name(stored)
                if name in found:
                    raise ValueError(f"tensor {stored} is there twice, again in {path.name}")
                entry = weights.get_slice(stored)
                if entry.get_dtype() not in FLOAT_TYPES:
                    raise ValueError(
                        f"tensor {stored} has type {entry.get_dtype()}; "
                        f"allowed: {', '.join(sorted(FLOAT_TYPES))}"
                    )
                found[name], where[name] = tuple(entry.get_shape()), (path, stored)
    compare_shapes(found, expected)

    state: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in where.values()}):
        with _open_safetensors(path) as weights:
            for name, (file, stored) in where.items():
                if file == path:
                    weight = weights.get_tensor(stored)
                    state[name] = own(weight.t() if name.endswith(TRANSPOSED) else weight)
    return config, tie(state)


def export_hugging_face(
    folder: Path, name: str, meta: CheckpointMeta, state: dict[str, Tensor]
) -> None:
    """Writes config.json and model.safetensors, which GPT2LMHeadModel.from_pretrained loads.

    Beside them go the files of GPT-2's tokenizer, or chars.json: the characters in the order of
    their ids, which transformers does not read. All rows of the embedding are kept, also those
    beyond the tokenizer's tokens. The files say nothing of `name`: the folder is the name here.
    """
    config, tokenizer = meta.model_config, tokenizer_from_json(meta.tokenizer)
    weights = to_hugging_face(config, state)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", hugging_face_config(config, tokenizer.end_of_text_id))
    if isinstance(tokenizer, CharTokenizer):
        _write_json(folder / "chars.json", {"characters": tokenizer.characters})
    else:
        _write_gpt2_tokenizer(folder, config)


def to_hugging_face(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights in the layout of GPT2LMHeadModel, ready for model.safetensors.

    The output layer is left out, since it is tied. GPT-2 always has biases: a network without
    them gets zeros, which compute the same.
    """
    return {
        name: (weight.t() if name.endswith(TRANSPOSED) else weight).contiguous()
        for name, weight in with_biases(config, state).items()
    }


def hugging_face_config(config: ModelConfig, end_of_text_id: int | None = None) -> dict[str, Any]:
    """What goes into config.json beside the weights of `to_hugging_face`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.block_size,
        "vocab_size": config.vocab_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        **{name: accepted[0] for name, accepted in ACCEPTED_SETTINGS.items()},
        "activation_function": "gelu",  # the exact one
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": "float32",
    }


def _write_gpt2_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Writes what transformers' GPT2Tokenizer reads. It takes <|endoftext|> in a text for the end
    of a text; our tokenizer takes it for text like any other."""
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary())})
    lines = ["#version: 0.2", *map(" ".join, merges())]
    (folder / "merges.txt").write_bytes("\n".join([*lines, ""]).encode())
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": config.block_size,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _shape_of_hugging_face(values: dict[str, Any]) -> ModelConfig:
    """Our configuration of a config.json. Raises ValueError if it is not a GPT-2 like ours."""
    if values.get("model_type") != "gpt2":
        raise ValueError(f"config.json has model_type {values.get('model_type')!r}; must be 'gpt2'")
    for name, accepted in ACCEPTED_SETTINGS.items():
        value = values.get(name, accepted[0])
        if value not in accepted:
            allowed = " or ".join(repr(choice) for choice in accepted)
            raise ValueError(f"config.json has {name} {value!r}; must be {allowed}")
    sizes = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
    missing = [name for name in sizes if name not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    try:
        config = ModelConfig(
            block_size=values["n_positions"],
            bias=True,
            **{name: values[name] for name in sizes if name != "n_positions"},
        )
    except InvalidConfig as error:
        raise ValueError(f"config.json: {error}") from None
    if values.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(
            f"config.json has n_inner {values['n_inner']!r}; "
            f"must be 4 * n_embd = {4 * config.n_embd}"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors file of the folder, or every shard that its index names."""
    index_path = folder / "model.safetensors.index.json"
    if not index_path.exists():
        return [folder / "model.safetensors"]
    weight_map = _read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_path.name} has no weight_map")
    names = set(weight_map.values())
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise ValueError(f"{index_path.name} names {name!r}, not a .safetensors file beside it")
    return [folder / name for name in sorted(names)]


def _our_name(stored: str) -> str:
    """GPT2LMHeadModel prefixes all but the head with `transformer.`; GPT2Model does not."""
    return stored if stored.startswith(("transformer.", "lm_head.")) else f"transformer.{stored}"


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """The open file, its header checked. Raises ValueError if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except OSError:
        raise ValueError(f"{path.name} is missing or cannot be read") from None
    # https://github.com/huggingface/safetensors#format: 8 bytes of length, then the header
    if header_bytes > HEADER_LIMIT_BYTES:
        raise ValueError(
            f"{path.name} has a header of {header_bytes} bytes; "
            f"at most {HEADER_LIMIT_BYTES} are read"
        )
    try:
        with safe_open(path, framework="pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if it is missing, too large or no object."""
    try:
        with path.open("rb") as file:
            text = file.read(JSON_LIMIT_BYTES + 1)
    except OSError:
        raise ValueError(f"{path.name} is missing or cannot be read") from None
    if len(text) > JSON_LIMIT_BYTES:
        raise ValueError(f"{path.name} is larger than {JSON_LIMIT_BYTES} bytes")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), "ascii")
