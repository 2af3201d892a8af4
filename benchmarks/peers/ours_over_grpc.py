"""Our server in a process of its own, asked over gRPC by our client: one stream a prompt."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from benchmarks.server_process import served
from benchmarks.streams import generate_all
from benchmarks.worker import serve
from client.client import Client


class OursOverGrpc:
    version = "ours over gRPC"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        self._model = exports.name
        self._server = ExitStack()
        self._address = self._server.enter_context(
            served(
                {self._model: exports / "checkpoint"},
                num_slots=concurrency,
                threads=threads,
                precision=variant,
            )
        ).address
        with Client(self._address) as client:
            client.load(self._model)

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        return asyncio.run(generate_all(self._address, self._model, prompts, max_new_tokens))


if __name__ == "__main__":
    serve(OursOverGrpc())
