"""Networks side by side: what they learn from, what they answer, where they are kept and run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanogpt import flops
from nanogpt.checkpoint import CheckpointMeta, load_model, read_meta, save_checkpoint
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.ensemble import Ensemble, make_network
from nanogpt.inference.ensemble_runner import EnsembleRunner
from nanogpt.inference.native.library import Library
from nanogpt.inference.precision import PRECISIONS, Precision
from nanogpt.inference.runner import ChunkInput
from nanogpt.inference.torch_runner import TorchRunner
from nanogpt.model import crop_block_size
from nanogpt.tokenizer import CharTokenizer
from nanogpt.training.memory import estimate_memory
from server.models.runners import build_runner, memory_bytes_of

SHAPE = ModelConfig(16, 24, n_layer=2, n_head=2, n_embd=32, bias=False, n_member=3)
SHAPES = [SHAPE, replace(SHAPE, arch="modern")]
TOKENS = torch.arange(32).view(2, 16) % 24


@pytest.fixture(params=SHAPES, ids=["gpt2", "modern"])
def ensemble(request: pytest.FixtureRequest) -> Ensemble:
    """Random weights, large enough that the members disagree."""
    torch.manual_seed(5)
    model = make_network(request.param)
    assert isinstance(model, Ensemble)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.eval()


@torch.no_grad()
def mean_probabilities(model: Ensemble, tokens: torch.Tensor) -> torch.Tensor:
    found = [member.logits(member.hidden(tokens)).softmax(-1) for member in model.members]
    return torch.stack(found).mean(0)


def test_it_answers_with_the_mean_probability(ensemble: Ensemble) -> None:
    targets = TOKENS.roll(-1)
    expected = mean_probabilities(ensemble, TOKENS)  # (B, T, V)
    with torch.no_grad():
        logits, loss = ensemble(TOKENS, targets)
        last, nothing = ensemble(TOKENS)
    torch.testing.assert_close(logits.exp(), expected)
    torch.testing.assert_close(last.exp(), expected[:, -1:])
    assert nothing is None
    likelihoods = expected.gather(-1, targets[..., None])
    assert loss.item() == pytest.approx(-likelihoods.log().mean().item(), rel=1e-5)


def test_each_member_learns_by_itself(ensemble: Ensemble) -> None:
    ensemble.train()
    _, loss = ensemble(TOKENS, TOKENS)
    loss.backward()
    losses = []
    for member in ensemble.members:
        gradients = {name: weight.grad for name, weight in member.named_parameters()}
        member.zero_grad()
        _, alone = member(TOKENS, TOKENS)
        (alone / 3).backward()
        losses.append(alone.item())
        for name, weight in member.named_parameters():
            torch.testing.assert_close(weight.grad, gradients[name])
    assert loss.item() == pytest.approx(sum(losses) / 3)


def test_members_begin_differently() -> None:
    torch.manual_seed(5)
    starts = [m.transformer.h[0].attn.c_attn.weight for m in make_network(SHAPE).members]
    assert len({start.sum().item() for start in starts}) == 3


def test_its_size_is_that_of_all_members(ensemble: Ensemble) -> None:
    one = replace(ensemble.config, n_member=1)
    assert flops.parameter_count(ensemble.config) == ensemble.parameter_count()
    for count in (flops.multiplied_weights, flops.training_flops_per_token):
        assert count(ensemble.config) == 3 * count(one)
    several, alone = (flops.decode_flops_per_token(shape, 10) for shape in (ensemble.config, one))
    assert several == 3 * alone
    more = {"bytes_per_weight": 4, "bytes_per_kv_value": 2, "batch": 5, "context_tokens": 7}
    several, alone = (
        flops.decode_bytes_per_step(shape, **more) for shape in (ensemble.config, one)
    )
    assert several == 3 * alone
    config = TrainConfig(dropout=0.0, batch_size=8)
    several, alone = (estimate_memory(shape, config) for shape in (ensemble.config, one))
    assert (several.weights, several.optimizer) == (3 * alone.weights, 3 * alone.optimizer)
    assert 2 * alone.activations < several.activations <= 3 * alone.activations
    for library in (None, object()):
        sizes = [memory_bytes_of(c, 4, "float32", library) for c in (ensemble.config, one)]
        assert sizes[0] == 3 * sizes[1]


def save(folder: Path, model: Ensemble) -> Path:
    tokenizer = CharTokenizer([chr(65 + index) for index in range(24)])
    meta = CheckpointMeta(step=1, model_config=model.config, tokenizer=tokenizer.to_json())
    save_checkpoint(folder / "model", meta, model.state_dict(), None)
    return folder / "model"


def test_a_checkpoint_has_all_members(ensemble: Ensemble, tmp_path: Path) -> None:
    folder = save(tmp_path, ensemble)
    assert read_meta(folder).model_config == ensemble.config
    loaded = load_model(folder)
    assert isinstance(loaded, Ensemble)
    for ours, theirs in zip(loaded.members, ensemble.members, strict=True):
        is_tied = ours.lm_head.weight is ours.transformer.wte.weight
        assert is_tied == (not ensemble.config.is_modern)
        for name, weight in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], weight), name


def test_positions_of_all_members_are_cropped(ensemble: Ensemble) -> None:
    state = crop_block_size(ensemble.state_dict(), 8)
    found = [w.shape for name, w in state.items() if name.endswith("wpe.weight")]
    assert found == ([] if ensemble.config.is_modern else [(8, 32)] * 3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("is_native", [False, True], ids=["torch", "native"])
def test_runners_answer_as_the_network_does(
    ensemble: Ensemble, tmp_path: Path, kernels: Library, precision: Precision, is_native: bool
) -> None:
    if not is_native and precision not in ("float32", "bfloat16"):
        pytest.skip("PyTorch has no such weights")
    runner = build_runner(
        save(tmp_path, ensemble),
        torch.device("cpu"),
        vocab_size=24,
        num_slots=3,
        precision=precision,
        library=kernels if is_native else None,
    )
    assert isinstance(runner, EnsembleRunner)
    tokens = TOKENS[0].tolist()
    runner.forward([ChunkInput(0, 0, tokens[:5])])
    runner.copy(0, 2, 5)
    rows = [
        runner.forward([ChunkInput(1, 0, [7, 8]), ChunkInput(2, 5, tokens[5:9], 4)]),
        runner.forward([ChunkInput(2, 9, tokens[9:10], 1), ChunkInput(1, 2, [9], 1)])[:1],
    ]
    found = np.exp(np.concatenate(rows))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    expected = mean_probabilities(ensemble, TOKENS[:1])[0, 5:10].numpy()
    atol = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1, "int4": 0.4}[precision]
    np.testing.assert_allclose(found, expected, atol=atol)


def test_logits_are_those_of_the_sequence_alone_bit_for_bit(
    ensemble: Ensemble, tmp_path: Path
) -> None:
    runner = build_runner(
        save(tmp_path, ensemble),
        torch.device("cpu"),
        vocab_size=24,
        num_slots=8,
        precision="float32",
        batch_invariant=True,
    )
    tokens = TOKENS[0].tolist()
    alone = runner.forward([ChunkInput(0, 0, tokens, 16)])
    company = [ChunkInput(slot, 0, tokens[slot:]) for slot in range(1, 8)]
    beside = runner.forward([*company, ChunkInput(0, 0, tokens, 16)])
    assert np.array_equal(alone, beside)


def test_what_is_not_finite_stays_so(ensemble: Ensemble) -> None:
    """So that the engine sees it."""
    members = [TorchRunner(member, 24, num_slots=1) for member in ensemble.members]
    with torch.no_grad():
        ensemble.members[1].lm_head.weight.fill_(math.nan)
    assert np.isnan(EnsembleRunner(members).forward([ChunkInput(0, 0, [1], 1)])).all()
