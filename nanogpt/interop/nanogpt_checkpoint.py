"""nanoGPT's `ckpt.pt`, in and out. Read and written as tensors and plain values only.

Knows nothing about names of models or where files are kept.

    config, state = import_nanogpt(Path("out-shakespeare-char/ckpt.pt"))

https://github.com/karpathy/nanoGPT/blob/master/train.py says what is in it, sample.py what is read.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.checkpoint import CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.interop.weights import CAUSAL_MASKS, HEAD, compare_shapes, own, shapes_of, tie
from nanogpt.tokenizer import CharTokenizer, tokenizer_from_json

MODEL_ARGUMENTS = (
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "bias",
    "vocab_size",
    "dropout",
)
"""Fields of nanoGPT's GPTConfig."""

NEVER_MEASURED = 1e9
"""What nanoGPT's `best_val_loss` begins with."""


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
        config = ModelConfig(**arguments, arch="gpt2", n_member=1)
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
    found = {name: tuple(weight.shape) for name, weight in state.items()}
    compare_shapes(found, shapes_of(config), optional=(HEAD,))
    return config, tie({name: own(weight) for name, weight in state.items()})


def export_nanogpt(folder: Path, name: str, meta: CheckpointMeta, state: dict[str, Tensor]) -> None:
    """Writes ckpt.pt, which nanoGPT's sample.py reads, and the vocabulary of a char model.

    There is no optimizer in it, so train.py cannot go on from it. sample.py looks for the
    vocabulary in data/NAME/meta.pkl; a pickle can run code, so ours is meta.json, with the same
    keys and `itos` as a list: nanoGPT's meta.pkl is `pickle.dump(json.load(...))` of it.
    """
    checkpoint = {
        "model": state,
        "model_args": {name: getattr(meta.model_config, name) for name in MODEL_ARGUMENTS},
        "iter_num": meta.step,
        "best_val_loss": NEVER_MEASURED if meta.best_val_loss is None else meta.best_val_loss,
        "config": {"dataset": name},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    tokenizer = tokenizer_from_json(meta.tokenizer)
    if isinstance(tokenizer, CharTokenizer):
        characters = tokenizer.characters
        vocabulary = {
            "vocab_size": len(characters),
            "itos": characters,
            "stoi": {character: i for i, character in enumerate(characters)},
        }
        (folder / "meta.json").write_text(json.dumps(vocabulary), "ascii")


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
