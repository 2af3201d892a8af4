"""The network against Hugging Face's GPT-2, known sizes and known first losses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.interop.hugging_face import hugging_face_config, to_hugging_face
from nanogpt.model import GPT, crop_block_size, rotate, rotation, sinusoidal_positions

TINY = ModelConfig(block_size=16, vocab_size=65, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
MODERN = replace(TINY, bias=False, arch="modern")

# name: (config, all parameters, without position embeddings, decayed, not decayed)
SIZES = {
    "char": (ModelConfig(256, 65, 6, 6, 384, bias=False), 10_745_088, 10_646_784, 26, 13),
    "cpu": (ModelConfig(64, 65, 4, 4, 128, bias=False), 804_096, 795_904, 18, 9),
    "parity": (ModelConfig(32, 65, 2, 2, 64, bias=False), 104_832, 102_784, 10, 5),
    "gpt2": (ModelConfig(1024, 50257, 12, 12, 768, bias=True), 124_439_808, 123_653_376, 50, 98),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1337)


def hugging_face_twin(model: GPT, *, bias: bool) -> torch.nn.Module:
    """A GPT2LMHeadModel with the weights of `model`; absent biases are zeros."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D stores (in, out)
    state = {
        name: weight.T if name.endswith(transposed) else weight
        for name, weight in model.state_dict().items()
    }
    absent = set(twin.state_dict()) - set(state)
    assert bool(absent) != bias and all(name.endswith(".bias") for name in absent)
    zeros = {name: torch.zeros_like(twin.state_dict()[name]) for name in absent}
    twin.load_state_dict({**state, **zeros})
    return twin.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_hugging_face(bias: bool) -> None:
    model = trained_look(GPT(ModelConfig(16, 65, 2, 4, 32, 0.0, bias)))
    tokens = torch.randint(65, (3, 16))
    with torch.no_grad():
        ours, _ = model(tokens, targets=tokens)
        theirs = hugging_face_twin(model, bias=bias)(tokens).logits
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def trained_look(model: GPT) -> GPT:
    """The model in evaluation mode, biases and norms random too: no part is without effect."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.eval()


def nanochat_twin(model: GPT) -> torch.nn.Module:
    """A NanoChatForCausalLM with the weights of `model`."""
    from transformers import NanoChatConfig, NanoChatForCausalLM

    twin = NanoChatForCausalLM(NanoChatConfig(**hugging_face_config(model.config)))
    twin.load_state_dict(to_hugging_face(model.config, model.state_dict()))
    return twin.eval()


def test_modern_logits_equal_those_of_transformers() -> None:
    model = trained_look(GPT(MODERN))
    twin = nanochat_twin(model)
    tokens = torch.randint(65, (3, 16))
    with torch.no_grad():
        ours, loss = model(tokens, targets=tokens)
        theirs = twin(tokens, labels=tokens).logits
    assert theirs.abs().max() > 1 and loss is not None
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_modern_gradients_equal_those_of_transformers() -> None:
    model = trained_look(GPT(MODERN))
    twin = nanochat_twin(model)
    tokens, targets = torch.randint(65, (3, 16)), torch.randint(65, (3, 16))
    _, loss = model(tokens, targets)
    loss.backward()
    logits = twin(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    expected = {name: weight.grad for name, weight in twin.named_parameters()}
    for name, gradient in to_hugging_face(MODERN, gradients).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_rotated_vectors_are_alike_by_their_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8).double().expand(2, 1, 1, 40, 8)
    turned = rotation(torch.arange(40), 8)
    alike = (rotate(q, turned) @ rotate(k, turned).transpose(-2, -1))[0, 0]  # (40, 40)
    for distance in range(-39, 40):
        diagonal = alike.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert alike.diagonal(1).mean() != pytest.approx(alike.diagonal(2).mean().item(), abs=1e-3)


def test_positions_of_each_sequence_rotate_its_own_tokens() -> None:
    model = trained_look(GPT(MODERN))
    tokens = torch.randint(65, (2, 16))
    shuffled = torch.stack((torch.arange(16), torch.arange(16).flip(0)))
    both = model.hidden(tokens, shuffled)
    for row in range(2):
        alone = model.hidden(tokens[row : row + 1], shuffled[row])
        torch.testing.assert_close(both[row : row + 1], alone)


def test_modern_first_loss_is_that_of_a_uniform_guess() -> None:
    tokens = torch.randint(65, (4, 17))
    _, loss = GPT(MODERN)(tokens[:, :-1], tokens[:, 1:])
    assert loss is not None
    assert loss.item() == pytest.approx(math.log(65), abs=1e-5)


def test_modern_logits_stay_below_the_soft_cap() -> None:
    model = GPT(MODERN)
    hidden = torch.randn(3, 32) * 1000
    torch.nn.init.normal_(model.lm_head.weight)
    assert model.logits(hidden).abs().max() <= 15
    assert model.lm_head(hidden).abs().max() > 100


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    config, total, without_positions, decayed, not_decayed = SIZES[name]
    with torch.device("meta"):
        model = GPT(config)
    assert model.parameter_count() == total
    assert model.parameter_count(position_embeddings=False) == without_positions
    assert sum(weight.dim() >= 2 for weight in model.parameters()) == decayed
    assert sum(weight.dim() < 2 for weight in model.parameters()) == not_decayed


@pytest.mark.parametrize("vocab_size", [65, 5000])
def test_first_loss_is_that_of_a_uniform_guess(vocab_size: int) -> None:
    model = GPT(ModelConfig(32, vocab_size, 2, 2, 64, 0.0))
    tokens = torch.randint(vocab_size, (16, 33))
    _, loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(vocab_size), abs=0.05)


def test_initial_weights() -> None:
    config = ModelConfig(128, 512, 8, 4, 128)
    for name, weight in GPT(config).named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif "ln_" in name:
            assert (weight == 1).all()
        else:
            std = 0.02 / math.sqrt(2 * config.n_layer) if "c_proj" in name else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(weight.mean().item()) < 0.05 * std, name


@pytest.mark.parametrize("n_embd", [32, 33])
def test_sinusoidal_positions_are_alike_by_their_distance_alone(n_embd: int) -> None:
    model = GPT(ModelConfig(block_size=40, vocab_size=500, n_layer=1, n_head=1, n_embd=n_embd))
    sinusoidal_positions(model)
    half = n_embd // 2  # of an odd width the last sine has no cosine
    positions = model.transformer.wpe.weight.detach()
    positions = torch.cat((positions[:, :half], positions[:, -half:]), dim=1)
    alike = positions @ positions.T
    for distance in range(40):
        diagonal = alike.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert alike.diagonal(1).mean() > alike.diagonal(20).mean()
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_output_is_tied_to_the_token_embedding() -> None:
    model = GPT(TINY)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_loss_leaves_out_targets_of_minus_one() -> None:
    model = GPT(TINY)
    tokens, targets = torch.randint(65, (2, 16)), torch.randint(65, (2, 16))
    targets[0, 5:] = -1
    logits, loss = model(tokens, targets)
    kept = targets != -1
    expected = -logits.log_softmax(-1)[kept].gather(-1, targets[kept][:, None]).mean()
    torch.testing.assert_close(loss, expected)


def test_without_targets_only_the_last_position_has_logits() -> None:
    model = GPT(TINY)
    tokens = torch.randint(65, (2, 16))
    every, _ = model(tokens, tokens)
    last, loss = model(tokens)
    assert last.shape == (2, 1, 65) and loss is None
    torch.testing.assert_close(last, every[:, -1:])


@pytest.mark.parametrize("config", [TINY, MODERN])
def test_tokens_do_not_see_the_future(config: ModelConfig) -> None:
    model = trained_look(GPT(config))
    tokens = torch.randint(65, (1, 16))
    changed = tokens.clone()
    changed[0, 10:] = (tokens[0, 10:] + 1) % 65
    before, after = model.hidden(tokens), model.hidden(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("config", [TINY, MODERN])
def test_attention_can_be_passed_in(config: ModelConfig) -> None:
    """The same scores, masked and summed by hand."""
    model = trained_look(GPT(config))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~mask, -math.inf).softmax(-1) @ v

    tokens = torch.randint(65, (2, 16))
    positions = torch.arange(16).expand(2, 16)
    torch.testing.assert_close(model.hidden(tokens, positions, attend), model.hidden(tokens))


def test_dropout_is_off_in_evaluation() -> None:
    model = GPT(ModelConfig(16, 65, 2, 4, 32, dropout=0.5))
    tokens = torch.randint(65, (1, 16))
    assert not torch.equal(model.hidden(tokens), model.hidden(tokens))
    model.eval()
    assert torch.equal(model.hidden(tokens), model.hidden(tokens))


def test_a_sequence_beyond_block_size_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens; this model takes at most 16"):
        GPT(TINY)(torch.zeros((1, 17), dtype=torch.long))


def test_crop_block_size() -> None:
    model = GPT(TINY).eval()
    small = GPT(ModelConfig(8, 65, 2, 4, 32, 0.0)).eval()
    small.load_state_dict(crop_block_size(model.state_dict(), 8))
    tokens = torch.randint(65, (1, 8))
    torch.testing.assert_close(small.hidden(tokens), model.hidden(tokens))
    with pytest.raises(ValueError, match="block_size 17 is more than the 16 positions"):
        crop_block_size(model.state_dict(), 17)


def test_modern_weights_need_no_cropping() -> None:
    state = GPT(MODERN).state_dict()
    GPT(replace(MODERN, block_size=8)).load_state_dict(crop_block_size(state, 8))
