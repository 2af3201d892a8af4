"""A running generation: deltas as they arrive, and what the server said around them.

    generation = client.generate("To be", max_new_tokens=50)
    for delta in generation:
        print(delta.text, end="", flush=True)
    print(generation.started.sampling.seed, generation.usage.completion_tokens)

Leaving the loop early, or `cancel()`, frees the request's place on the server.
"""

from collections.abc import AsyncIterator, Iterator

from client.streams import AsyncCall, SyncCall, read, read_async
from protos.nanogpt.v1.inference_pb2 import (
    Delta,
    Finished,
    GenerateResponse,
    Started,
    Timings,
    Usage,
)


class _Record:
    """What is known of a generation so far."""

    def __init__(self) -> None:
        self.started: Started | None = None
        """Model, weight version and every parameter in effect. None while the request waits."""
        self.finished: dict[int, Finished] = {}
        """How each complete sample ended, by its index."""
        self.usage: Usage | None = None
        """What the request cost. None before the end."""
        self.timings: Timings | None = None
        """How long it took. None before the end."""

    def _note(self, response: GenerateResponse) -> None:
        if response.HasField("started"):
            self.started = response.started
        elif response.HasField("finished"):
            finished = response.finished
            self.finished[finished.sample_index] = finished
            if finished.HasField("usage"):
                self.usage, self.timings = finished.usage, finished.timings


class Generation(_Record):
    """Iterate it once, over its deltas or over `responses()`."""

    def __init__(self, call: SyncCall[GenerateResponse]) -> None:
        super().__init__()
        self._call = call

    def __iter__(self) -> Iterator[Delta]:
        for response in self.responses():
            if response.HasField("delta"):
                yield response.delta

    def responses(self) -> Iterator[GenerateResponse]:
        """Every response as it arrives, deltas among them. Raises NanoGPTError."""
        for response in read(self._call):
            self._note(response)
            yield response

    def cancel(self) -> None:
        """Stops sampling; the iteration raises Cancelled. May be called from any thread."""
        self._call.cancel()


class AsyncGeneration(_Record):
    """Iterate it once, over its deltas or over `responses()`, with `async for`."""

    def __init__(self, call: AsyncCall[GenerateResponse]) -> None:
        super().__init__()
        self._call = call

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for response in self.responses():
            if response.HasField("delta"):
                yield response.delta

    async def responses(self) -> AsyncIterator[GenerateResponse]:
        """Every response as it arrives, deltas among them. Raises NanoGPTError."""
        async for response in read_async(self._call):
            self._note(response)
            yield response

    def cancel(self) -> None:
        """Stops sampling; the iteration raises asyncio.CancelledError."""
        self._call.cancel()
