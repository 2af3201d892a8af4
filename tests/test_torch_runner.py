"""What the engine relies on: which rows come back, in which order, whatever shares the pass."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.torch_runner import TorchRunner, is_batch_invariant
from nanogpt.model import GPT

VOCAB_SIZE = 50  # of 64: the rest is padding
CONFIG = ModelConfig(block_size=16, vocab_size=64, n_layer=2, n_head=4, n_embd=32)


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    return random_model(replace(CONFIG, bias=request.param == "gpt2", arch=request.param))


def random_model(config: ModelConfig) -> GPT:
    """Without a matrix of zeros."""
    model = GPT(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


@torch.inference_mode()
def whole(model: GPT, tokens: list[int]) -> np.ndarray:
    """Logits (T, V) of every token, without a cache."""
    return model.logits(model.hidden(torch.tensor([tokens]))[0])[:, :VOCAB_SIZE].numpy()


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


def random_mix(
    dice: random.Random, texts: list[list[int]], cached: list[int]
) -> list[tuple[int, int]]:
    """Which sequences compute how many tokens in the next step."""
    going = [i for i, text in enumerate(texts) if cached[i] < len(text)]
    mix = dice.sample(going, dice.randint(1, len(going)))
    sizes = [1, 1, 1, 2, 3, 5, 17, 64, 100]
    return [(i, min(dice.choice(sizes), len(texts[i]) - cached[i])) for i in mix]


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_the_sequence_alone_bit_for_bit(dtype: torch.dtype, arch: str) -> None:
    """In random mixes of decodes and chunks in any slots, each token's logits equal those of its
    sequence alone, computed in other chunks."""
    torch.manual_seed(3)
    config = ModelConfig(150, 64, 2, 3, 96, bias=arch == "gpt2", arch=arch)
    model = random_model(config).to(dtype)
    dice = random.Random(3)
    texts = [dice.choices(range(VOCAB_SIZE), k=dice.randint(1, 150)) for _ in range(8)]

    def steps(runner: TorchRunner, chosen: list[int]) -> dict[tuple[int, int], np.ndarray]:
        """Logits of every token, by sequence and position, over random steps."""
        slots = dict(zip(chosen, dice.sample(range(runner.num_slots), len(chosen)), strict=True))
        cached = [0 if i in slots else len(text) for i, text in enumerate(texts)]
        found = {}
        while any(cached[i] < len(texts[i]) for i in chosen):
            mix = random_mix(dice, texts, cached)
            chunks = [
                ChunkInput(slots[i], cached[i], texts[i][cached[i] : cached[i] + count], count)
                for i, count in mix
            ]
            rows = iter(runner.forward(chunks))
            for i, count in mix:
                for position in range(cached[i], cached[i] + count):
                    found[i, position] = next(rows)
                cached[i] += count
        return found

    runner = TorchRunner(model, VOCAB_SIZE, num_slots=16, batch_invariant=True)
    expected = {}
    for i in range(len(texts)):
        expected |= steps(runner, [i])
    for _ in range(2):
        found = steps(runner, list(range(len(texts))))
        assert found.keys() == expected.keys()
        for key, row in found.items():
            assert np.array_equal(row, expected[key]), key
    assert is_batch_invariant(runner)
    with torch.inference_mode():
        plain = model.logits(model.hidden(torch.tensor([texts[0]]))[0])[:, :VOCAB_SIZE]
    close = 1e-5 if dtype == torch.float32 else 0.05
    for position, row in enumerate(plain.float()):
        np.testing.assert_allclose(expected[0, position], row, atol=close)


def test_the_check_finds_results_that_depend_on_the_batch(model: GPT, monkeypatch) -> None:
    assert is_batch_invariant(TorchRunner(model, VOCAB_SIZE, batch_invariant=True))
    runner = TorchRunner(model, VOCAB_SIZE, batch_invariant=True)
    hidden = runner._model.hidden

    def bent(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        return hidden(tokens, *rest) * (1 + tokens.shape[1] * 1e-6)

    monkeypatch.setattr(runner._model, "hidden", bent)
    assert not is_batch_invariant(runner)


def test_a_vocabulary_larger_than_the_models_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 65 tokens; this model has 64"):
        TorchRunner(model, 65)
