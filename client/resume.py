"""Follows streams across lost connections: what to ask for next, and when. No I/O.

The server numbers a job's events from 1 without a gap and replays them from any number, so a
stream that breaks goes on from the last number seen plus 1; a log goes on from the last byte.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from client.errors import Cancelled, DeadlineExceeded, InternalError, NanoGPTError, Unavailable
from client.repetition import MAX_ATTEMPTS, pause_seconds
from protos.nanogpt.v1.training_pb2 import (
    ServerSource,
    StateChange,
    StreamLogsRequest,
    StreamLogsResponse,
    StreamMetricsRequest,
    StreamMetricsResponse,
)

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long a stream may stay broken before its error is raised: ample for a server's restart."""


Request = TypeVar("Request", covariant=True)
Response = TypeVar("Response", contravariant=True)


class Cursor(Protocol[Request, Response]):
    """Where one reader stands in a stream that can be asked for again.

    send cursor.request(); keep the responses that cursor.accept() is true for;
    on an error sleep cursor.pause_seconds(error) and send cursor.request() again
    """

    def request(self) -> Request:
        """Asks for everything that was not seen yet."""

    def accept(self, response: Response, /) -> bool:
        """Whether the response is news; if so, the cursor moves behind it."""

    def pause_seconds(self, error: NanoGPTError) -> float:
        """How long to wait before the next request. Raises the error if that cannot help."""


class _Patience:
    """How long a reader keeps asking, and how often."""

    def __init__(self, subject: str, clock: Callable[[], float]) -> None:
        self._subject = subject
        self._clock = clock
        self._was_heard = False
        self._failing_since: float | None = None  # clock's reading; None: it was heard since
        self._failures = 0  # since the last news

    def _hear(self, *, is_news: bool) -> bool:
        """The server has answered, so it is there; only with news the stream gets on as well."""
        self._was_heard, self._failing_since = True, None
        if is_news:
            self._failures = 0
        return is_news

    def pause_seconds(self, error: NanoGPTError) -> float:
        """How long to wait before the next request.

        Raises the error if asking again cannot help: it is of another kind than a lost connection,
        nothing was heard since a failure PATIENCE_SECONDS ago, or for MAX_ATTEMPTS if nothing ever
        was. How long a reader is busy with what it got does not count.
        """
        if self._failing_since is None:
            self._failing_since = self._clock()
        if not is_lost_connection(error) or self._has_waited_enough(self._failing_since):
            raise error
        self._failures += 1
        pause = max(pause_seconds(self._failures), error.details.retry_seconds or 0)
        log.warning(
            "lost %s (%s); asking again%s in %.1f s",
            self._subject,
            error.message,
            self._place(),
            pause,
        )
        return pause

    def _has_waited_enough(self, failing_since: float) -> bool:
        if not self._was_heard:
            return self._failures >= MAX_ATTEMPTS - 1
        return self._clock() - failing_since > PATIENCE_SECONDS

    def _place(self) -> str:
        """Where the next request begins, in words."""
        return ""


class MetricsCursor(_Patience):
    """Where one watcher stands in a job's events."""

    def __init__(
        self,
        job_id: str,
        start_sequence: int,
        max_behind: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(f"the events of job {job_id}", clock)
        self._job_id = job_id
        self._next_sequence = start_sequence
        self._max_behind = max_behind
        self._state: StateChange | None = None

    def request(self) -> StreamMetricsRequest:
        """Asks for everything that was not seen yet."""
        return StreamMetricsRequest(
            job_id=self._job_id, start_sequence=self._next_sequence, max_behind=self._max_behind
        )

    def accept(self, event: StreamMetricsResponse) -> bool:
        """Whether the event is news; if so, the cursor moves behind it.

        Each new stream begins with the job's state, which is news only if it changed.
        """
        return self._hear(is_news=self._is_news(event))

    def _is_news(self, event: StreamMetricsResponse) -> bool:
        if event.HasField("sequence"):
            if event.sequence < self._next_sequence:
                return False
            self._next_sequence = event.sequence + 1
        elif event.HasField("skipped"):
            self._next_sequence = event.skipped.last_sequence + 1
        elif event.HasField("state_change"):
            if event.state_change == self._state:
                return False
            self._state = event.state_change
        return True

    def _place(self) -> str:
        return f" from number {self._next_sequence}"


class ServingCursor(_Patience):
    """A watcher of the server itself, of which nothing is recorded: there is no place to keep."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("the serving figures", clock)

    def request(self) -> StreamMetricsRequest:
        return StreamMetricsRequest(server=ServerSource())

    def accept(self, event: StreamMetricsResponse) -> bool:
        return self._hear(is_news=True)


class LogCursor(_Patience):
    """Where one reader stands in a job's log."""

    def __init__(
        self,
        job_id: str,
        follow: bool,
        offset: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(f"the log of job {job_id}", clock)
        self._request = StreamLogsRequest(job_id=job_id, follow=follow, offset=offset)

    def request(self) -> StreamLogsRequest:
        return self._request

    def accept(self, piece: StreamLogsResponse) -> bool:
        """A piece without text is a sign of life, and says where the log ends."""
        self._request.offset = piece.next_offset
        self._hear(is_news=True)
        return bool(piece.text)

    def _place(self) -> str:
        return f" from byte {self._request.offset}"


def is_lost_connection(error: NanoGPTError) -> bool:
    """Whether the stream broke, rather than the server having refused it.

    A deadline ends a watch that outlives it. A server that stops just when the request arrives
    cancels it. A proxy that closes a quiet stream shows as INTERNAL with a reset in its text.
    """
    return isinstance(error, (Unavailable, DeadlineExceeded, Cancelled)) or (
        isinstance(error, InternalError) and "RST_STREAM" in error.message
    )
