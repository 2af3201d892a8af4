"""GPT-2 as transformers keeps it: names, shapes and settings of GPT2LMHeadModel.

Knows no files. The layout is that of https://huggingface.co/openai-community/gpt2: linear weights
of a block are stored as (in, out), the transpose of ours, and there is no weight for the output
layer, which is the token embedding again.

GPT-2 was trained with the tanh approximation of GELU (`gelu_new`) and ours is the exact one. The
two differ by less than 5e-4 anywhere; nanoGPT loads GPT-2 into the exact one too.
"""

from typing import Any

from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.interop.settings import check_settings, read_sizes
from nanogpt.interop.weights import CAUSAL_MASKS, HEAD, Shape, own, shapes_of, tie, with_biases

OPTIONAL = (HEAD,)

SIZES = {
    "n_positions": "block_size",
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
"""Settings that are fields of ModelConfig."""

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


def config_of(settings: dict[str, Any]) -> ModelConfig:
    """Our configuration of a config.json. Raises ValueError if it is not a GPT-2 like ours."""
    check_settings(settings, ACCEPTED_SETTINGS)
    config = read_sizes(settings, SIZES, bias=True)
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(
            f"config.json has n_inner {settings['n_inner']!r}; "
            f"must be 4 * n_embd = {4 * config.n_embd}"
        )
    return config


def settings_of(config: ModelConfig, end_of_text_id: int | None) -> dict[str, Any]:
    """What goes into config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
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


def name_of(stored: str) -> str | None:
    """GPT2LMHeadModel prefixes all but the head with `transformer.`; GPT2Model does not. None is
    no weight."""
    if stored.endswith(CAUSAL_MASKS):
        return None
    return stored if stored.startswith(("transformer.", HEAD)) else f"transformer.{stored}"


def stored_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of each weight in a file."""
    return {
        name: shape[::-1] if name.endswith(TRANSPOSED) else shape
        for name, shape in shapes_of(config).items()
    }


def to_ours(config: ModelConfig, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our float32 weights of those of a file. Raises ValueError if the head is not tied."""
    return tie({name: own(_turned(name, weight)) for name, weight in stored.items()})


def to_stored(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What goes into a file. The output layer is left out, since it is tied. GPT-2 always has
    biases: a network without them gets zeros, which compute the same."""
    weights = with_biases(config, state)
    return {name: _turned(name, weight).contiguous() for name, weight in weights.items()}


def _turned(name: str, weight: Tensor) -> Tensor:
    return weight.t() if name.endswith(TRANSPOSED) else weight
