"""Load over gRPC, sent by our client: streams of greedy tokens, all at once, and when they came."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from client.async_client import AsyncClient


@dataclass(slots=True)
class Stream:
    """The tokens of one prompt and when they came."""

    token_ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Seconds before each token after the first message; tokens of a message share its gap."""


async def generate_all(
    address: str, model: str, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """The new tokens of every prompt, exactly that many."""
    async with AsyncClient(address) as client:
        streams = [one_stream(client, model, prompt, max_new_tokens) for prompt in prompts]
        return [stream.token_ids for stream in await asyncio.gather(*streams)]


async def one_stream(
    client: AsyncClient, model: str, prompt: Sequence[int], max_new_tokens: int
) -> Stream:
    """Reads one answer to its end."""
    stream, previous = Stream(), 0.0
    async for token_ids in _tokens(client, model, prompt, max_new_tokens):
        now = time.perf_counter()
        if stream.token_ids:
            stream.gaps += [(now - previous) / len(token_ids)] * len(token_ids)
        stream.token_ids += token_ids
        previous = now
    return stream


async def _tokens(
    client: AsyncClient, model: str, prompt: Sequence[int], max_new_tokens: int
) -> AsyncIterator[list[int]]:
    answer = client.generate(
        list(prompt),
        model=model,
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        ignore_end_of_text=True,
    )
    async for delta in answer:
        if delta.token_ids:
            yield list(delta.token_ids)
