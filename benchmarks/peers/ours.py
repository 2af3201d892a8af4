"""Our engine in process: what the server runs, without the server."""

from pathlib import Path

import torch

from benchmarks.runners import runner_for
from benchmarks.worker import serve
from nanogpt.checkpoint import read_meta
from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Delta, Failed
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.tokenizer import tokenizer_from_json


class Ours:
    version = "ours"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        folder = exports / "checkpoint"
        runner = runner_for(folder, variant, num_slots=concurrency, threads=threads)
        self._engine = Engine(runner, tokenizer_from_json(read_meta(folder).tokenizer))

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        sampling = SamplingParams(temperature=0.0)
        stopping = StoppingParams(max_new_tokens=max_new_tokens, ignore_end_of_text=True)
        token_ids: list[list[int]] = [[] for _ in prompts]
        for index, prompt in enumerate(prompts):
            self._engine.add(Request(str(index), prompt, sampling, stopping))
        while self._engine.has_work():
            for event in self._engine.step().events:
                if isinstance(event, Delta):
                    token_ids[int(event.request_id)] += event.token_ids
                elif isinstance(event, Failed):
                    raise event.error
        return token_ids


if __name__ == "__main__":
    serve(Ours())
