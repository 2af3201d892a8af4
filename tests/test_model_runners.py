"""What models take and multiply in, by precision and by what runs them."""

from types import SimpleNamespace

import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.flops import multiplied_weights
from nanogpt.inference.native.runner import NativeRunner
from nanogpt.inference.precision import PRECISIONS
from nanogpt.model import GPT
from server.models.runners import arithmetic_of, bytes_per_weight, memory_bytes_of

# as many rows and columns as kernels pack together; a head as large as the blocks
SHAPE = ModelConfig(8, 768, 1, 2, 64, bias=False, arch="modern")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_of_weights_are_those_that_the_kernels_read(kernels, precision):
    torch.manual_seed(0)
    weights = {name: weight.numpy() for name, weight in GPT(SHAPE).state_dict().items()}
    runner = NativeRunner(kernels, SHAPE, weights, SHAPE.vocab_size, precision=precision)
    counted = multiplied_weights(SHAPE) * bytes_per_weight(SHAPE, precision)
    assert counted == pytest.approx(runner.weight_bytes, rel=1e-12)
    kv_bytes = 2 * 4 * 8 * 64 * (4 if precision == "float32" else 2)
    embedding_bytes = 4 * 768 * 64
    estimate = memory_bytes_of(SHAPE, 4, precision, kernels)
    assert estimate == runner.weight_bytes + embedding_bytes + kv_bytes


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_type_of_the_arithmetic(has_instructions):
    library = SimpleNamespace(multiplies_bfloat16=has_instructions)
    half = "bfloat16" if has_instructions else "float32"
    native = [arithmetic_of(precision, library) for precision in PRECISIONS]
    assert native == ["float32", half, "integer", "integer"]
    assert [arithmetic_of(p, None) for p in ("float32", "bfloat16")] == ["float32", "bfloat16"]
