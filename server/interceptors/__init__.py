"""What happens around every call, one class and one file per duty, outermost first:

    ErrorBoundary   known errors become their status, anything else INTERNAL and a log entry
    CallLog         gives the call an id and writes one line about it
    CallMetrics     counts and times it
    GateKeeper      refuses new work while the server drains, and lets its gate know which calls run
    DeadlineCap     ends calls that take longer than the server allows
    RequestDecoder  answers bytes that are no message with INVALID_ARGUMENT

They know methods by name only, never what a service does.
"""

import grpc

from server.gate import Gate
from server.interceptors.call_log import CallLog, current_request_id
from server.interceptors.call_metrics import CallMetrics
from server.interceptors.deadline_cap import DeadlineCap
from server.interceptors.error_boundary import ErrorBoundary
from server.interceptors.gate_keeper import GateKeeper
from server.interceptors.request_decoder import RequestDecoder
from server.metrics import Metrics

__all__ = ["current_request_id", "interceptor_chain"]


def interceptor_chain(
    metrics: Metrics, gate: Gate, max_deadline_seconds: float
) -> list[grpc.aio.ServerInterceptor]:
    """All interceptors, outermost first."""
    return [
        ErrorBoundary(),
        CallLog(),
        CallMetrics(metrics),
        GateKeeper(gate),
        DeadlineCap(max_deadline_seconds),
        RequestDecoder(),
    ]
