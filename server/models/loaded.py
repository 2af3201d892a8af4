"""One set of weights in memory: how it gets there, what it takes, and who holds it.

It does not know why a model is loaded, or which others are.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from nanogpt.checkpoint import CheckpointDamaged, CheckpointMeta
from nanogpt.config import ModelConfig
from nanogpt.device import is_out_of_memory
from nanogpt.inference.engine import Engine, NonFiniteLogits
from nanogpt.inference.events import Failed
from nanogpt.inference.native.library import Library
from nanogpt.inference.precision import Precision
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.tokenizer import Tokenizer
from server.errors import NotFound, ResourceExhausted
from server.models.catalog import ModelRef, damaged, tokenizer_of
from server.models.runners import Arithmetic, build_runner
from server.serving.engine_thread import EngineThread


@dataclass(eq=False, slots=True)
class LoadedModel:
    """Weights, and the engine thread that runs them. Belongs to the event loop."""

    ref: ModelRef
    weight_version: int
    """Optimizer steps behind the weights."""
    tokenizer: Tokenizer
    model_config: ModelConfig
    device: torch.device
    precision: Precision
    """How the weights are held."""
    is_native: bool
    """Whether it runs on native kernels, or on PyTorch."""
    arithmetic: Arithmetic
    """What its weights are multiplied in."""
    num_slots: int
    engine: EngineThread
    memory_bytes: int
    files: ExitStack
    """Keeps what it was read from, until it is closed."""
    last_used_at: float
    num_holders: int = 0
    unheld: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.unheld.set()

    @property
    def name(self) -> str:
        """The model's name, without a step."""
        return self.ref.name

    @contextmanager
    def held(self) -> Iterator["LoadedModel"]:
        """Keeps the model in memory meanwhile."""
        self.num_holders += 1
        self.unheld.clear()
        try:
            yield self
        finally:
            self.num_holders -= 1
            self.last_used_at = time.monotonic()
            if not self.num_holders:
                self.unheld.set()


def build_engine(
    ref: ModelRef,
    meta: CheckpointMeta,
    device: torch.device,
    num_slots: int,
    precision: Precision,
    library: Library | None,
    batch_invariant: bool,
) -> tuple[Engine, Tokenizer]:
    """An engine that has proven to generate, on the kernels of `library` or on PyTorch. Takes
    seconds: run it off the event loop.

    Raises DataLoss, NotFound if the files are gone, ResourceExhausted, FailedPrecondition if the
    precision or batch invariance cannot be had here, or whatever a forward pass may raise.
    """
    tokenizer = tokenizer_of(ref, meta)
    try:
        runner = build_runner(
            ref.folder,
            device,
            vocab_size=tokenizer.vocab_size,
            num_slots=num_slots,
            precision=precision,
            library=library,
            batch_invariant=batch_invariant,
        )
        engine = Engine(runner, tokenizer)
        _warm_up(engine)
    except FileNotFoundError:  # deleted meanwhile, or pruned in favour of a newer checkpoint
        raise NotFound("model", ref.reference) from None
    except CheckpointDamaged as error:
        raise damaged(ref, error) from None
    except NonFiniteLogits:
        raise damaged(ref, CheckpointDamaged("its output is not finite")) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceExhausted(
            f"memory ran out while model {ref.reference} was loaded", limit="model_memory"
        ) from error
    return engine, tokenizer


def _warm_up(engine: Engine) -> None:
    """Generates two tokens: the first caller does not pay for first allocations, and weights that
    cannot generate are never served."""
    stopping = StoppingParams(max_new_tokens=2, ignore_end_of_text=True)
    engine.add(Request("warm-up", [0], SamplingParams(temperature=0.0), stopping))
    while engine.has_work():
        for event in engine.step().events:
            if isinstance(event, Failed):
                raise event.error
