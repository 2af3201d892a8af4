"""Our server in a process of its own, asked over gRPC: one stream a prompt."""

from contextlib import ExitStack
from pathlib import Path

from benchmarks.server_process import served
from benchmarks.streams import LoadGenerator
from benchmarks.worker import serve


class OursOverGrpc:
    version = "ours over gRPC"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        self._server = ExitStack()  # open as long as this process lives
        server = self._server.enter_context(
            served(
                {exports.name: exports / "checkpoint"},
                num_slots=concurrency,
                threads=threads,
                precision=variant,
            )
        )
        self._load = LoadGenerator(server.address, exports.name, concurrency)

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        _, streams = self._load.at_once(prompts, max_new_tokens)
        return [stream.token_ids for stream in streams]


if __name__ == "__main__":
    serve(OursOverGrpc())
