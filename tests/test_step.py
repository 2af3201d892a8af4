"""A step computed fast is the step that nanoGPT takes, up to rounding."""

import torch

from nanogpt.config import TrainConfig
from nanogpt.model import GPT
from nanogpt.training.execution import Execution, use_attention
from nanogpt.training.optimizer import make_optimizer, set_learning_rate
from nanogpt.training.schedule import learning_rate
from nanogpt.training.step import TrainingStep

BFLOAT16_BOUND = 0.002
"""Nats between the losses of any of 100 steps: twice the most that 12 seeds showed, 0.0008 to
0.0011 each. bfloat16 keeps 8 significant bits; weights, sums and the optimizer stay in float32."""

TEXT = b"the quick brown fox jumps over the lazy dog while nine wizards brew strong potions\n" * 40


def loss_curve(dtype: torch.dtype, execution: Execution, seed: int) -> list[float]:
    """The losses of 100 steps from one start, on the same batches whatever the type."""
    config = TrainConfig(
        n_layer=2,
        n_head=2,
        n_embd=32,
        block_size=16,
        batch_size=8,
        dropout=0.0,
        learning_rate=3e-3,
        warmup_iters=10,
        max_iters=100,
        lr_decay_iters=100,
    )
    vocabulary = sorted(set(TEXT))
    tokens = torch.tensor([vocabulary.index(byte) for byte in TEXT])
    torch.manual_seed(seed)
    model = GPT(config.model_config(len(vocabulary))).train()
    use_attention(model, execution)
    optimizer = make_optimizer(model, config)
    step = TrainingStep(
        model, optimizer, dtype=dtype, grad_clip=config.grad_clip, pieces=execution.pieces
    )
    draws = torch.Generator().manual_seed(seed)
    losses = []
    for number in range(config.max_iters):
        set_learning_rate(optimizer, config, learning_rate(config, number))
        starts = torch.randint(len(tokens) - 17, (1, 8, 1), generator=draws)
        crops = tokens[starts + torch.arange(17)]
        losses.append(step(crops[..., :-1], crops[..., 1:]).loss)
    return losses


def test_bfloat16_learns_what_float32_learns() -> None:
    plain = loss_curve(torch.float32, Execution(), seed=1337)
    fast = loss_curve(torch.bfloat16, Execution(pieces=4, attention="matmul"), seed=1337)
    assert plain[-1] < plain[0] - 1.5  # it learns, so the curves could part
    assert fast != plain
    assert max(abs(a - b) for a, b in zip(plain, fast, strict=True)) < BFLOAT16_BOUND
