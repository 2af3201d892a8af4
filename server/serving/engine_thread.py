"""One thread per loaded model: it owns the engine and takes its steps, and nobody else touches it.

    event loop                                engine thread
    submit, cancel ── commands (a queue) ──>  before each step
    streams, metrics <── one report ────────  after each step

A report is handed to the loop by one wake-up a step, whatever the number of requests, and all
bookkeeping happens there, so nothing in this file needs a lock. It knows nothing about protobuf,
text or where models come from.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from nanogpt.device import is_out_of_memory
from nanogpt.inference.engine import Engine
from nanogpt.inference.events import (
    Delta,
    Event,
    Failed,
    Finished,
    Prefilled,
    Queued,
    Started,
    StepResult,
)
from nanogpt.inference.request import Request
from server.deadline import seconds_left
from server.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from server.metrics import Metrics
from server.serving.drain_rate import DrainRate
from server.serving.figures import Meter
from server.serving.request_stream import RequestStream
from server.serving.serving_record import ServingRecord

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Longest wait for a command: an idle thread's heartbeat is never older than this."""

MESSAGES_PER_SECOND = 500
"""To all readers of a model together. A message takes about 100 microseconds of a core here and as
many where it is read, so this is 5 % of one: with many streams of a fast model, tokens come several
at a time. All streams get theirs together, so that the kernels lose their cores once and not each
time, and the next message is written while the last one is read."""

SHORT_PROMPT_TOKENS = 1024
"""A prompt that cannot be longer is prepared at once: less work than handing it to a thread."""

LAST_STEP_SECONDS = 5.0
"""How long the step under way may take once the grace is over."""

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 30.0
"""Bounds of the advice given to callers who find the queue full."""

T = TypeVar("T")


class EngineFailure(Exception):
    """A forward pass, or the engine itself, raised; the cause is chained."""


@dataclass(frozen=True, slots=True)
class _Report:
    """What a step brought and what the engine holds after it."""

    result: StepResult
    start: float
    """When the step began, in seconds of `time.monotonic()`."""
    end: float
    running: int
    waiting: int
    kv_usage: float

    @property
    def load(self) -> tuple[int, int, float]:
        return self.running, self.waiting, self.kv_usage


