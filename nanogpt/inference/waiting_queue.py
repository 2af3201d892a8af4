"""Samples that wait for a slot: by priority, then first come first served. No clock, no torch.

One that waits moves up: AGEING_STEPS steps of waiting are worth one level of priority, so nothing
starves. All age alike, so the order of two that wait never changes, and a heap can hold it.
"""

import heapq

from nanogpt.inference.sequence import Sequence

AGEING_STEPS = 256
"""Steps of the engine, some seconds of a busy server."""


class WaitingQueue:
    """A priority queue whose members can leave from the middle."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []  # (rank, arrival, sequence)
        self._members: set[Sequence] = set()  # the heap holds some that have left, too
        self._num_arrivals = 0

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._members

    def push(self, sequence: Sequence, step: int) -> None:
        """Adds a sample that arrives before this step of the engine."""
        rank = step + AGEING_STEPS * sequence.request.priority
        heapq.heappush(self._heap, (rank, self._num_arrivals, sequence))
        self._members.add(sequence)
        self._num_arrivals += 1

    def pop(self) -> Sequence:
        """Takes the first in the queue, which must not be empty."""
        while True:
            sequence = heapq.heappop(self._heap)[2]
            if sequence in self._members:
                self._members.remove(sequence)
                return sequence

    def requests_ahead(self, request_id: str) -> int | None:
        """Requests with a sample before all of this one's; None if none of its samples waits."""
        waiting = [entry for entry in self._heap if entry[2] in self._members]
        own = [entry for entry in waiting if entry[2].request.id == request_id]
        if not own:
            return None
        place = min(entry[:2] for entry in own)
        return len({entry[2].request.id for entry in waiting if entry[:2] < place})

    def discard(self, sequence: Sequence) -> None:
        """Forgets a sample, if it waits."""
        self._members.discard(sequence)
        if len(self._heap) > 64 + 2 * len(self._members):  # those who left take memory
            self._heap = [entry for entry in self._heap if entry[2] in self._members]
            heapq.heapify(self._heap)
