"""What the suite `training` measures and who takes part: works, and the step of each contender.

All contenders of a work start from the same weights and see the same batches. The peers compute in
float32, as nanoGPT does on a CPU, with torch's fused AdamW, which nanoGPT does not use there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_pytorch import PlainGPT, PlainLoop
from nanogpt.config import TrainConfig
from nanogpt.interop.hugging_face import hugging_face_config, to_hugging_face
from nanogpt.model import GPT
from nanogpt.training.batches import Batches, Stream
from nanogpt.training.execution import Execution, choose_execution
from nanogpt.training.forward import make_forward
from nanogpt.training.optimizer import make_optimizer
from nanogpt.training.step import TrainingStep

PLAIN = "our network in a plain float32 loop"
TRANSFORMERS = "transformers' GPT2LMHeadModel in a plain float32 loop"
ENCODER = "torch.nn.TransformerEncoder in a plain float32 loop"

Step = Callable[[Tensor, Tensor], float]
"""Takes one step on token ids and targets (A, B, T) and returns the loss."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one cell measures, and how often."""

    cell: str
    config: TrainConfig
    vocab_size: int
    warmup_steps: int
    turns: int
    steps_per_turn: int
    factor: float = 3.0
    """How many times as fast as nanoGPT's float32 step ours has to be."""


def _config(n_layer: int, n_head: int, n_embd: int, batch: int, block: int) -> TrainConfig:
    return TrainConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        block_size=block,
        batch_size=batch,
        dropout=0.0,
    )


SMALL = Work("training step, 4/4/128, 12 x 64 tokens", _config(4, 4, 128, 12, 64), 65, 20, 6, 10)
CHARACTERS = Work(
    "training step, 6/6/384, 64 x 256 tokens", _config(6, 6, 384, 64, 256), 65, 1, 3, 1, 5.0
)
GPT2 = Work(
    "training step, GPT-2 124M, 1 x 1024 tokens", _config(12, 12, 768, 1, 1024), 50304, 1, 3, 1
)


def initial_weights(work: Work) -> dict[str, Tensor]:
    """What all contenders start from."""
    torch.manual_seed(work.config.seed)
    return GPT(work.config.model_config(work.vocab_size)).state_dict()


def peers_of(work: Work) -> list[str]:
    """The names of those beside ours."""
    return [PLAIN, TRANSFORMERS, *([ENCODER] if work is SMALL else [])]


def version_of(name: str) -> str:
    """Name and version of what that peer is made of."""
    package = "transformers" if name == TRANSFORMERS else "torch"
    return f"{package} {version(package)}"


def peer(work: Work, name: str) -> Step:
    """The step of the peer with that name."""
    make = {PLAIN: our_network, TRANSFORMERS: transformers, ENCODER: encoder}[name]
    return make(work, initial_weights(work))


def batches_of(work: Work) -> Batches:
    """What all contenders see."""
    config = work.config
    return Batches(
        made_up_text(work.vocab_size),
        shape=(1, config.batch_size, config.block_size),
        seed=config.seed,
        stream=Stream.TRAIN,
    )


def our_step(work: Work, weights: dict[str, Tensor], dtype: torch.dtype) -> tuple[Step, Execution]:
    """The trainer's step, computed as the trainer would."""
    model = _our_model(work, weights)
    execution = choose_execution(model, work.config.batch_size, dtype)
    step = TrainingStep(
        model,
        make_optimizer(model, work.config, dtype),
        dtype=dtype,
        grad_clip=work.config.grad_clip,
        forward=make_forward(model, execution, batches_of(work).at(0), dtype=dtype),
        pieces=execution.pieces,
    )
    return lambda inputs, targets: step(inputs, targets).loss, execution


def our_network(work: Work, weights: dict[str, Tensor]) -> Step:
    model = _our_model(work, weights)
    loop = PlainLoop(model, lambda inputs, targets: model(inputs, targets)[1], work.config)
    return lambda inputs, targets: loop.step(inputs[0], targets[0])


def transformers(work: Work, weights: dict[str, Tensor]) -> Step:
    """Its biases, which ours does not have, stay at zero: the same network."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = work.config.model_config(work.vocab_size)
    model = GPT2LMHeadModel(GPT2Config(**hugging_face_config(shape))).train()
    missing = model.load_state_dict(to_hugging_face(shape, weights), strict=False).missing_keys
    assert not [name for name in missing if name != "lm_head.weight"], missing
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.endswith(".bias"))

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    loop = PlainLoop(model, loss_of, work.config)
    return lambda inputs, targets: loop.step(inputs[0], targets[0])


def encoder(work: Work, weights: dict[str, Tensor]) -> Step:
    model = PlainGPT(work.config, work.vocab_size).train()
    model.load_gpt(weights)
    loop = PlainLoop(model, model, work.config)
    return lambda inputs, targets: loop.step(inputs[0], targets[0])


def _our_model(work: Work, weights: dict[str, Tensor]) -> GPT:
    model = GPT(work.config.model_config(work.vocab_size)).train()
    model.load_state_dict(weights)
    return model


def made_up_text(vocab_size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    """Tokens of unequal frequency, so that there is something to learn and losses move."""
    frequencies = 1 / np.arange(1, vocab_size + 1)
    draws = np.random.default_rng(1337).choice(
        vocab_size, size=100_000, p=frequencies / frequencies.sum()
    )
    return draws.astype(np.uint16)