class EngineThread:
    """Runs an engine for any number of requests at a time."""

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        metrics: Metrics,
        num_slots: int,
        max_waiting: int,
        max_waiting_tokens: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`model` names the engine in metrics and errors. Beside as many requests as it has slots,
        at most `max_waiting` are accepted, and none while `max_waiting_tokens` tokens of prompts
        wait."""
        self._engine = engine
        self._model = model
        self._record = ServingRecord(metrics, model)
        self._num_slots = num_slots
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._loop = loop
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"engine {model}", daemon=True)
        self._heartbeat = time.monotonic()
        # the rest belongs to the event loop
        self._streams: dict[str, RequestStream] = {}
        self._num_prepared = 0
        """Requests that have a place already, see `place`."""
        self._waiting_tokens = 0
        """Tokens to compute of the prompts that wait or are prepared."""
        self._drain_rate = DrainRate()
        self._delivery: asyncio.TimerHandle | None = None
        """Of the tokens that wait in streams; None if none do."""
        self._delivered_at = 0.0
        self.is_stopping = False
        """Whether new requests are refused, for good."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._ended = asyncio.Event()

    # --- on the event loop -----------------------------------------------------------------------

    def start(self) -> None:
        """Begins to take steps."""
        self._thread.start()

    @property
    def heartbeat_age_seconds(self) -> float:
        """Time since the thread last began a step or a wait; grows without end if it hangs."""
        return time.monotonic() - self._heartbeat

    @property
    def meter(self) -> Meter:
        """What the engine does right now."""
        return self._record.meter

    @property
    def most_requests(self) -> int:
        """Requests that may run or wait at a time."""
        return self._num_slots + self._max_waiting

    @property
    def has_ended(self) -> bool:
        """Whether the thread is over: stopped, or its engine raised outside a forward pass; or
        whether it hung when it was to stop."""
        return self._ended.is_set()

    def check_admission(self) -> None:
        """Raises what `place` would raise now."""
        self._check_room()
        if self._waiting_tokens >= self._max_waiting_tokens:
            self._refuse_full(
                f"prompts of {self._waiting_tokens} tokens wait for model {self._model}, as many "
                f"as this server allows",
                "waiting_tokens",
            )

    @contextmanager
    def place(self, prompt_tokens: int = 0, *, scores_only: bool = False) -> Iterator[None]:
        """Keeps a place for a request of about `prompt_tokens` tokens while it is prepared.

        So a full queue refuses before the work and never after it. Raises as `check_admission`.
        """
        self.check_admission()
        tokens = self._tokens_to_compute(prompt_tokens, scores_only)
        self._num_prepared += 1
        self._waiting_tokens += tokens
        try:
            yield
        finally:
            self._num_prepared -= 1
            self._waiting_tokens -= tokens

    async def prepare(
        self, work: Callable[[], T], prompt_tokens: int, *, scores_only: bool = False
    ) -> T:
        """What `work` makes of a request of at most `prompt_tokens` tokens, while that has a place;
        `submit` it right afterwards. In a thread if the prompt may be long.

        Raises as `place`, and what `work` raises: InvalidArgument counts as a rejection.
        """
        with self.place(prompt_tokens, scores_only=scores_only):
            try:
                if prompt_tokens <= SHORT_PROMPT_TOKENS:
                    return work()
                return await asyncio.to_thread(work)
            except InvalidArgument:
                self._record.rejected("validation")
                raise

    def submit(
        self,
        request: Request,
        *,
        received_at: float | None = None,
        remaining_seconds: float | None = None,
    ) -> RequestStream:
        """The stream of a valid request that joins the queue.

        `received_at`, in seconds of `time.monotonic()`, is when its timings begin; None is now.
        Its id must differ from those of unfinished requests. Raises ResourceExhausted if as many
        requests wait as may, DeadlineExceeded if it would surely still wait after
        `remaining_seconds`, the time until its deadline, Unavailable once stopping.
        """
        self._check_room()
        if remaining_seconds is not None:
            self._check_deadline(request, remaining_seconds)
        stream = RequestStream(
            request,
            received_at,
            on_cancel=self._cancel,
            ask_place=self._report_place,
        )
        self._streams[request.id] = stream
        self._waiting_tokens += self._tokens_of(stream.request)
        self._empty.clear()
        self._commands.put(lambda: self._engine.add(request))
        return stream

    @contextmanager
    def submitted(
        self,
        request: Request,
        received_at: float,
        caller_seconds: Callable[[], float | None] = lambda: None,
    ) -> Iterator[RequestStream]:
        """A call's request while it is in the engine, which it leaves however the call ends.

        `caller_seconds` tells how much longer the caller waits, None is for ever; the server's own
        limit counts as well. Raises as `submit`.
        """
        remaining_seconds = seconds_left(caller_seconds())
        stream = self.submit(request, received_at=received_at, remaining_seconds=remaining_seconds)
        try:
            yield stream
        finally:
            stream.cancel("deadline" if seconds_left(caller_seconds()) == 0 else "cancelled")

    async def stop(self, grace_seconds: float | None) -> None:
        """Refuses new requests, lets running ones finish, ends the thread.

        After `grace_seconds`, or never if None, what still runs ends with Unavailable, and a thread
        whose step does not end within LAST_STEP_SECONDS is left behind. Another call may cut the
        wait of the first one short.
        """
        self.is_stopping = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            for stream in list(self._streams.values()):
                self._end(stream, "draining", Unavailable("the server is stopping; try again"))
        self._commands.put(None)
        try:
            async with asyncio.timeout(None if grace_seconds is None else LAST_STEP_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            logger.error("the engine of %s hangs in a step and is left behind", self._model)
            self._ended.set()
        self._record.load(0, 0, 0.0)

    @property
    def _num_waiting(self) -> int:
        """Requests for which there is no slot."""
        return max(0, len(self._streams) + self._num_prepared - self._num_slots)

    def _tokens_of(self, request: Request) -> int:
        return self._tokens_to_compute(len(request.prompt_ids), request.scores_only)

    def _tokens_to_compute(self, prompt_tokens: int, scores_only: bool) -> int:
        """Tokens of a prompt that the model sees: all of a text that is scored."""
        return prompt_tokens if scores_only else min(prompt_tokens, self._engine.block_size)

    def _check_room(self) -> None:
        if self.is_stopping or self.has_ended:
            self._record.rejected("draining")
            raise Unavailable(f"model {self._model} is being unloaded; try again")
        if len(self._streams) + self._num_prepared >= self.most_requests:
            self._refuse_full(
                f"{self._num_waiting} requests wait for model {self._model}, as many as this "
                f"server allows",
                "waiting_requests",
            )

    def _check_deadline(self, request: Request, remaining_seconds: float) -> None:
        """Errs on the side of admission: of those that wait it counts who surely goes first."""
        seconds_each = self._drain_rate.seconds_per_request or 0.0
        if self._num_waiting * seconds_each <= remaining_seconds:
            return  # whoever they are: a long queue costs the next one nothing
        ahead = sum(
            not stream.has_started and stream.request.priority <= request.priority
            for stream in self._streams.values()
        )
        ahead = min(ahead, self._num_waiting)
        wait_seconds = ahead * seconds_each
        if wait_seconds > remaining_seconds:
            self._record.rejected("deadline")
            raise DeadlineExceeded(
                f"{ahead} requests go first at model {self._model}: they take about "
                f"{wait_seconds:.1f} s, the deadline is in {remaining_seconds:.1f} s"
            )

    def _refuse_full(self, message: str, limit: str) -> NoReturn:
        self._record.rejected("queue_full")
        raise ResourceExhausted(message, self._retry_seconds(), limit=limit)

    def _retry_seconds(self) -> float:
        """When a place in a full queue is likely to be free: after half of it has drained."""
        per_request = self._drain_rate.seconds_per_request
        if per_request is None:
            return 1.0
        return min(max(per_request * self._max_waiting / 2, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _cancel(self, stream: RequestStream, reason: str) -> None:
        self._end(stream, reason)
        self._commands.put(lambda: self._engine.cancel(stream.request.id))

    def _report_place(self, stream: RequestStream) -> None:
        def look() -> None:
            if (event := self._engine.place_of(stream.request.id)) is not None:
                self._loop.call_soon_threadsafe(self._receive_place, stream, event)

        self._commands.put(look)

    def _end(
        self, stream: RequestStream, reason: str | None, error: Exception | None = None
    ) -> None:
        """Forgets a request; a `reason` says why it got no whole answer."""
        del self._streams[stream.request.id]
        if not stream.has_started:
            self._waiting_tokens -= self._tokens_of(stream.request)
        if reason is not None:
            self._record.rejected(reason)
        stream.end(error)
        if not self._streams:
            self._empty.set()

    def _receive(self, report: _Report) -> None:
        """Hands a step's events to their readers and keeps the books."""
        before = len(self._streams)
        for event in report.result.events:
            stream = self._streams.get(event.request_id)
            # else cancelled while the step ran, and its id perhaps taken by a new request
            if stream is not None and stream.submitted_at <= report.start:
                self._receive_event(stream, event, report)
        if report.result.num_tokens:
            self._record.step(report.result, report.end)
            self._deliver_in_time()
            completed = before - len(self._streams)
            self._drain_rate.step(report.end - report.start, report.waiting, completed)
        self._record.load(*report.load)

    def _receive_event(self, stream: RequestStream, event: Event, report: _Report) -> None:
        match event:
            case Started():
                self._waiting_tokens -= self._tokens_of(stream.request)
                stream.clock.started_at = report.start
                self._record.started(stream.clock, stream.prompt_tokens)
                stream.push(event)
            case Prefilled():
                stream.cached_tokens = event.cached_tokens
                self._record.prefilled(stream.request, event.cached_tokens)
                stream.push(event)
            case Delta():
                self._record.tokens(stream.clock, event, report.end)
                stream.push_tokens(event)
            case Finished():
                stream.push(event)
                stream.drafted_tokens += event.drafted_tokens
                stream.accepted_tokens += event.accepted_tokens
                stream.unfinished_samples -= 1
                if not stream.request.scores_only:
                    self._record.sample_finished(event.reason)
                if not stream.unfinished_samples:
                    if not stream.request.scores_only:
                        self._record.completed(stream.clock)
                    self._end(stream, None)
            case Failed():
                self._end(stream, "failed", _explain(event.error))

    def _receive_place(self, stream: RequestStream, event: Queued) -> None:
        if not stream.has_started and not stream.has_ended:
            stream.push(event)

    def _deliver_in_time(self) -> None:
        """Lets readers have their tokens as often as MESSAGES_PER_SECOND allows."""
        if self._delivery is None:
            at = self._delivered_at + len(self._streams) / MESSAGES_PER_SECOND
            wait_seconds = at - self._loop.time()
            if wait_seconds <= 0:
                self._deliver()
            else:
                self._delivery = self._loop.call_later(wait_seconds, self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        self._delivered_at = self._loop.time()
        for stream in self._streams.values():
            stream.release()

    def _receive_death(self, error: BaseException | None) -> None:
        """The thread is over: as asked, or because of an error that spares no request."""
        if error is not None:
            logger.error("the engine of %s died", self._model, exc_info=error)
            for stream in list(self._streams.values()):
                self._end(stream, "failed", _explain(error))
            self._record.load(0, 0, 0.0)
        self._ended.set()

    # --- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._take_steps()
        except BaseException as raised:
            error = raised
        self._loop.call_soon_threadsafe(self._receive_death, error)

    def _take_steps(self) -> None:
        reported = (0, 0, 0.0)
        while self._obey_commands():
            report = self._step()
            if report.result.num_tokens or report.result.events or report.load != reported:
                reported = report.load
                self._loop.call_soon_threadsafe(self._receive, report)

    def _obey_commands(self) -> bool:
        """Obeys all commands there are, waiting for one if there is no work. False means stop."""
        self._heartbeat = time.monotonic()
        wait = not self._engine.has_work()
        try:
            while True:
                command = self._commands.get(block=wait, timeout=IDLE_SECONDS)
                if command is None:
                    return False
                command()
                wait = False
        except queue.Empty:
            return True

    def _step(self) -> _Report:
        """Takes a step if there is work. Cancelled requests are gone before."""
        engine, start = self._engine, time.monotonic()
        result = engine.step() if engine.has_work() else StepResult()
        return _Report(
            result=result,
            start=start,
            end=time.monotonic(),
            running=engine.num_running,
            waiting=engine.num_waiting,
            kv_usage=engine.kv_cache_usage_ratio,
        )


def _explain(error: BaseException) -> Exception:
    """What the reader of a failed request gets: a limit to act on, or our bug."""
    if is_out_of_memory(error):
        return ResourceExhausted(
            "the server ran out of memory; ask for fewer samples, or later",
            retry_seconds=1.0,
            limit="memory",
        )
    failure = EngineFailure("the forward pass failed")
    failure.__cause__ = error
    return failure
