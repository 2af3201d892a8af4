"""Dropout by 16 bits a number: its probability, its mean, its gradient, its generator."""

import subprocess
import sys

import pytest
import torch

from nanogpt.dropout import Dropout, dropout

COUNT = 200_001  # no multiple of the four that share a draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(dtype, probability):
    torch.manual_seed(0)
    y = dropout(torch.ones(COUNT, dtype=dtype), probability, training=True).float()
    error = 4 * (probability * (1 - probability) / COUNT) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(probability, abs=error)
    assert y[y != 0].unique().numel() == 1
    assert y.mean().item() == pytest.approx(1, abs=error / (1 - probability) + 0.004)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(COUNT), 0.5, training=True) == 0
    for distance in range(1, 9):
        both = (dropped[distance:] & dropped[:-distance]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.006)


def test_the_gradient_passes_where_the_number_did():
    x = torch.randn(3, 7, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    assert torch.equal(y, x * x.grad)
    assert set(x.grad.flatten().tolist()) <= {0.0, x.grad.max().item()}


def test_draws_are_those_of_torchs_generator():
    x = torch.ones(100)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (dropout(x, 0.5, training=True) for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_or_drawn_otherwise():
    x, state = torch.randn(5), torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_compiled_code_draws_the_same():
    def twice(x):
        return dropout(dropout(x, 0.3, training=True), 0.3, training=True)

    x = torch.randn(4, 9, requires_grad=True)
    torch.manual_seed(3)
    plain = twice(x)
    torch.manual_seed(3)
    compiled = torch.compile(twice, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(compiled, plain)
    (gradient,) = torch.autograd.grad(compiled.sum(), x)
    assert torch.equal(gradient == 0, plain == 0)


def test_a_run_that_compiles_nothing_loads_no_compiler():
    program = """
import sys, torch
from nanogpt.dropout import dropout
dropout(torch.ones(4, requires_grad=True), 0.5, training=True).sum().backward()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
