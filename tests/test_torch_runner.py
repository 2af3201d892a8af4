"""What the engine relies on: which rows come back, in which order, whatever shares the pass."""

import numpy as np
import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.torch_runner import TorchRunner
from nanogpt.model import GPT

VOCAB_SIZE = 50  # of 64: the rest is padding
CONFIG = ModelConfig(block_size=16, vocab_size=64, n_layer=2, n_head=4, n_embd=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


@torch.inference_mode()
def whole(model: GPT, tokens: list[int]) -> np.ndarray:
    """Logits (T, V) of every token, without a cache."""
    return model.lm_head(model.hidden(torch.tensor([tokens]))[0])[:, :VOCAB_SIZE].numpy()


def test_rows_are_those_asked_for_in_the_order_of_chunks(model: GPT) -> None:
    """All tokens, some, one or none of each chunk; chunks long and short, slots in no order."""
    runner = TorchRunner(model, VOCAB_SIZE, num_slots=6)
    a, b, c, d = list(range(10)), list(range(20, 30)), [7] * 16, [3, 1, 4]
    assert runner.forward([ChunkInput(4, 0, a[:6]), ChunkInput(1, 0, b[:9])]).shape == (0, 50)
    logits = runner.forward(
        [
            ChunkInput(5, 0, c, num_logits=16),
            ChunkInput(4, 6, a[6:], num_logits=2),
            ChunkInput(0, 0, d),
            ChunkInput(1, 9, b[9:], num_logits=1),
        ]
    )
    expected = np.concatenate([whole(model, c), whole(model, a)[-2:], whole(model, b)[-1:]])
    assert logits.dtype == np.float32 and logits.flags.writeable
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # tokens beyond `start` are forgotten
    logits = runner.forward([ChunkInput(4, 3, [40, 41], num_logits=2)])
    np.testing.assert_allclose(logits, whole(model, [*a[:3], 40, 41])[3:], atol=1e-5)


def test_a_copy_goes_its_own_way(model: GPT) -> None:
    runner = TorchRunner(model, VOCAB_SIZE, num_slots=3)
    runner.forward([ChunkInput(0, 0, [1, 2, 3, 4, 5])])
    runner.copy(0, 2, 3)
    logits = runner.forward([ChunkInput(2, 3, [9], 1), ChunkInput(0, 5, [6], 1)])
    np.testing.assert_allclose(logits[0], whole(model, [1, 2, 3, 9])[-1], atol=1e-5)
    np.testing.assert_allclose(logits[1], whole(model, [1, 2, 3, 4, 5, 6])[-1], atol=1e-5)


def test_a_vocabulary_larger_than_the_models_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 65 tokens; this model has 64"):
        TorchRunner(model, 65)
