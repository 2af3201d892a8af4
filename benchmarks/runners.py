"""From a checkpoint and a precision to the runner that the server would use."""

from pathlib import Path

import torch

from nanogpt.checkpoint import read_meta
from nanogpt.inference.native.compiler import compiled_kernels
from nanogpt.inference.native.library import Library
from nanogpt.inference.runner import Runner
from nanogpt.tokenizer import tokenizer_from_json
from server.models.runners import build_runner

KERNELS = Path("build/kernels")
"""Where native kernels are kept between benchmarks."""


def runner_for(folder: Path, precision: str, *, num_slots: int, threads: int) -> Runner:
    """A runner on the CPU, of native kernels. Raises KernelsUnavailable, or as `load_model`."""
    torch.set_num_threads(threads)
    return build_runner(
        folder,
        torch.device("cpu"),
        vocab_size=tokenizer_from_json(read_meta(folder).tokenizer).vocab_size,
        num_slots=num_slots,
        precision=precision,
        library=Library(compiled_kernels(KERNELS)),
    )
