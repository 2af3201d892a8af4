"""The estimate of a run's memory, beside what a process really takes."""

import json
import subprocess
import sys

import pytest

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.training.memory import estimate_memory

FACTOR = 1.5
"""How far estimate and measured peak may lie apart."""


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 128, "batch_size": 16},
        {"n_layer": 2, "n_head": 4, "n_embd": 512, "block_size": 256, "batch_size": 8},
    ],
)
def test_the_estimate_is_near_the_measured_peak(shape):
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
