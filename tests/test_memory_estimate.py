"""The estimate of a run's memory, beside what a process really takes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.training.memory import estimate_memory

FACTOR = 1.5
"""How far estimate and measured peak may lie apart."""


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 128, "batch_size": 16},
        {"n_layer": 2, "n_head": 4, "n_embd": 512, "block_size": 256, "batch_size": 8},
        {"arch": "modern", "n_layer": 6, "n_embd": 192, "block_size": 128, "batch_size": 16},
        {"n_member": 2, "n_layer": 3, "n_embd": 192, "block_size": 128, "batch_size": 8},
    ],
)
def test_the_estimate_is_near_the_measured_peak(shape):
    shape = {"n_head": 6, **shape}
    options = {**shape, "device": "cpu", "dtype": "float32", "warmup_steps": 1, "steps": 1}
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt.training.benchmark"],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(done.stdout)["result"]["peak_memory_bytes"]
    config = TrainConfig(**shape, dropout=0.0)
    estimate = estimate_memory(config.model_config(50304), config).step
    assert measured / FACTOR < estimate < measured * FACTOR


def test_what_the_parts_are():
    shape = ModelConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, bias=False)
    config = TrainConfig(dropout=0.0)
    found = estimate_memory(shape, config)
    assert found.weights == found.gradients == 4 * 10_745_088
    assert found.optimizer == 2 * found.weights
    assert found.checkpoint_copy == 3 * found.weights
    assert found.total == found.step + found.checkpoint_copy
    muon = estimate_memory(shape, TrainConfig(dropout=0.0, optimizer="muon"))
    assert found.optimizer - muon.optimizer == 4 * 12 * 6 * 384**2
    half = estimate_memory(shape, TrainConfig(dropout=0.0, batch_size=32))
    assert found.activations == 2 * half.activations


def test_all_logits_are_counted_where_all_are_held():
    shape = ModelConfig(block_size=64, vocab_size=50304, n_layer=1, n_head=2, n_embd=32)
    config = TrainConfig(dropout=0.0, batch_size=64)
    all_logits = 16 * 50304 * 64 * 64
    assert estimate_memory(shape, config).activations < all_logits / 10
    assert estimate_memory(shape, replace(config, compile="on")).activations > all_logits
    on_gpu = estimate_memory(shape, config, torch.device("cuda"))  # where auto compiles
    assert on_gpu.activations > all_logits
    two = replace(config, processes=2)
    assert estimate_memory(shape, two).activations > all_logits / 2
    found = estimate_memory(shape, config)
    assert found.on_gpu == found.total - found.checkpoint_copy - found.process


def test_what_processes_share():
    shape = ModelConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, bias=False)

    def of(**values):
        return estimate_memory(shape, TrainConfig(dropout=0.0, **values))

    alone, two = of(), of(processes=2)
    assert two.activations == pytest.approx(alone.activations / 2)
    assert (two.weights, two.optimizer) == (alone.weights, alone.optimizer)
    assert two.gradients == 2 * alone.gradients  # and what is exchanged
    assert two.all_processes == 2 * two.step + two.checkpoint_copy
    # whole micro-batches are shared: each is as large as before
    assert of(processes=2, gradient_accumulation_steps=4).activations == alone.activations

    spread = of(processes=4, sharding="fsdp")
    assert spread.optimizer == alone.optimizer / 4
    block = 4 * 12 * 384**2
    whole = alone.weights - 5 * block
    assert spread.weights == spread.gradients == pytest.approx(alone.weights / 4 + whole, rel=1e-6)
    assert spread.checkpoint_copy == alone.checkpoint_copy  # the first process gathers it
