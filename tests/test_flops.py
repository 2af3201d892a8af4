"""Counts against the reference numbers of nanoGPT, and against the network itself."""

from dataclasses import replace

import pytest
import torch

from nanogpt import flops
from nanogpt.config import ModelConfig
from nanogpt.model import GPT

CHAR = ModelConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, bias=False)
CPU = ModelConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, bias=False)
GPT2_PADDED = ModelConfig(vocab_size=50304, bias=False)
GPT2_XL = ModelConfig(vocab_size=50257, n_layer=48, n_head=25, n_embd=1600)


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (CHAR, 10_646_784),
        (CPU, 795_904),
        (GPT2_PADDED, 123_587_328),
        (ModelConfig(vocab_size=50257, bias=False), 123_551_232),
        (ModelConfig(vocab_size=50257), 123_653_376),
        (GPT2_XL, 1_555_972_800),
    ],
)
def test_weights(config, weights):
    assert flops.multiplied_weights(config) == weights
    with torch.device("meta"):
        assert GPT(config).parameter_count(position_embeddings=False) == weights


@pytest.mark.parametrize(
    ("config", "count"), [(CHAR, 70_958_592), (CPU, 5_168_640), (GPT2_PADDED, 854_770_176)]
)
def test_training_flops_per_token(config, count):
    assert flops.training_flops_per_token(config) == count


@pytest.mark.parametrize("config", [CHAR, GPT2_XL, replace(CHAR, arch="modern")])
def test_parameter_count(config):
    with torch.device("meta"):
        assert GPT(config).parameter_count() == flops.parameter_count(config)


def test_a_modern_head_is_multiplied_and_its_embedding_is_not():
    modern = replace(CHAR, arch="modern")
    norms = 13 * 384
    assert flops.multiplied_weights(modern) == flops.multiplied_weights(CHAR) - norms
    assert flops.parameter_count(modern) == flops.multiplied_weights(modern) + 65 * 384


def test_training_flops_per_step():
    assert flops.training_flops_per_token(CHAR) * 16_384 == pytest.approx(1.163e12, rel=1e-3)
    assert flops.training_flops_per_token(GPT2_PADDED) * 491_520 == pytest.approx(
        4.201e14, rel=1e-3
    )


def test_training_is_three_times_inference_over_a_full_context():
    full = flops.decode_flops_per_token(CHAR, context_tokens=CHAR.block_size)
    assert flops.training_flops_per_token(CHAR) == 3 * full


def test_decoding_reads_the_weights_once_for_the_whole_batch():
    sizes = {"bytes_per_weight": 0.5, "bytes_per_kv_value": 2, "context_tokens": 100}
    one = flops.decode_bytes_per_step(CHAR, batch=1, **sizes)
    eight = flops.decode_bytes_per_step(CHAR, batch=8, **sizes)
    assert one == 10_646_784 / 2 + 2 * 2 * 6 * 384 * 100
    assert eight - one == 7 * 2 * 2 * 6 * 384 * 100


@pytest.mark.parametrize("config", [CHAR, replace(CHAR, n_member=3)])
def test_a_request_computes_every_token_and_logits_of_sampled_ones(config):
    head = 2 * config.n_member * 65 * 384
    one = [flops.decode_flops_per_token(config, context) for context in range(1, 10)]
    assert flops.request_flops(config, prompt_tokens=1, new_tokens=9) == sum(one)
    assert flops.request_flops(config, prompt_tokens=7, new_tokens=3) == sum(one) - 6 * head
    # no token attends to more than the window
    longest = flops.decode_flops_per_token(config, config.block_size)
    assert flops.request_flops(config, prompt_tokens=1, new_tokens=1000) == 1000 * longest


def test_mfu_is_unset_without_a_peak():
    assert flops.mfu(1e12, None) is None
    assert flops.mfu(1e12, 4e12) == 0.25
