"""What the weights of a network must be: names, shapes, one tensor as embedding and head.

Knows no file format. Shapes are those of the configuration, and nothing is allocated to learn them.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.model import GPT

Shape = tuple[int, ...]

CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that older versions saved as weights
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


def shapes_of(config: ModelConfig) -> dict[str, Shape]:
    """Shape of each weight by our name, the head's too, without allocating any."""
    with torch.device("meta"):
        state = GPT(config).state_dict()
    return {name: tuple(weight.shape) for name, weight in state.items()}


def compare_shapes(
    found: dict[str, Shape], expected: dict[str, Shape], optional: Collection[str] = ()
) -> None:
    """Raises ValueError unless every expected weight is found, the optional ones apart, and no
    other."""
    missing = sorted(expected.keys() - found.keys() - set(optional))
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise ValueError(f"{len(unexpected)} tensors do not belong there, such as {unexpected[0]}")
    for name, shape in found.items():
        if shape != expected[name]:
            raise ValueError(
                f"tensor {name} has shape {list(shape)}; "
                f"the configuration asks for {list(expected[name])}"
            )


def own(weight: Tensor) -> Tensor:
    """A contiguous float32 copy: readers may hand out memory that is still mapped to the file."""
    return weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def tie(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with one tensor as embedding and head. Raises ValueError if they differ."""
    embedding = state[EMBEDDING]
    if not torch.equal(state.get(HEAD, embedding), embedding):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}; only tied weights can be imported")
    return {**state, HEAD: embedding}


def with_biases(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights for formats whose GPT-2 always has biases: zeros, which compute the same, where
    this network has none. Without the head, which those formats tie to the embedding."""
    shapes = shapes_of(replace(config, bias=True))
    del shapes[HEAD]
    return {name: state[name] if name in state else torch.zeros(shapes[name]) for name in shapes}
