"""Our server in a process of its own, asked over gRPC: one stream a prompt."""

from contextlib import ExitStack
from pathlib import Path

from benchmarks.server_process import served
from benchmarks.streams import LoadGenerator
from benchmarks.worker import serve


class OursOverGrpc:
    version = "ours over gRPC"

    def __init__(self, until_the_end: ExitStack) -> None:
        """Its server runs until the stack is closed."""
        self._until_the_end = until_the_end

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        server = self._until_the_end.enter_context(
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
    with ExitStack() as until_the_end:
        serve(OursOverGrpc(until_the_end))
