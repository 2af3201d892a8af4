"""Every value of every preset, against the systems they come from.

Four keys of nanoGPT have another value here, all for one reason: it requires CUDA and fails
without. `device`, `dtype`, `compile` and `backend` are `auto`, which picks what nanoGPT names where
that exists. The run name of `finetune_shakespeare` carries the time in nanoGPT.
"""

import pytest

from nanogpt.config import TrainConfig
from nanogpt.preset import load_preset, preset_names

GEM = {
    "out_dir": "out-shakespeare-char",
    "dataset": "shakespeare_char",
    "eval_interval": 250,
    "log_interval": 10,
    "eval_iters": 200,
    "eval_only": False,
    "always_save_checkpoint": False,
    "init_from": "scratch",
    "batch_size": 64,
    "block_size": 256,
    "gradient_accumulation_steps": 1,
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
    "dropout": 0.2,
    "bias": False,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "weight_decay": 1e-1,
    "beta1": 0.9,
    "beta2": 0.99,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 100,
    "lr_decay_iters": 5000,
    "max_iters": 5000,
    "device": "auto",
}
NANOGPT = {
    "out_dir": "out",
    "dataset": "openwebtext",
    "eval_interval": 2000,
    "log_interval": 1,
    "eval_iters": 200,
    "eval_only": False,
    "always_save_checkpoint": True,
    "init_from": "scratch",
    "batch_size": 12,
    "block_size": 1024,
    "gradient_accumulation_steps": 5 * 8,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 6e-4,
    "min_lr": 6e-5,
    "weight_decay": 1e-1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 2000,
    "lr_decay_iters": 600000,
    "max_iters": 600000,
    "device": "auto",
    "dtype": "auto",
    "compile": "auto",
    "backend": "auto",
    "wandb_log": False,
    "wandb_project": "owt",
    "wandb_run_name": "gpt2",
}
EVALUATION = {"batch_size": 8, "eval_iters": 500, "eval_only": True, "wandb_log": False}

TABLE = {
    "gem_defaults": GEM,
    "nanogpt_defaults": NANOGPT,
    "gem_train_shakespeare_char": GEM,
    "train_shakespeare": {**GEM, "out_dir": "out-shakespeare", "dataset": "shakespeare"},
    "gem_train_gpt2": {
        **GEM,
        "out_dir": "out-gpt2",
        "dataset": "openwebtext",
        "batch_size": 12,
        "block_size": 1024,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "dropout": 0.0,
        "bias": True,
        "learning_rate": 6e-4,
        "max_iters": 600000,
        "warmup_iters": 2000,
        "lr_decay_iters": 600000,
        "min_lr": 6e-5,
        "eval_interval": 1000,
        "eval_iters": 200,
    },
    "train_shakespeare_char": {
        **NANOGPT,
        "out_dir": "out-shakespeare-char",
        "eval_interval": 250,
        "eval_iters": 200,
        "log_interval": 10,
        "always_save_checkpoint": False,
        "wandb_log": False,
        "wandb_project": "shakespeare-char",
        "wandb_run_name": "mini-gpt",
        "dataset": "shakespeare_char",
        "gradient_accumulation_steps": 1,
        "batch_size": 64,
        "block_size": 256,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.2,
        "learning_rate": 1e-3,
        "max_iters": 5000,
        "lr_decay_iters": 5000,
        "min_lr": 1e-4,
        "beta2": 0.99,
        "warmup_iters": 100,
    },
    "train_gpt2": {
        **NANOGPT,
        "wandb_log": True,
        "wandb_project": "owt",
        "wandb_run_name": "gpt2-124M",
        "batch_size": 12,
        "block_size": 1024,
        "gradient_accumulation_steps": 40,
        "max_iters": 600000,
        "lr_decay_iters": 600000,
        "eval_interval": 1000,
        "eval_iters": 200,
        "log_interval": 10,
        "weight_decay": 1e-1,
    },
    "eval_gpt2": {**NANOGPT, **EVALUATION, "init_from": "gpt2"},
    "eval_gpt2_medium": {**NANOGPT, **EVALUATION, "init_from": "gpt2-medium"},
    "eval_gpt2_large": {**NANOGPT, **EVALUATION, "init_from": "gpt2-large"},
    "eval_gpt2_xl": {**NANOGPT, **EVALUATION, "init_from": "gpt2-xl"},
    "finetune_shakespeare": {
        **NANOGPT,
        "out_dir": "out-shakespeare",
        "eval_interval": 5,
        "eval_iters": 40,
        "wandb_log": False,
        "wandb_project": "shakespeare",
        "wandb_run_name": "ft",
        "dataset": "shakespeare",
        "init_from": "gpt2-xl",
        "always_save_checkpoint": False,
        "batch_size": 1,
        "gradient_accumulation_steps": 32,
        "max_iters": 20,
        "learning_rate": 3e-5,
        "min_lr": 6e-5,
        "decay_lr": False,
    },
}


OURS = ("best_shakespeare_char", "ensemble_shakespeare_char", "fast_shakespeare_char")
"""Presets that no other system has."""


def test_every_preset_is_in_the_table():
    assert preset_names() == sorted([*TABLE, *OURS])


@pytest.mark.parametrize("name", OURS)
def test_our_own_presets(name):
    """As docs/performance.md measures them: Muon, and a schedule that ends with the run."""
    preset = load_preset(name)
    config = TrainConfig.from_mapping(preset.config)
    assert preset.dataset == "shakespeare_char"
    assert (config.optimizer, config.lr_schedule) == ("muon", "wsd")
    assert config.max_iters == config.lr_decay_iters
    assert config.eval_whole_split


@pytest.mark.parametrize("name", TABLE)
def test_every_value(name):
    preset = load_preset(name)
    values = {**preset.config, "dataset": preset.dataset, "out_dir": preset.out_dir}
    assert values == TABLE[name]


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_a_valid_config_and_decides_every_key_of_its_system(name):
    preset = load_preset(name)
    config = TrainConfig.from_mapping(preset.config)
    assert {key: getattr(config, key) for key in preset.config} == preset.config
    system = GEM if len(preset.config) + 2 == len(GEM) else NANOGPT
    assert {*preset.config, "dataset", "out_dir"} == set(system)


def test_tokens_of_a_step():
    def tokens(name):
        return TrainConfig.from_mapping(load_preset(name).config).tokens_per_step

    assert tokens("train_shakespeare_char") == 16_384
    assert tokens("train_gpt2") == 491_520
    assert tokens("finetune_shakespeare") == 32_768
    assert tokens("gem_train_gpt2") == 12_288
