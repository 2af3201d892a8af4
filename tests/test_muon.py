"""Muon's update is orthogonal, matrix by matrix; everything else is AdamW to the last bit."""

import pytest
import torch

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.model import GPT
from nanogpt.training.muon import Muon, momentum_at, orthogonalize
from nanogpt.training.optimizer import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)

TINY = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=True)
CONFIG = TrainConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.02)


def make(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    model = GPT(TINY)
    return model, make_optimizer(model, config)


def backward(model, number):
    tokens = torch.randint(65, (4, 16), generator=torch.Generator().manual_seed(number))
    model.zero_grad()
    model(tokens, tokens)[1].backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(32, 128), (16, 256), (64, 160)])
def test_singular_values_become_about_one(dtype, rows, columns):
    torch.manual_seed(0)
    matrices = torch.randn(3, rows, columns) * torch.tensor([1e-4, 1.0, 1e3]).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonalize(matrices, dtype))
    assert values.min() > 0.7
    assert values.max() < 1.3


def test_singular_vectors_stay():
    torch.manual_seed(0)
    matrix = torch.randn(1, 16, 64)
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = u.t() @ orthogonalize(matrix)[0] @ v.t()
    off_diagonal = turned - turned.diag().diag()
    assert off_diagonal.abs().max() < 1e-4
    assert (turned.diag() > 0.7).all()


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


def test_the_update_of_each_matrix_of_a_model():
    """Fused queries, keys and values are three matrices; a tall one moves by more."""
    model, optimizer = make(config=TrainConfig(optimizer="muon", weight_decay=0.0))
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    backward(model, 0)
    gradients = {name: w.grad.clone() for name, w in model.named_parameters()}
    optimizer.step()
    checked = 0
    for name, weight in model.named_parameters():
        if ".h." not in name or weight.dim() != 2:
            continue
        moved, gradient = (before[name] - weight.detach()) / 0.02, gradients[name]
        parts = 3 if "c_attn" in name else 1
        for part, slope in zip(moved.chunk(parts), gradient.chunk(parts), strict=True):
            wide = slope if slope.shape[0] <= slope.shape[1] else slope.t()
            expected = orthogonalize(wide[None])[0]
            expected = expected if wide is slope else 2.0 * expected.t()  # sqrt(4C / C)
            torch.testing.assert_close(part, expected, atol=1e-2, rtol=0)
            checked += 1
    assert checked == 2 * (3 + 1 + 1 + 1)


def test_all_other_weights_take_the_steps_of_adamw():
    model, optimizer = make()
    reference, _ = make()
    others = [n for n, w in model.named_parameters() if ".h." not in n or w.dim() < 2]
    named = dict(reference.named_parameters())
    adamw = torch.optim.AdamW(
        [named[n] for n in others], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    for number in range(3):
        backward(model, number)
        for name, weight in model.named_parameters():
            named[name].grad = weight.grad.clone()
        optimizer.step()
        adamw.step()
        for name, weight in model.named_parameters():
            if name in others:
                assert torch.equal(weight, named[name])


def test_only_its_matrices_decay():
    model, optimizer = make(config=TrainConfig(optimizer="muon", weight_decay=0.5))
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        factor = 1 - 0.02 * 0.5 if ".h." in name and weight.dim() == 2 else 1.0
        torch.testing.assert_close(weight.detach(), before[name] * factor, atol=1e-7, rtol=0)


def test_momentum_grows_to_its_end():
    assert momentum_at(0) == 0.85
    assert momentum_at(150) == pytest.approx(0.90)
    assert momentum_at(300) == momentum_at(10_000) == pytest.approx(0.95)


def test_both_rates_follow_the_schedule():
    _, optimizer = make()
    set_learning_rate(optimizer, CONFIG, 0.25e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.25e-3]


def test_saved_state_goes_on_bit_for_bit():
    model, optimizer = make()
    for number in range(3):
        backward(model, number)
        optimizer.step()
    tensors = {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items()}
    resumed, other = make(seed=9)
    resumed.load_state_dict({n: t.clone() for n, t in model.state_dict().items()})
    load_optimizer_tensors(other, resumed, tensors)
    assert isinstance(other, Muon)
    for number in range(3, 6):
        for m, o in ((model, optimizer), (resumed, other)):
            backward(m, number)
            o.step()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True)
    )
    saved = optimizer_tensors(optimizer, model)
    assert "optimizer.momentum.transformer.h.0.attn.c_attn.weight" in saved
    assert "optimizer.exp_avg.lm_head.weight" in saved or (
        "optimizer.exp_avg.transformer.wte.weight" in saved
    )
