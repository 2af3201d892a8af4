"""How much memory a run takes, by formula: nothing is allocated.

    weights, gradients, optimizer      4 bytes a number: 1 + 1 + 2 (AdamW) or 1 (Muon) a weight
    copy of a checkpoint               weights and optimizer once more, on the host
    activations of a micro-batch       17·C a token and layer, modern 23·C; 4·V for the head
    the process                        PyTorch itself

It is for float32 and a whole micro-batch at once; pieces of one and bfloat16 take less. Of several
processes each has its share of the batch, and with `fsdp` of weights, gradients and optimizer; with
`ddp` all of them, and the gradients once more, in the buckets that are exchanged. The first one
gathers the copy of a checkpoint whole.
"""

from dataclasses import dataclass

import torch

from nanogpt import flops
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.training.compile import is_compiled
from nanogpt.training.cross_entropy import LARGE_VOCABULARY, PIECE_BYTES

CPU = torch.device("cpu")
FLOAT_BYTES = 4
PROCESS_BYTES = 300 << 20
"""Resident memory of Python with torch and a mapped dataset: measured on Linux, torch 2.13."""

CHUNKED_HEAD_BYTES = 3 * PIECE_BYTES
"""Most that logits of a large vocabulary take, a piece at a time."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of each part, in the process that takes most: the first one."""

    weights: int
    gradients: int
    optimizer: int
    checkpoint_copy: int
    activations: int
    process: int = PROCESS_BYTES
    processes: int = 1

    @property
    def total(self) -> int:
        """Of the first process."""
        return self.step + self.checkpoint_copy

    @property
    def all_processes(self) -> int:
        """If they share one memory."""
        return self.processes * self.step + self.checkpoint_copy

    @property
    def step(self) -> int:
        """Of one process, without the copy of a checkpoint."""
        return self.on_gpu + self.process

    @property
    def on_gpu(self) -> int:
        """Of one process on its GPU: all but what the host holds."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: ModelConfig, config: TrainConfig, device: torch.device = CPU
) -> MemoryEstimate:
    """What a run of this network takes in each of its processes on such a device."""
    C, T, H, V = model.n_embd, model.block_size, model.n_head, model.vocab_size
    L, M = model.num_blocks, model.n_member
    num_weights = flops.parameter_count(model)
    matrices = 12 * L * C * C
    optimizer = 2 * num_weights - (matrices if config.optimizer == "muon" else 0)
    # kept for the backward pass, a token and layer, in widths C: inputs of two norms (2) and their
    # outputs (2), q, k, v (3), attention (2), MLP before and after GELU (8); modern also q and k
    # after rotation, and the MLP between ReLU and square
    block = 23 * C if model.is_modern else 17 * C
    if model.dropout > 0:
        # two masks, and attention's weights before and after dropout, with their mask
        block += 2 * C + 3 * H * T
    backward = 12 * C  # gradients of the widest layer, while it is computed
    tokens = config.batch_size // config.sequence_shares * T
    # logits, their log-softmax, and the gradients of both; or some of them at a time and the head's
    # gradient twice, see forward.py
    is_plain = M == config.processes == 1 and not is_compiled(config.compile, device)
    is_chunked = V >= LARGE_VOCABULARY and is_plain
    plain_head, chunked_head = 4 * M * V * tokens, CHUNKED_HEAD_BYTES // FLOAT_BYTES + V * C
    head = FLOAT_BYTES * (chunked_head if is_chunked else plain_head)
    holders = config.processes if config.sharding == "fsdp" else 1
    buckets = 2 if config.processes > 1 and config.sharding == "ddp" else 1
    # one block at a time is whole, the embeddings and the head all the time
    gathered = 0 if holders == 1 else num_weights - matrices + matrices // L

    def held(numbers: int) -> int:
        return FLOAT_BYTES * -(-numbers // holders)

    activations = tokens * (L * block + backward + 4 * M * C) * FLOAT_BYTES + head
    return MemoryEstimate(
        weights=held(num_weights) + FLOAT_BYTES * gathered,
        gradients=buckets * held(num_weights) + FLOAT_BYTES * gathered,
        optimizer=held(optimizer),
        checkpoint_copy=FLOAT_BYTES * (num_weights + optimizer),
        activations=activations,
        processes=config.processes,
    )
