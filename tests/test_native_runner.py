"""The kernels against PyTorch's float32 network, and against themselves in other company."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Delta
from nanogpt.inference.native.library import Library
from nanogpt.inference.native.runner import NativeRunner
from nanogpt.inference.precision import PRECISIONS, Precision
from nanogpt.inference.request import Request
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer

# widths that are no multiple of a panel, a vector or a group; heads of 8 to 64; padded vocabulary
CONFIGS = [
    ModelConfig(block_size=40, vocab_size=65, n_layer=2, n_head=3, n_embd=60),
    ModelConfig(block_size=24, vocab_size=64, n_layer=3, n_head=4, n_embd=32, bias=False),
    ModelConfig(block_size=70, vocab_size=130, n_layer=1, n_head=5, n_embd=40),
    ModelConfig(block_size=33, vocab_size=50, n_layer=2, n_head=2, n_embd=128, bias=False),
    ModelConfig(block_size=16, vocab_size=7, n_layer=1, n_head=1, n_embd=1),
    ModelConfig(40, 65, 2, 3, 60, bias=False, arch="modern"),
    ModelConfig(33, 50, 2, 2, 128, bias=False, arch="modern"),
    ModelConfig(16, 40, 3, 8, 80, bias=False, arch="modern"),
]
CONFIG = CONFIGS[0]

LARGEST_ERROR: dict[Precision, float] = {
    "float32": 1e-5,
    "bfloat16": 0.03,
    "int8": 0.15,
    "int4": 0.8,
}
"""Relative to the largest logit, of small networks with large random weights."""

LEAST_CORRELATION: dict[Precision, float] = {
    "float32": 0.999999,
    "bfloat16": 0.999,
    "int8": 0.998,
    "int4": 0.9,
}
"""Of those logits with PyTorch's."""


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """Random weights, large enough that the likeliest token stands out."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def native(
    kernels: Library, model: GPT, precision: Precision = "float32", **options: int
) -> NativeRunner:
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    options = {"num_slots": 4, "num_threads": 2, **options}
    vocab_size = options.pop("vocab_size", model.config.vocab_size)
    return NativeRunner(kernels, model.config, weights, vocab_size, precision=precision, **options)


@torch.inference_mode()
def whole(model: GPT, tokens: list[int]) -> np.ndarray:
    """Logits (T, V) of every token, of PyTorch and without a cache."""
    return model.logits(model.hidden(torch.tensor([tokens]))[0]).numpy()


def draw(config: ModelConfig, count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(config.vocab_size), k=count)


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda config: f"{config.arch}-width{config.n_embd}"
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_of_pytorch(
    kernels: Library, config: ModelConfig, precision: Precision
) -> None:
    model = build(config)
    tokens = draw(config, config.block_size, seed=1)
    runner = native(kernels, model, precision)
    logits = runner.forward([ChunkInput(2, 0, tokens, num_logits=len(tokens))])
    expected = whole(model, tokens)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    assert np.abs(logits - expected).max() < LARGEST_ERROR[precision] * np.abs(expected).max()
    if config.n_embd >= 32:  # in a single direction, a norm leaves 0 or noise
        correlation = np.corrcoef(logits.ravel(), expected.ravel())[0, 1]
        assert correlation > LEAST_CORRELATION[precision]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_those_of_pytorch_without_a_cache(kernels: Library, seed: int) -> None:
    """Through the engine, prompts of all lengths in one batch, windows that slide."""
    rng = random.Random(seed)
    n_head, arch = rng.choice([1, 2, 3]), ("gpt2", "modern")[seed % 2]
    config = ModelConfig(
        block_size=rng.randint(8, 40),
        vocab_size=65,
        n_layer=rng.randint(1, 3),
        n_head=n_head,
        n_embd=n_head * 2 * rng.randint(4, 32),
        bias=arch == "gpt2" and rng.random() < 0.5,
        arch=arch,
    )
    model = build(config, seed)
    tokenizer = CharTokenizer("".join(chr(33 + i) for i in range(65)))
    runner = native(kernels, model, num_slots=3)
    engine = Engine(runner, tokenizer, prefill_chunk_tokens=rng.randint(3, 20))
    prompts = [draw(config, rng.randint(1, 30), seed + i) for i in range(6)]
    for number, prompt in enumerate(prompts):
        stopping = StoppingParams(max_new_tokens=30)
        engine.add(Request(str(number), prompt, SamplingParams(temperature=0), stopping))
    sampled: dict[str, list[int]] = {}
    while engine.has_work():
        for event in engine.step().events:
            if isinstance(event, Delta):
                sampled.setdefault(event.request_id, []).extend(event.token_ids)
    for number, prompt in enumerate(prompts):
        window = prompt[-config.block_size :]
        expected = []
        for _ in range(30):
            expected.append(int(whole(model, window)[-1].argmax()))
            window = [*window, expected[-1]]
            if len(window) > config.block_size:
                window = window[-max(1, config.block_size // 2) :]
        assert sampled[str(number)] == expected, config


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_tokens_logits_are_the_same_bits_in_any_company(
    kernels: Library, precision: Precision, num_threads: int, arch: str
) -> None:
    """Alone and whole on one thread, or in random chunks among up to 31 others on several."""
    model = build(replace(CONFIG, bias=arch == "gpt2", arch=arch))
    alone = native(kernels, model, precision, num_threads=1)
    crowd = native(kernels, model, precision, num_slots=32, num_threads=num_threads)
    rng = random.Random(num_threads)
    texts = [draw(CONFIG, CONFIG.block_size, seed) for seed in range(32)]
    expected = [alone.forward([ChunkInput(0, 0, t, len(t))]) for t in texts]
    done = [0] * 32
    while min(done) < CONFIG.block_size:
        unfinished = [slot for slot in range(32) if done[slot] < CONFIG.block_size]
        chunks = []
        for slot in rng.sample(unfinished, rng.randint(1, len(unfinished))):
            count = min(rng.choice([1, 1, 1, 2, 5, 13]), CONFIG.block_size - done[slot])
            tokens = texts[slot][done[slot] : done[slot] + count]
            chunks.append(ChunkInput(slot, done[slot], tokens, rng.randint(0, count)))
        logits, row = crowd.forward(chunks), 0
        for chunk in chunks:
            done[chunk.slot] += len(chunk.token_ids)
            end = done[chunk.slot]
            np.testing.assert_array_equal(
                logits[row : row + chunk.num_logits],
                expected[chunk.slot][end - chunk.num_logits : end],
            )
            row += chunk.num_logits


def test_long_inputs_are_summed_in_blocks_without_a_change(kernels: Library) -> None:
    """More inputs than a block, more rows than a task takes at a time."""
    config = ModelConfig(block_size=300, vocab_size=65, n_layer=1, n_head=4, n_embd=288)
    model = build(config)
    for precision in PRECISIONS:
        runner = native(kernels, model, precision)
        tokens = draw(config, 300, seed=3)
        at_once = runner.forward([ChunkInput(0, 0, tokens, 300)])
        if precision == "float32":
            np.testing.assert_allclose(at_once, whole(model, tokens), atol=1e-3, rtol=1e-4)
        runner.forward([ChunkInput(1, 0, tokens[:290])])
        for i in range(290, 300):
            logits = runner.forward([ChunkInput(1, i, tokens[i : i + 1], 1)])
            np.testing.assert_array_equal(logits[0], at_once[i])


def test_a_copy_goes_its_own_way(kernels: Library) -> None:
    model = build(CONFIG)
    runner = native(kernels, model)
    runner.forward([ChunkInput(0, 0, [1, 2, 3, 4, 5])])
    runner.copy(0, 2, 3)
    logits = runner.forward([ChunkInput(2, 3, [9], 1), ChunkInput(0, 5, [6], 1)])
    np.testing.assert_allclose(logits[0], whole(model, [1, 2, 3, 9])[-1], atol=1e-4)
    np.testing.assert_allclose(logits[1], whole(model, [1, 2, 3, 4, 5, 6])[-1], atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_a_number_shows_and_does_not_stay(
    kernels: Library, precision: Precision
) -> None:
    """A damaged position gives no plausible logits, spares the other slots, and is forgotten."""
    model = build(CONFIG)
    clean = native(kernels, model, precision).forward([ChunkInput(0, 0, [1, 2, 3], 1)])
    with torch.no_grad():
        model.transformer.wpe.weight[3] = float("nan")
        model.transformer.wpe.weight[4] = float("inf")
    runner = native(kernels, model, precision)
    for slot, count in ((0, 4), (2, 5)):
        logits = runner.forward(
            [ChunkInput(slot, 0, [1, 2, 3, 4, 5][:count], 1), ChunkInput(1, 0, [1, 2, 3], 1)]
        )
        assert not np.isfinite(logits[0]).any()
        np.testing.assert_array_equal(logits[1:], clean)
        runner.clear(slot)
        np.testing.assert_array_equal(runner.forward([ChunkInput(slot, 0, [1, 2, 3], 1)]), clean)


def test_rows_are_those_asked_for(kernels: Library) -> None:
    model = build(CONFIG)
    runner = native(kernels, model, vocab_size=50)
    assert runner.vocab_size == 50 and runner.block_size == 40 and runner.num_slots == 4
    assert runner.forward([ChunkInput(1, 0, [1, 2])]).shape == (0, 50)
    logits = runner.forward([ChunkInput(0, 0, [5, 6, 7], 2), ChunkInput(1, 2, [3], 1)])
    expected = np.concatenate([whole(model, [5, 6, 7])[1:], whole(model, [1, 2, 3])[2:]])
    assert logits.flags.writeable
    np.testing.assert_allclose(logits, expected[:, :50], atol=1e-4)


def test_weights_of_fewer_bits_take_less(kernels: Library) -> None:
    config = ModelConfig(block_size=8, vocab_size=64, n_layer=1, n_head=2, n_embd=64)
    bytes_of = {p: native(kernels, build(config), p).weight_bytes for p in PRECISIONS}
    matrices = 12 * 64 * 64
    assert bytes_of["float32"] == 4 * (matrices + 64 * 64)
    assert bytes_of["bfloat16"] == bytes_of["float32"] / 2
    assert bytes_of["int8"] == bytes_of["float32"] / 4
    # 4 bits and a scale of 16 for each 32; the head has 8
    assert bytes_of["int4"] == matrices * 18 / 32 + 64 * 64


@pytest.mark.parametrize(
    "chunk",
    [
        ChunkInput(4, 0, [1]),
        ChunkInput(-1, 0, [1]),
        ChunkInput(0, 40, [1]),
        ChunkInput(0, 39, [1, 2]),
        ChunkInput(0, -1, [1]),
        ChunkInput(0, 0, [65]),
        ChunkInput(0, 0, [-1]),
        ChunkInput(0, 0, []),
        ChunkInput(0, 0, [1], num_logits=2),
    ],
    ids=str,
)
def test_what_does_not_exist_is_an_error(kernels: Library, chunk: ChunkInput) -> None:
    runner = native(kernels, build(CONFIG))
    with pytest.raises(ValueError, match="do not exist"):
        runner.forward([ChunkInput(1, 0, [1], 1), chunk])
    with pytest.raises(ValueError, match="do not exist"):
        runner.copy(0, 4, 1)
    with pytest.raises(ValueError, match="do not exist"):
        runner.clear(-1)


def test_a_vocabulary_larger_than_the_models_is_refused(kernels: Library) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 66 tokens; this model has 65"):
        native(kernels, build(CONFIG), vocab_size=66)
