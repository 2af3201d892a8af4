"""Load over gRPC: streams of greedy tokens, all at once or in turns, and when the tokens came.

It speaks to the generated stubs, since a server allows a connection so many streams only and our
client has one connection. Connections are open before any clock runs.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import grpc.aio

from client.channel import channel_options
from client.requests import generate_request
from protos.nanogpt.v1.inference_pb2 import TokenizeRequest
from protos.nanogpt.v1.inference_pb2_grpc import InferenceServiceStub

STREAMS_A_CONNECTION = 64
OPTIONS = (*channel_options(), ("grpc.use_local_subchannel_pool", 1))  # or channels share one

Prompts = Sequence[Sequence[int]]


@dataclass(slots=True)
class Stream:
    """The tokens of one prompt and when they came."""

    token_ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Seconds before each token after the first message; tokens of a message share its gap."""


class LoadGenerator:
    """Sends load to one model of one server. Close it."""

    def __init__(self, address: str, model: str, max_streams: int) -> None:
        """Connects; the model is in memory when this returns."""
        self._model = model
        self._runner = asyncio.Runner()
        self._channels: list[grpc.aio.Channel] = []
        self._runner.run(self._connect(address, -(-max_streams // STREAMS_A_CONNECTION)))

    def at_once(self, prompts: Prompts, new_tokens: int) -> tuple[float, list[Stream]]:
        """Seconds until all streams, begun together, are complete, and the streams."""

        async def send() -> list[Stream]:
            stubs = cycle(self._stubs())
            answers = (self._stream(next(stubs), prompt, new_tokens) for prompt in prompts)
            return list(await asyncio.gather(*answers))

        return self._timed(send())

    def in_turns(self, prompts: Prompts, new_tokens: int, width: int) -> tuple[float, list[Stream]]:
        """The same of `width` streams at a time: each is followed by the next when it is done."""
        streams: list[Stream] = []

        async def send() -> list[Stream]:
            waiting = iter(prompts)

            async def take_turns(stub: InferenceServiceStub) -> None:
                for prompt in waiting:  # shared by all senders
                    streams.append(await self._stream(stub, prompt, new_tokens))

            stubs = cycle(self._stubs())
            await asyncio.gather(*(take_turns(next(stubs)) for _ in range(width)))
            return streams

        return self._timed(send())

    def close(self) -> None:
        async def close() -> None:
            for channel in self._channels:
                await channel.close()

        self._runner.run(close())
        self._runner.close()

    async def _connect(self, address: str, count: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(count)]
        for stub in self._stubs():
            await stub.Tokenize(TokenizeRequest(model=self._model), wait_for_ready=True)
            await self._stream(stub, [0], 1)

    def _stubs(self) -> list[InferenceServiceStub]:
        return [InferenceServiceStub(channel) for channel in self._channels]

    def _timed(self, work: "asyncio.Future[list[Stream]]") -> tuple[float, list[Stream]]:
        start = time.perf_counter()
        streams = self._runner.run(work)
        return time.perf_counter() - start, streams

    async def _stream(
        self, stub: InferenceServiceStub, prompt: Sequence[int], new_tokens: int
    ) -> Stream:
        """Reads one answer to its end."""
        request = generate_request(
            list(prompt),
            1,
            {
                "model": self._model,
                "temperature": 0.0,
                "max_new_tokens": new_tokens,
                "ignore_end_of_text": True,
            },
        )
        stream, previous = Stream(), 0.0
        async for response in stub.Generate(request):
            if not response.delta.token_ids:
                continue
            now = time.perf_counter()
            count = len(response.delta.token_ids)
            if stream.token_ids:
                stream.gaps += [(now - previous) / count] * count
            stream.token_ids += response.delta.token_ids
            previous = now
        return stream
