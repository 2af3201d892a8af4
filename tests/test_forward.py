"""What a step's forward pass is made of: the chosen attention, the head of a large vocabulary."""

import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.model import GPT
from nanogpt.training.cross_entropy import LARGE_VOCABULARY
from nanogpt.training.execution import Execution, MatmulAttention
from nanogpt.training.forward import make_forward


def make(vocab_size):
    shape = ModelConfig(block_size=8, vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=8)
    return GPT(shape).train(), torch.zeros(1, 4, 8, dtype=torch.int64)


@pytest.mark.parametrize("vocab_size", [65, LARGE_VOCABULARY])
def test_the_loss_is_that_of_the_plain_model(vocab_size):
    model, tokens = make(vocab_size)
    _, expected = model(tokens[0], tokens[0])
    forward = make_forward(model, Execution(2, "matmul"), (tokens, tokens), dtype=torch.float32)
    output, loss = forward(tokens[0], tokens[0])
    assert isinstance(model.attend, MatmulAttention)
    assert (forward is model) == (vocab_size < LARGE_VOCABULARY)
    assert output.shape[-1] == (vocab_size if forward is model else 8)  # hidden states, no logits
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_a_compiled_one_is_made_for_a_piece(monkeypatch):
    model, tokens = make(LARGE_VOCABULARY)
    seen = []

    def compiled(model):
        return lambda x, y: seen.append(len(x)) or model(x, y)

    monkeypatch.setattr(torch, "compile", compiled)
    batch = (tokens, tokens)
    forward = make_forward(model, Execution(2), batch, dtype=torch.float32, compile="on")
    assert seen == [2, 2]  # of 4 sequences; in training and in evaluation
    assert forward(tokens[0], tokens[0])[0].shape == (4, 8, LARGE_VOCABULARY)
