"""Slots in which no sequence runs, and the prefix cache: the tokens that each of them still holds.

A sequence that ends leaves keys and values of its tokens in its slot until somebody needs the slot:
the cache takes no memory but that of the slots. Positions are absolute, so two prompts share what
they begin with and nothing else. It belongs to one engine, hence to one set of weights, and is gone
with it: nothing stale can be found. Policy only: it moves no data and knows no torch.
"""

import heapq
from collections.abc import Iterator


class FreeSlots:
    """Slots to take: one that holds the beginning of the prompt, else an empty one, else the one
    that was of no use for longest."""

    def __init__(self, num_slots: int) -> None:
        self._empty = list(range(num_slots))  # a heap: the lowest is given first
        self._held: dict[int, list[int]] = {}  # tokens by slot, the longest unused first

    def __len__(self) -> int:
        return len(self._empty) + len(self._held)

    def __iter__(self) -> Iterator[int]:
        yield from self._empty
        yield from self._held

    def put(self, slot: int, tokens: list[int]) -> None:
        """Frees a slot that holds these tokens at positions from 0."""
        if tokens:
            self._held[slot] = tokens
        else:
            heapq.heappush(self._empty, slot)

    def take(self, prompt: list[int] | None) -> tuple[int, int]:
        """A slot for a prompt, None if it is to be computed afresh, and how many of the prompt's
        first tokens it holds.

        A slot that holds more of something else than of this prompt is left to others while
        there is another: a copy of what it shares is cheap. Raises IndexError if there is none.
        """
        slot, shared = self.longest_match(prompt) if prompt is not None else (None, 0)
        if slot is not None and (2 * shared >= len(self._held[slot]) or len(self) == 1):
            del self._held[slot]
            return slot, shared
        if self._empty:
            return heapq.heappop(self._empty), 0
        if not self._held:
            raise IndexError("no slot is free")
        victim = next(held for held in self._held if held != slot)
        del self._held[victim]
        return victim, 0

    def longest_match(self, prompt: list[int]) -> tuple[int | None, int]:
        """The slot that holds most of the prompt's beginning, and how many tokens of it; None, 0 if
        none does. Of equals the one used last."""
        best, most = None, 0
        for slot, tokens in self._held.items():
            shared = shared_prefix(tokens, prompt)
            if shared and shared >= most:
                best, most = slot, shared
        return best, most

    def touch(self, slot: int) -> None:
        """What this slot holds was of use."""
        self._held[slot] = self._held.pop(slot)


def shared_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    same, end = 0, min(len(a), len(b))
    if a[:end] == b[:end]:
        return end
    while end - same > 1:  # they agree below `same`, and not below `end`
        middle = (same + end) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            end = middle
    return same
