"""The networks that inference is measured with, on disk in every format that a contender reads.

    build/bench/data/models/gpt2        a checkpoint of ours; the folder data serves as data_dir
    build/bench/exports/gpt2/hf         our export for Hugging Face
                             gguf       our export for llama.cpp
                             checkpoint a link to ours
                             converted  what peers make of these

Speed does not depend on the values of weights, so those are drawn at random. The guards compare
perplexities, which mean something for a trained network only: small ones of the same vocabularies
are trained by our trainer, for a minute each, on the text that ships with Python.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.contender import WORK
from nanogpt.checkpoint import (
    CheckpointMeta,
    load_model_state,
    publish_model,
    read_meta,
    save_checkpoint,
)
from nanogpt.checkpoint_folder import newest_valid
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.datasets.prepare import prepare_text
from nanogpt.datasets.shipped import SHIPPED
from nanogpt.interop.gguf import export_gguf
from nanogpt.interop.gpt2_vocabulary import END_OF_TEXT
from nanogpt.interop.hugging_face import export_hugging_face
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer, GPT2Tokenizer
from nanogpt.training.run_directory import RunDirectory, RunSpec

DATA = WORK / "data"
CHARACTERS = "\n" + "".join(map(chr, range(32, 96)))  # 65, as many as tiny Shakespeare has


@dataclass(frozen=True, slots=True)
class Network:
    """A shape to measure."""

    name: str
    title: str
    config: ModelConfig
    tokenizer: str
    """`gpt2` or `char`."""
    prompt_tokens: int
    """In each prompt of the throughput cells."""

    @property
    def folder(self) -> Path:
        """Where its checkpoint is."""
        return DATA / "models" / self.name

    @property
    def exports(self) -> Path:
        """Where its exports are."""
        return WORK / "exports" / self.name

    @property
    def guard(self) -> str:
        """Name of the small trained network that stands for it where values of weights matter."""
        return f"{self.name}-trained"


GPT2 = Network(
    "gpt2", "GPT-2 124M", ModelConfig(vocab_size=50257), tokenizer="gpt2", prompt_tokens=32
)
CHAR = Network(
    "char",
    "char 10.65M",
    ModelConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, bias=False),
    tokenizer="char",
    prompt_tokens=16,
)

TINY = Network(
    "tiny",
    "char of 2 layers",
    ModelConfig(block_size=64, vocab_size=65, n_layer=2, n_head=2, n_embd=32, bias=False),
    tokenizer="char",
    prompt_tokens=4,
)

CPU_SHAPE: dict[str, Any] = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "block_size": 64,
    "batch_size": 12,
    "dropout": 0.0,
}
"""What nanoGPT trains on a CPU: https://github.com/karpathy/nanoGPT#i-only-have-a-macbook"""

GUARD_TRAINING: dict[str, dict[str, Any]] = {
    "char": {"batch_size": 12, "max_iters": 800},
    "gpt2": {"batch_size": 8, "max_iters": 250},  # its output layer is 400 times as wide
}
GUARD_SHAPE: dict[str, Any] = {
    **CPU_SHAPE,
    "learning_rate": 2e-3,
    "warmup_iters": 50,
    "eval_iters": 20,
    "log_interval": 50,
    "compile": "off",
}


def prepare_network(network: Network) -> None:
    """Writes the checkpoint and its exports, unless they are there. Takes seconds."""
    if not network.folder.exists():
        torch.manual_seed(1337)
        tokenizer = GPT2Tokenizer() if network.tokenizer == "gpt2" else CharTokenizer(CHARACTERS)
        meta = CheckpointMeta(
            step=0, model_config=network.config, tokenizer=tokenizer.to_json(), job_id=""
        )
        network.folder.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(network.folder, meta, GPT(network.config).state_dict(), None)
    if not (network.exports / "checkpoint").exists():
        _export(network)


def prepare_guard(network: Network) -> Path:
    """Folder of the trained network's checkpoint, trained now if it is not there."""
    folder = DATA / "models" / network.guard
    if not folder.exists():
        print(f"  training {network.guard}, for the guards", flush=True)
        _train(network, folder)
    return folder


def held_out_tokens(network: Network) -> NDArray[np.uint16]:
    """The validation part of the text that the trained network was trained on."""
    return np.fromfile(dataset_of(network) / "val.bin", np.uint16)


def _export(network: Network) -> None:
    meta, state = read_meta(network.folder), load_model_state(network.folder)
    hugging_face = network.exports / "hf"
    hugging_face.mkdir(parents=True, exist_ok=True)
    export_hugging_face(hugging_face, network.name, meta, state)
    if network.tokenizer == "char":
        _write_stand_in_tokenizer(hugging_face, network.config.vocab_size)
    writing = network.exports / "writing"
    writing.mkdir(exist_ok=True)
    export_gguf(writing, network.name, meta, state)
    writing.rename(network.exports / "gguf")
    (network.exports / "checkpoint").symlink_to(network.folder.absolute())


def _write_stand_in_tokenizer(folder: Path, vocab_size: int) -> None:
    """Files of a GPT-2 tokenizer of as many tokens: some peers load none of our char models
    without, though they are given token ids and never text."""
    tokens = [chr(33 + index) for index in range(vocab_size - 1)] + [END_OF_TEXT]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def dataset_of(network: Network) -> Path:
    """Folder of the text that ships with Python, in the network's tokens; made now if need be."""
    folder = DATA / "datasets" / f"python-{network.tokenizer}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shipped = SHIPPED["python_reference"]
        text = folder.with_suffix(".txt")
        shipped.write_text(text)
        prepare_text(text, folder, tokenizer=network.tokenizer, val_ratio=shipped.val_ratio)
    return folder


def _train(network: Network, folder: Path) -> None:
    """Runs our trainer to its end and makes a model of its newest checkpoint."""
    dataset = dataset_of(network)
    training = GUARD_TRAINING[network.name]
    steps = training["max_iters"]
    config = TrainConfig.from_mapping(
        {**GUARD_SHAPE, **training, "lr_decay_iters": steps, "eval_interval": steps}
    )
    run = RunDirectory(WORK / "runs" / network.guard)
    if not (run.path / "spec.json").exists():
        run.write_spec(
            RunSpec(
                job_id=network.guard,
                model=network.guard,
                dataset_dir=os.path.relpath(dataset, run.path),
                config=config,
            )
        )
    with run.log_path.open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "nanogpt.training", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
    checkpoint = newest_valid(run.checkpoints_path)
    assert checkpoint is not None  # a run that ends well leaves one
    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_model(checkpoint, folder)
