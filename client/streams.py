"""Reads streams of responses, sync and async: errors translated, the call cancelled on leaving."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Protocol, TypeVar

from client.status import translated

Response_co = TypeVar("Response_co", covariant=True)


class SyncCall(Protocol[Response_co]):
    """What a stream needs of a call of grpc."""

    def __iter__(self) -> Iterator[Response_co]: ...
    def cancel(self) -> object: ...


class AsyncCall(Protocol[Response_co]):
    """What a stream needs of a call of grpc.aio."""

    def __aiter__(self) -> AsyncIterator[Response_co]: ...
    def cancel(self) -> object: ...


def read(call: SyncCall[Response_co]) -> Generator[Response_co, None, None]:
    """The call's responses. Raises NanoGPTError."""
    try:
        with translated():
            yield from call
    finally:
        call.cancel()


async def read_async(call: AsyncCall[Response_co]) -> AsyncGenerator[Response_co, None]:
    """The call's responses. Raises NanoGPTError."""
    try:
        with translated():
            async for response in call:
                yield response
    finally:
        call.cancel()
