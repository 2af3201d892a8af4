"""The training benchmark as the server runs it: JSON in, one line of JSON out."""

import json
import os
import subprocess
import sys

import pytest
from tiny_run import make_dataset

from nanogpt.config import ModelConfig
from nanogpt.flops import training_flops_per_token
from nanogpt.option import InvalidConfig
from nanogpt.training.benchmark import BenchmarkOptions, measure

TINY = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 16,
    "batch_size": 4,
    "dtype": "float32",
    "device": "cpu",
    "warmup_steps": 1,
    "steps": 3,
}


def run(options):
    process = subprocess.run(
        [sys.executable, "-m", "nanogpt.training.benchmark"],
        input=options if isinstance(options, str) else json.dumps(options),
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return process.returncode, process.stdout, process.stderr


def test_the_answer_is_one_line_with_every_field():
    code, output, _ = run(TINY)
    assert code == 0
    assert output.count("\n") == 1
    answer = json.loads(output)
    result, device = answer["result"], answer["device"]
    assert set(result) == {
        "step_seconds",
        "tokens_per_second",
        "flops_per_step",
        "mfu",
        "loss",
        "peak_memory_bytes",
        "parameter_count",
    }
    seconds = result["step_seconds"]
    assert 0 < seconds["p50"] <= seconds["p95"] <= seconds["p99"]
    assert result["tokens_per_second"] == pytest.approx(64 / seconds["p50"])
    config = ModelConfig(
        block_size=16, vocab_size=50304, n_layer=2, n_head=2, n_embd=32, bias=False
    )
    assert result["flops_per_step"] == 64 * training_flops_per_token(config)
    assert result["mfu"] == pytest.approx(
        result["flops_per_step"] / seconds["p50"] / device["peak_flops"]
    )
    assert result["loss"] == pytest.approx(10.8258, abs=0.1)  # ln 50304: random weights, tokens
    assert result["parameter_count"] == 1_634_976
    assert device["type"] == "cpu"
    assert device["threads"] == 1
    assert device["dtype"] == "float32"
    assert device["peak_source"] == "measured"
    assert device["peak_bytes_per_second"] > 0
    assert device["name"]


def test_a_dataset_gives_its_vocabulary(tmp_path):
    make_dataset(tmp_path / "tiny")
    answer = measure(
        BenchmarkOptions.from_mapping(
            {**TINY, "dataset": "tiny", "dataset_dir": str(tmp_path / "tiny")}
        )
    )
    # 26 letters, space, newline
    assert answer["result"]["parameter_count"] == 28 * 32 + 16 * 32 + 2 * (12 * 32**2 + 64) + 32
    assert answer["result"]["loss"] < 3.5


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        ({"n_embd": 33, "n_head": 2}, 64, "n_head: must divide n_embd"),
        ({"batchsize": 3}, 64, "batchsize: unknown key; did you mean 'batch_size'?"),
        ("[]", 64, "must be a JSON object"),
        ({**TINY, "dataset_dir": "nowhere"}, 65, "train.bin is missing"),
    ],
)
def test_what_cannot_be_measured_is_explained(options, code, complaint):
    found, output, error = run(options)
    assert found == code
    assert output == ""
    assert error.splitlines()[-1].startswith("error: ")
    assert complaint in error


def test_a_dataset_needs_its_folder():
    with pytest.raises(InvalidConfig, match="dataset_dir"):
        BenchmarkOptions(dataset="tiny")


def test_defaults_are_nanogpts():
    options = BenchmarkOptions()
    config = options.train_config()
    assert (options.batch_size, options.block_size, options.seed) == (12, 1024, 1337)
    assert (options.n_layer, options.n_head, options.n_embd) == (12, 12, 768)
    assert (options.dropout, options.bias, options.compile) == (0.0, False, "off")
    assert (options.warmup_steps, options.steps) == (10, 20)
    assert (config.learning_rate, config.weight_decay) == (1e-4, 1e-2)
    assert (config.beta1, config.beta2) == (0.9, 0.95)
