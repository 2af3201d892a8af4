"""Groups, updates and saved state of the optimizer, against torch's plain one."""

import pytest
import torch

from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.model import GPT
from nanogpt.training.optimizer import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)

CONFIG = TrainConfig(learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.99)
TINY = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=True)


def shape(n_layer, n_head, n_embd, block_size, vocab_size, bias):
    return ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=vocab_size,
        bias=bias,
    )


@pytest.mark.parametrize(
    ("config", "decayed", "not_decayed"),
    [
        (shape(6, 6, 384, 256, 65, False), (10_740_096, 26), (4_992, 13)),
        (shape(4, 4, 128, 64, 65, False), (802_944, 18), (1_152, 9)),
        (shape(2, 2, 64, 32, 65, False), (104_512, 10), (320, 5)),
        (shape(12, 12, 768, 1024, 50257, True), (124_318_464, 50), (121_344, 98)),
    ],
)
def test_matrices_and_embeddings_decay_and_nothing_else(config, decayed, not_decayed):
    with torch.device("meta"):
        model = GPT(config)
        groups = make_optimizer(model, CONFIG).param_groups
    found = [(sum(p.numel() for p in g["params"]), len(g["params"])) for g in groups]
    assert found == [decayed, not_decayed]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(g["betas"] == (0.9, 0.99) for g in groups)


def make(seed=0):
    torch.manual_seed(seed)
    model = GPT(TINY)
    return model, make_optimizer(model, CONFIG)


def step(model, optimizer, number):
    tokens = torch.randint(65, (4, 16), generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    model(tokens, tokens)[1].backward()
    optimizer.step()


def test_the_fused_kernel_equals_the_plain_one():
    model, optimizer = make()
    plain_model, _ = make()
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in plain_model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in plain_model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.99),
        fused=False,
        foreach=False,
    )
    for number in range(10):
        step(model, optimizer, number)
        step(plain_model, plain, number)
    for ours, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_saved_state_goes_on_bit_for_bit():
    model, optimizer = make()
    for number in range(3):
        step(model, optimizer, number)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items()}
    names = dict(model.named_parameters())
    assert set(tensors) == {
        f"optimizer.{quantity}.{name}"
        for quantity in ("step", "exp_avg", "exp_avg_sq")
        for name in names
    }

    resumed, resumed_optimizer = make(seed=99)
    resumed.load_state_dict(weights)
    set_learning_rate(resumed_optimizer, CONFIG, 5e-4)
    load_optimizer_tensors(resumed_optimizer, resumed, {**tensors, "rng.cpu": torch.zeros(1)})
    assert [g["lr"] for g in resumed_optimizer.param_groups] == [5e-4, 5e-4]
    set_learning_rate(resumed_optimizer, CONFIG, 1e-3)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(resumed, resumed_optimizer, number)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_a_new_optimizer_has_no_state():
    model, optimizer = make()
    assert optimizer_tensors(optimizer, model) == {}
    load_optimizer_tensors(optimizer, model, {})
    step(model, optimizer, 0)
