"""Fixtures of more than one test file: a data folder with a tiny model, a server, a channel.

What needs torch is imported where it is used: most test files do without, and start in no time.
"""

import os
import time
from pathlib import Path

import grpc
import hypothesis
import pytest

from nanogpt.config import ModelConfig
from nanogpt.tokenizer import CharTokenizer
from server.settings import Settings

# networks this small are faster on one thread; said before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples every time, however slow the machine
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.load_profile("repeatable")

TINY_CHARACTERS = "\n !,.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """A developer's own NANOGPT_* variables decide nothing here. Servers run on PyTorch unless a
    test says otherwise: to compile kernels for each takes seconds."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"NANOGPT_{name.upper()}", raising=False)
    monkeypatch.setenv("NANOGPT_KERNELS", "torch")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> CharTokenizer:
    """Letters, a few signs and the newline."""
    return CharTokenizer(TINY_CHARACTERS)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer) -> ModelConfig:
    """2 layers, width 32, 64 tokens."""
    return ModelConfig(
        block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_head=4, n_embd=32
    )


@pytest.fixture(scope="session")
def kernels_file(pytestconfig) -> Path:
    """The native kernels as they ship, compiled once and kept between runs of the tests."""
    from nanogpt.inference.native.compiler import KernelsUnavailable, compiled_kernels

    try:
        return compiled_kernels(pytestconfig.cache.mkdir("kernels"))
    except KernelsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kernels(kernels_file):
    """The native kernels, loaded."""
    from nanogpt.inference.native.library import Library

    return Library(kernels_file)


@pytest.fixture
def data_dir(tmp_path, tiny_config, tiny_tokenizer) -> Path:
    """A data folder with the model `tiny`, of random weights, always the same."""
    folder = tmp_path / "data"
    write_model(folder / "models" / "tiny", tiny_config, tiny_tokenizer)
    return folder


def write_model(folder: Path, config: ModelConfig, tokenizer: CharTokenizer, seed: int = 0) -> None:
    """Writes a model of random weights."""
    import torch

    from nanogpt.checkpoint import CheckpointMeta, save_checkpoint
    from nanogpt.model import GPT

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(config)
    meta = CheckpointMeta(
        step=10,
        model_config=config,
        tokenizer=tokenizer.to_json(),
        val_loss=4.0,
        best_val_loss=4.0,
        best_step=10,
        create_time=time.time(),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, meta, model.state_dict(), None)


@pytest.fixture
def settings(data_dir) -> Settings:
    """Free ports, a temporary data folder, a small engine on the CPU."""
    return Settings(
        data_dir=data_dir,
        grpc_address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        device="cpu",
        num_slots=4,
        max_waiting_requests=8,
        drain_seconds=10,
    )


@pytest.fixture
async def app(settings):
    """A started server, stopped at the end."""
    from server.app import App

    app = await App.start(settings)
    yield app
    await app.stop()


@pytest.fixture
async def channel(app):
    """A connection to `app`."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        yield channel
