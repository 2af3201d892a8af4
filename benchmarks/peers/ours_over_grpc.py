"""Our server in a process of its own, asked over gRPC by our client: one stream a prompt."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.worker import serve
from client.async_client import AsyncClient

ADDRESS = re.compile(r"serves gRPC on (\S+)")


class OursOverGrpc:
    version = "ours over gRPC"

    def load(
        self, exports: Path, variant: str, *, concurrency: int, max_tokens: int, threads: int
    ) -> None:
        self._name = exports.name
        self._data = tempfile.TemporaryDirectory(prefix="bench-")
        model = Path(self._data.name) / "models" / self._name
        model.mkdir(parents=True)
        for file in (exports / "checkpoint").iterdir():
            os.symlink(file.resolve(), model / file.name)
        command = [
            sys.executable,
            "-m",
            "server",
            f"--data_dir={self._data.name}",
            "--grpc_address=127.0.0.1:0",
            "--http_address=127.0.0.1:0",
            f"--num_slots={concurrency}",
            f"--threads={threads}",
            f"--load_models={self._name}",
            *([] if variant == "float32" else [f"--precision={variant}"]),
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        for line in server.stdout:
            if found := ADDRESS.search(line):
                self._address = found[1]
                break
        else:
            raise RuntimeError(f"the server ended with exit code {server.wait()}")
        self._runner = asyncio.Runner()
        self._runner.run(self._wait_for_model())

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        return self._runner.run(self._generate(prompts, max_new_tokens))

    async def _wait_for_model(self) -> None:
        async with AsyncClient(self._address) as client:
            await client.load(self._name)

    async def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        async with AsyncClient(self._address) as client:

            async def one(prompt: list[int]) -> list[int]:
                stream = client.generate(
                    prompt,
                    model=self._name,
                    temperature=0.0,
                    max_new_tokens=max_new_tokens,
                    ignore_end_of_text=True,
                )
                return [token async for delta in stream for token in delta.token_ids]

            return list(await asyncio.gather(*map(one, prompts)))


if __name__ == "__main__":
    serve(OursOverGrpc())
