"""Counts and times calls in the `grpc_server_*` metrics.

Names, labels and meaning are those of
https://github.com/grpc-ecosystem/go-grpc-middleware/tree/main/providers/prometheus,
so that stock dashboards work.
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from server.interceptors.call import Call, CallInterceptor, outcome
from server.metrics import Metrics

_KINDS = {  # by (streaming request, streaming response)
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


class CallMetrics(CallInterceptor):
    """Feeds started, handled, messages in and out, and duration, of every call."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    async def around(self, call: Call) -> Any:
        metrics, labels = self.metrics, _labels(call)
        received = metrics.grpc_server_msg_received_total.labels(*labels)
        sent = metrics.grpc_server_msg_sent_total.labels(*labels)
        if call.handler.request_streaming:
            call.request = _counted(call.request, received.inc)
        else:
            received.inc()
        if call.handler.response_streaming:
            call.context = _CountingContext(call.context, sent.inc)
        metrics.grpc_server_started_total.labels(*labels).inc()
        start, failure = time.monotonic(), None
        try:
            response = await call.proceed()
            if not call.handler.response_streaming:
                sent.inc()
            return response
        except BaseException as error:
            failure = error
            raise
        finally:
            seconds = time.monotonic() - start
            code = _camel_case(outcome(failure, call.context))
            metrics.grpc_server_handling_seconds.labels(*labels).observe(seconds)
            metrics.grpc_server_handled_total.labels(*labels, code).inc()

    def unregistered(self) -> None:
        labels = ("unary", "other", "other")  # a caller's invention must not become a label
        self.metrics.grpc_server_started_total.labels(*labels).inc()
        self.metrics.grpc_server_handled_total.labels(*labels, "Unimplemented").inc()


class _CountingContext:
    """A servicer context that reports each written message; all else is the context's own."""

    def __init__(self, context: Any, written: Callable[[], None]) -> None:
        self._context, self._written = context, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._written()


async def _counted(
    requests: AsyncIterator[Any], received: Callable[[], None]
) -> AsyncIterator[Any]:
    async for request in requests:
        received()
        yield request


def _labels(call: Call) -> tuple[str, str, str]:
    """Kind, service and method."""
    service, _, method = call.method.removeprefix("/").rpartition("/")
    return _KINDS[call.handler.request_streaming, call.handler.response_streaming], service, method


def _camel_case(code: grpc.StatusCode) -> str:
    """`DEADLINE_EXCEEDED` as `DeadlineExceeded`: Go's names, as in the metrics this follows."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
