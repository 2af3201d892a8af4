"""From a checkpoint and a precision to the runner that the server would use."""

from pathlib import Path

import torch

from nanogpt.checkpoint import read_meta
from nanogpt.inference.runner import Runner
from nanogpt.tokenizer import tokenizer_from_json
from server.models.runners import build_runner


def runner_for(folder: Path, precision: str, *, num_slots: int, threads: int) -> Runner:
    """A runner on the CPU. Raises as the server's if there is none of that precision."""
    torch.set_num_threads(threads)
    return build_runner(
        folder,
        torch.device("cpu"),
        vocab_size=tokenizer_from_json(read_meta(folder).tokenizer).vocab_size,
        num_slots=num_slots,
        precision=precision,
    )
