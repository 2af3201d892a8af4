"""The modern architecture as transformers keeps it: NanoChatForCausalLM.

Knows no files. Queries, keys and values are three matrices there, and one below the other here.
https://huggingface.co/docs/transformers/model_doc/nanochat
"""

from typing import Any

import torch
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.interop.settings import check_settings, read_sizes
from nanogpt.interop.weights import EMBEDDING, HEAD, Shape, own, shapes_of
from nanogpt.model import ROTARY_BASE, SOFT_CAP
from nanogpt.rms_norm import EPSILON

OPTIONAL: tuple[str, ...] = ()

SIZES = {
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}
"""Settings that are fields of ModelConfig."""

ROTARY = {"rope_type": "default", "rope_theta": ROTARY_BASE}

ACCEPTED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("relu2",),
    "rms_norm_eps": (EPSILON,),
    "final_logit_softcapping": (SOFT_CAP,),
    "rope_parameters": (ROTARY, None),
    "attention_bias": (False,),
    "tie_word_embeddings": (False,),
}
"""Settings of NanoChatConfig that change the arithmetic, the first value being its default."""

OLDER_SETTINGS: dict[str, tuple[Any, ...]] = {
    "rope_theta": (ROTARY_BASE, None),
    "rope_scaling": (None,),
}
"""Names under which transformers reads what is in `rope_parameters`, too."""

OF_A_LAYER = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}
"""Our matrices, and those they consist of there, from top to bottom."""


def config_of(settings: dict[str, Any]) -> ModelConfig:
    """Our configuration of a config.json. Raises ValueError if it is not a network like ours."""
    check_settings(settings, {**ACCEPTED_SETTINGS, **OLDER_SETTINGS})
    config = read_sizes(settings, SIZES, bias=False, arch="modern")
    for name, needed in (
        ("intermediate_size", 4 * config.n_embd),
        ("num_key_value_heads", config.n_head),
        ("head_dim", config.head_size),
    ):
        if settings.get(name) not in (None, needed):
            raise ValueError(f"config.json has {name} {settings[name]!r}; must be {needed}")
    return config


def settings_of(config: ModelConfig, end_of_text_id: int | None) -> dict[str, Any]:
    """What goes into config.json. Dropout is attention's only there: training differs."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "intermediate_size": 4 * config.n_embd,
        "num_key_value_heads": config.n_head,
        "attention_dropout": config.dropout,
        **{name: accepted[0] for name, accepted in ACCEPTED_SETTINGS.items()},
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": None,
        "dtype": "float32",
    }


def name_of(stored: str) -> str | None:
    """Every tensor is a weight, and has but one name."""
    return stored


def stored_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of each weight in a file."""
    ours = {name: torch.empty(shape, device="meta") for name, shape in shapes_of(config).items()}
    return {name: tuple(weight.shape) for name, weight in to_stored(config, ours).items()}


def to_ours(config: ModelConfig, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our float32 weights of those of a file."""
    state = {
        EMBEDDING: own(stored["model.embed_tokens.weight"]),
        HEAD: own(stored[HEAD]),
    }
    for layer in range(config.n_layer):
        for ours, parts in OF_A_LAYER.items():
            below = [stored[f"model.layers.{layer}.{theirs}.weight"] for theirs in parts]
            state[f"transformer.h.{layer}.{ours}.weight"] = torch.cat(below).float()  # a copy
    return state


def to_stored(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What goes into a file."""
    stored = {"model.embed_tokens.weight": state[EMBEDDING], HEAD: state[HEAD]}
    for layer in range(config.n_layer):
        for ours, parts in OF_A_LAYER.items():
            below = state[f"transformer.h.{layer}.{ours}.weight"].chunk(len(parts))
            for theirs, part in zip(parts, below, strict=True):
                stored[f"model.layers.{layer}.{theirs}.weight"] = part
    return {name: weight.contiguous() for name, weight in stored.items()}
