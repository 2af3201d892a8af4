"""Hugging Face folders, in and out: config.json, model.safetensors, tokenizer files.

Shapes are compared with the configuration before any weight is read, so a file that lies costs a
header, not memory. Knows nothing about names of models or where folders are kept.

    config, state = import_hugging_face(Path("gpt2"))
    model = GPT(config)
    model.load_state_dict(state)

How a network is laid out there is the business of gpt2_layout and nanochat_layout.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.interop import gpt2_layout, nanochat_layout
from nanogpt.interop.gpt2_vocabulary import END_OF_TEXT, merges, vocabulary
from nanogpt.interop.weights import Shape, compare_shapes
from nanogpt.tokenizer import CharTokenizer, tokenizer_from_json

HEADER_LIMIT_BYTES = 10_000_000  # GPT-2 XL has a header of 50 kB
JSON_LIMIT_BYTES = 10_000_000
FLOAT_TYPES = {"F32", "F16", "BF16"}  # names of the safetensors format


class Layout(Protocol):
    """What a module knows of one kind of network in transformers."""

    @property
    def OPTIONAL(self) -> tuple[str, ...]:
        """Weights that a file may lack."""

    def config_of(self, settings: dict[str, Any]) -> ModelConfig: ...
    def settings_of(self, config: ModelConfig, end_of_text_id: int | None) -> dict[str, Any]: ...
    def name_of(self, stored: str) -> str | None: ...
    def stored_shapes(self, config: ModelConfig) -> dict[str, Shape]: ...
    def to_ours(self, config: ModelConfig, stored: dict[str, Tensor]) -> dict[str, Tensor]: ...
    def to_stored(self, config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]: ...


LAYOUTS: dict[str, Layout] = {"gpt2": gpt2_layout, "nanochat": nanochat_layout}
"""By model_type."""


def import_hugging_face(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and the float32 weights, under our names, of a saved GPT2LMHeadModel, GPT2Model or
    NanoChatForCausalLM.

    Reads config.json and model.safetensors, or the shards that model.safetensors.index.json
    names. Raises ValueError if a file is missing, damaged or not such a network of that shape.
    """
    settings = _read_json(folder / "config.json")
    model_type = settings.get("model_type")
    layout = LAYOUTS.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        allowed = " or ".join(map(repr, LAYOUTS))
        raise ValueError(f"config.json has model_type {model_type!r}; must be {allowed}")
    config = layout.config_of(settings)
    where: dict[str, tuple[Path, str]] = {}  # name of the layout -> (file, its name there)
    found: dict[str, Shape] = {}
    for path in _weight_files(folder):
        with _open_safetensors(path) as weights:
            for stored in weights.keys():
                name = layout.name_of(stored)
                if name is None:
                    continue
                if name in found:
                    raise ValueError(f"tensor {stored} is there twice, again in {path.name}")
                entry = weights.get_slice(stored)
                if entry.get_dtype() not in FLOAT_TYPES:
                    raise ValueError(
                        f"tensor {stored} has type {entry.get_dtype()}; "
                        f"allowed: {', '.join(sorted(FLOAT_TYPES))}"
                    )
                found[name], where[name] = tuple(entry.get_shape()), (path, stored)
    compare_shapes(found, layout.stored_shapes(config), layout.OPTIONAL)

    with ExitStack() as files:
        opened = {
            path: files.enter_context(_open_safetensors(path))
            for path in {path for path, _ in where.values()}
        }
        weights = {name: opened[path].get_tensor(stored) for name, (path, stored) in where.items()}
        return config, layout.to_ours(config, weights)


def export_hugging_face(
    folder: Path, name: str, meta: CheckpointMeta, state: dict[str, Tensor]
) -> None:
    """Writes config.json and model.safetensors, which AutoModelForCausalLM.from_pretrained loads.

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
    """Our weights as transformers has them, ready for model.safetensors."""
    return _layout_of(config).to_stored(config, state)


def hugging_face_config(config: ModelConfig, end_of_text_id: int | None = None) -> dict[str, Any]:
    """What goes into config.json beside the weights of `to_hugging_face`."""
    return _layout_of(config).settings_of(config, end_of_text_id)


def _layout_of(config: ModelConfig) -> Layout:
    return nanochat_layout if config.is_modern else gpt2_layout


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
