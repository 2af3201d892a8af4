"""The buffer between an engine thread and one reader."""

import asyncio

import pytest
from serving import request

from nanogpt.inference.events import Delta, Finished, Started
from server.serving.request_stream import MAX_MERGED_TOKENS, RequestStream


def stream(num_samples: int = 1) -> RequestStream:
    def nothing(*_: object) -> None:
        pass

    wanted = request("r", num_samples=num_samples)
    return RequestStream(wanted, 0.0, on_cancel=nothing, ask_place=nothing)


def delta(index: int, *tokens: int, text: str = "") -> Delta:
    return Delta("r", index, list(tokens), text)


async def test_order_is_kept_within_a_sample_and_unread_tokens_merge():
    buffer = stream(2)
    buffer.push(Started("r"))
    buffer.push_tokens(delta(0, 1, text="a"))
    buffer.push_tokens(delta(1, 7, text="x"))
    buffer.push_tokens(delta(0, 2, text="b"))
    buffer.push(Finished("r", 0, "length"))
    assert await buffer.next() == [
        Started("r"),
        delta(0, 1, 2, text="ab"),
        delta(1, 7, text="x"),
        Finished("r", 0, "length"),
    ]
    buffer.push_tokens(delta(1, 8))
    buffer.release()
    assert await buffer.next() == [delta(1, 8)]  # what was read is not repeated


async def test_memory_is_bounded_by_tokens_not_steps():
    buffer = stream()
    for token in range(3 * MAX_MERGED_TOKENS):
        buffer.push_tokens(delta(0, token, text="t"))
    buffer.release()
    events = await buffer.next()
    assert [len(event.token_ids) for event in events] == [MAX_MERGED_TOKENS] * 3
    assert [t for event in events for t in event.token_ids] == list(range(3 * MAX_MERGED_TOKENS))


async def test_the_first_tokens_come_at_once_later_ones_by_release_or_with_the_next_event():
    buffer = stream()
    buffer.push_tokens(delta(0, 1))
    assert await buffer.next() == [delta(0, 1)]
    reader = asyncio.create_task(buffer.next())
    for token in (2, 3):
        buffer.push_tokens(delta(0, token))
        await asyncio.sleep(0)
    assert not reader.done()
    buffer.release()
    assert await reader == [delta(0, 2, 3)]
    buffer.release()  # of nothing
    reader = asyncio.create_task(buffer.next())
    await asyncio.sleep(0)
    assert not reader.done()
    buffer.push_tokens(delta(0, 4))
    buffer.push(Finished("r", 0, "length"))
    assert await reader == [delta(0, 4), Finished("r", 0, "length")]


async def test_next_waits_for_an_event():
    buffer = stream()
    reader = asyncio.create_task(buffer.next())
    await asyncio.sleep(0)
    assert not reader.done()
    buffer.push(Started("r"))
    assert await reader == [Started("r")]


async def test_an_error_comes_after_what_was_delivered():
    buffer = stream()
    buffer.push_tokens(delta(0, 1))
    buffer.end(ValueError("over"))
    assert await buffer.next() == [delta(0, 1)]
    for _ in range(2):
        with pytest.raises(ValueError, match="over"):
            await buffer.next()
