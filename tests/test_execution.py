"""Pieces, plain attention and the chunked head give the gradients of the plain way."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.model import GPT, soft_cap
from nanogpt.training import execution as execution_module
from nanogpt.training.cross_entropy import chunked_cross_entropy
from nanogpt.training.execution import (
    Execution,
    choose_execution,
    recorded_execution,
    use_attention,
)
from nanogpt.training.optimizer import make_optimizer
from nanogpt.training.step import TrainingStep

SHAPE = ModelConfig(block_size=32, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=False)


MODERN = replace(SHAPE, arch="modern")


def make(shape=SHAPE):
    """Its head is not zero, or nothing below it would have a gradient."""
    torch.manual_seed(0)
    model = GPT(shape).train()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def gradients(execution, dtype=torch.float32, shape=SHAPE):
    model = make(shape)
    use_attention(model, execution)
    step = TrainingStep(
        model,
        make_optimizer(model, TrainConfig()),
        dtype=dtype,
        grad_clip=0.0,
        pieces=execution.pieces,
    )
    torch.manual_seed(1)
    tokens = torch.randint(65, (2, 6, 33))
    result = step(tokens[..., :-1], tokens[..., 1:])
    return result, {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("pieces", [1, 3, 4, 6])
@pytest.mark.parametrize("attention", ["fused", "matmul"])
@pytest.mark.parametrize("shape", [SHAPE, MODERN], ids=["gpt2", "modern"])
def test_the_gradient_is_that_of_the_plain_way(pieces, attention, shape):
    """Also in pieces of unequal size: 6 sequences in 4."""
    plain, expected = gradients(Execution(), shape=shape)
    result, found = gradients(Execution(pieces, attention), shape=shape)
    assert result.loss == pytest.approx(plain.loss, abs=1e-6)
    assert result.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attention", ["fused", "matmul"])
@pytest.mark.parametrize("shape", [SHAPE, MODERN], ids=["gpt2", "modern"])
def test_bfloat16_stays_close_to_float32(attention, shape):
    plain, expected = gradients(Execution(), shape=shape)
    result, found = gradients(Execution(2, attention), torch.bfloat16, shape)
    assert result.loss == pytest.approx(plain.loss, abs=0.01)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_plain_attention_drops_weights_in_training_only():
    model = make(replace(SHAPE, dropout=0.5))
    use_attention(model, Execution(1, "matmul"))
    q, k, v = torch.randn(3, 2, 2, 32, 16)
    model.eval()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(model.attend(0, q, k, v), expected)
    model.train()
    draws = torch.stack([model.attend(0, q, k, v) for _ in range(400)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected).abs().mean() / draws.std(0).mean()
    assert error < 0.1  # right on average: the rest is noise of 400 draws


def test_tiny_models_are_not_measured(monkeypatch):
    monkeypatch.setattr(execution_module, "_block_seconds", lambda *_: pytest.fail("measured"))
    assert choose_execution(make(), 64, torch.float32) == Execution()


@pytest.mark.parametrize(
    ("fastest", "expected"),
    [((32, "fused"), Execution(3, "fused")), ((48, "matmul"), Execution(2, "matmul"))],
)
def test_the_fastest_is_chosen(monkeypatch, fastest, expected):
    """Sizes are divisors of 96 sequences with at least 1024 tokens; only a clear gain counts."""
    seen = []

    def seconds(model, attend, size, dtype):
        name = "fused" if attend is None else "matmul"
        seen.append(size)
        return size * (1.0 if (size, name) == fastest else 1.5 - 0.0001 * size)

    monkeypatch.setattr(execution_module, "WORTHWHILE_FLOPS", 0)
    monkeypatch.setattr(execution_module, "_block_seconds", seconds)
    assert choose_execution(make(), 96, torch.float32) == expected
    assert sorted(set(seen)) == [32, 48, 96]


@pytest.mark.parametrize("shape", [SHAPE, MODERN], ids=["gpt2", "modern"])
def test_measuring_changes_nothing(monkeypatch, shape):
    monkeypatch.setattr(execution_module, "WORTHWHILE_FLOPS", 0)
    model = make(replace(shape, dropout=0.5))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    state = torch.get_rng_state()
    found = choose_execution(model, 16, torch.float32)
    assert found.pieces in (1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(w.grad is None for w in model.parameters())


def test_a_choice_is_made_once(tmp_path):
    path = tmp_path / "execution.json"
    first = recorded_execution(path, lambda: Execution(4, "matmul"))
    assert recorded_execution(path, lambda: pytest.fail("chosen again")) == first
    path.write_text("{")
    assert recorded_execution(path, lambda: Execution(2)) == Execution(2)


@pytest.mark.parametrize("is_capped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_and_its_gradients(monkeypatch, dtype, is_capped):
    """In chunks of 7 of 40 tokens, the last one smaller."""
    monkeypatch.setattr("nanogpt.training.cross_entropy.PIECE_BYTES", 7 * 4 * 300)
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, requires_grad=True)
    head = (3 * torch.randn(300, 16)).requires_grad_()  # logits beyond the cap
    targets = torch.randint(300, (40,))

    def plain():
        logits = F.linear(hidden, head)
        return F.cross_entropy(soft_cap(logits) if is_capped else logits, targets)

    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected = plain()
        (3 * expected).backward()
        wanted = hidden.grad.clone(), head.grad.clone()
        hidden.grad = head.grad = None
        found = chunked_cross_entropy(hidden, head, targets, is_capped)
        (3 * found).backward()
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    for one, other in zip((hidden.grad, head.grad), wanted, strict=True):
        assert (one - other).norm() <= tolerance * 5 * other.norm()
    with torch.no_grad():
        again = chunked_cross_entropy(hidden, head, targets, is_capped)
        assert again.item() == pytest.approx(plain().item(), rel=1e-6)
    assert math.isfinite(found.item())
