"""Follows a job's events across lost connections: what to ask for next, and when. No I/O.

The server numbers the recorded events from 1 without a gap and replays them from any number, so a
stream that breaks goes on from the last number seen plus 1.
"""

import logging
import random
import time
from collections.abc import Callable

from client.errors import Cancelled, DeadlineExceeded, InternalError, NanoGPTError, Unavailable
from protos.nanogpt.v1.training_pb2 import StateChange, StreamMetricsRequest, StreamMetricsResponse

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long a stream may stay broken before its error is raised: ample for a server's restart."""


class MetricsCursor:
    """Where one watcher stands in a job's events.

    cursor = MetricsCursor(job_id, start_sequence=1)
    send cursor.request(); keep the events that cursor.accept() is true for;
    on an error sleep cursor.pause_seconds(error) and send cursor.request() again
    """

    def __init__(
        self, job_id: str, start_sequence: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job_id = job_id
        self._next_sequence = start_sequence
        self._state: StateChange | None = None
        self._clock = clock
        self._last_news: float | None = None  # clock's reading
        self._failures = 0  # since the last news

    def request(self) -> StreamMetricsRequest:
        """Asks for everything that was not seen yet."""
        return StreamMetricsRequest(job_id=self._job_id, start_sequence=self._next_sequence)

    def accept(self, event: StreamMetricsResponse) -> bool:
        """Whether the event is news; if so, the cursor moves behind it.

        Each new stream begins with the job's state, which is news only if it changed.
        """
        if event.HasField("sequence"):
            if event.sequence < self._next_sequence:
                return False
            self._next_sequence = event.sequence + 1
        elif event.HasField("state_change"):
            if event.state_change == self._state:
                return False
            self._state = event.state_change
        self._last_news, self._failures = self._clock(), 0
        return True

    def pause_seconds(self, error: NanoGPTError) -> float:
        """How long to wait before the next request.

        Raises the error if asking again cannot help: nothing ever arrived, it is of another kind
        than a lost connection, or PATIENCE_SECONDS have passed without news.
        """
        if (
            self._last_news is None
            or not is_lost_connection(error)
            or self._clock() - self._last_news > PATIENCE_SECONDS
        ):
            raise error
        # Doubles each time, and spreads the clients of a restarted server over the pause.
        pause: float = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
        pause *= random.uniform(0.5, 1)
        self._failures += 1
        pause = max(pause, error.details.retry_seconds or 0)
        log.warning(
            "lost the events of job %s (%s); asking again from number %d in %.1f s",
            self._job_id,
            error.message,
            self._next_sequence,
            pause,
        )
        return pause


def is_lost_connection(error: NanoGPTError) -> bool:
    """Whether the stream broke, rather than the server having refused it.

    A deadline ends a watch that outlives it. A server that stops just when the request arrives
    cancels it. A proxy that closes a quiet stream shows as INTERNAL with a reset in its text.
    """
    return isinstance(error, (Unavailable, DeadlineExceeded, Cancelled)) or (
        isinstance(error, InternalError) and "RST_STREAM" in error.message
    )
