"""Weights of other systems: Hugging Face GPT-2 folders in and out, nanoGPT's `ckpt.pt` in.

Weights only: no code in a file is ever run. Shapes are compared with the configuration before any
weight is read, so a file that lies costs a header, not memory. Knows nothing about tokenizers,
names of models or where files are kept.

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
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanogpt.config import InvalidConfig, ModelConfig
from nanogpt.model import GPT

Shape = tuple[int, ...]

HEADER_LIMIT_BYTES = 10_000_000  # GPT-2 XL has a header of 50 kB
JSON_LIMIT_BYTES = 10_000_000
FLOAT_TYPES = {"F32", "F16", "BF16"}  # names of the safetensors format

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that older versions saved as weights
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"

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
        for name, shape in _shapes(config).items()
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
    _compare_shapes(found, expected)

    state: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in where.values()}):
        with _open_safetensors(path) as weights:
            for name, (file, stored) in where.items():
                if file == path:
                    weight = weights.get_tensor(stored)
                    state[name] = _own(weight.t() if name.endswith(TRANSPOSED) else weight)
    return config, _tie(state)


def import_nanogpt(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and the float32 weights of a checkpoint that nanoGPT's train.py wrote.

    Uses its `model_args` and `model`; optimizer, step and training configuration stay behind.
    Raises ValueError if the file is missing, damaged, holds anything but tensors and plain
    values, or has weights of another shape than its arguments say.
    """
    checkpoint = _unpickle_weights(path)
    arguments, model = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(arguments, dict) or not isinstance(model, dict):
        raise ValueError(f"{path.name} has no 'model' and 'model_args'; not a nanoGPT checkpoint")
    try:
        config = ModelConfig(**arguments)
    except TypeError as error:  # an argument that no ModelConfig has
        raise ValueError(f"'model_args' of {path.name} are not those of a GPT: {error}") from None

    state: dict[str, Tensor] = {}
    for stored, weight in model.items():
        if not isinstance(stored, str) or not isinstance(weight, Tensor):
            raise ValueError(f"'model' of {path.name} is not a mapping from names to tensors")
        if stored.endswith(CAUSAL_MASKS):
            continue
        # a view can claim more elements than the file has bytes
        if not weight.is_floating_point() or not weight.is_contiguous():
            raise ValueError(f"tensor {stored} is not a contiguous tensor of floats")
        state[stored.removeprefix("_orig_mod.")] = weight  # torch.compile adds this prefix
    _compare_shapes({name: tuple(w.shape) for name, w in state.items()}, _shapes(config))
    return config, _tie({name: _own(weight) for name, weight in state.items()})


def to_hugging_face(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights in the layout of GPT2LMHeadModel, ready for model.safetensors.

    The output layer is left out, since it is tied. GPT-2 always has biases: a network without
    them gets zeros, which compute the same.
    """
    biased = _shapes(replace(config, bias=True))
    exported = {}
    for name, shape in biased.items():
        weight = state[name] if name in state else torch.zeros(shape)
        exported[name] = (weight.t() if name.endswith(TRANSPOSED) else weight).contiguous()
    return exported


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


def _unpickle_weights(path: Path) -> dict[str, Any]:
    """The mapping in a torch.save file, mapped into memory. Raises ValueError if it has code."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path.name} holds more than tensors and plain values; it may run code and is refused"
        ) from None
    except Exception:  # what torch.load raises for a damaged file is not documented
        raise ValueError(f"{path.name} is damaged or was not written by torch.save") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path.name} holds a {type(checkpoint).__name__}, not a mapping")
    return checkpoint


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


def _shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of each weight by our name, without the tied head and without allocating any."""
    with torch.device("meta"):
        state = GPT(config).state_dict()
    return {name: tuple(weight.shape) for name, weight in state.items() if name != HEAD}


def _compare_shapes(found: dict[str, Shape], expected: dict[str, Shape]) -> None:
    """Raises ValueError unless every expected weight, and beside them only a head, is found."""
    expected = {**expected, HEAD: expected[EMBEDDING]}
    missing = sorted(expected.keys() - found.keys() - {HEAD})
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise ValueError(f"{len(unexpected)} tensors are not a GPT-2's, such as {unexpected[0]}")
    for name, shape in found.items():
        if shape != expected[name]:
            raise ValueError(
                f"tensor {name} has shape {list(shape)}; "
                f"the configuration asks for {list(expected[name])}"
            )


def _own(weight: Tensor) -> Tensor:
    """A contiguous float32 copy: readers may hand out memory that is still mapped to the file."""
    return weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _tie(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with one tensor as embedding and head. Raises ValueError if they differ."""
    embedding = state[EMBEDDING]
    if not torch.equal(state.get(HEAD, embedding), embedding):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}; only tied weights can be imported")
    return {**state, HEAD: embedding}
