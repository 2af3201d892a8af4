"""Answers bytes that are no message; grpc itself would send the decoder's exception as UNKNOWN.

Decoding happens before any handler runs, where nothing can answer. So bytes that do not decode
become a mark, and the mark an error once the call is inside the other interceptors.
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from nanogpt.option import Violation
from server.errors import InvalidArgument
from server.interceptors.call import (
    Call,
    CallInterceptor,
    Continuation,
    Decode,
    Handler,
    behavior,
    with_behavior,
)

_UNDECODABLE = object()


class RequestDecoder(CallInterceptor):
    """Raises InvalidArgument in place of a request that does not decode."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await super().intercept_service(continuation, handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return with_behavior(handler, behavior(handler), _marking(handler.request_deserializer))

    async def around(self, call: Call) -> Any:
        if call.handler.request_streaming:
            call.request = _each_decoded(call.request)
        else:
            _require_decoded(call.request)
        return await call.proceed()


def _marking(decode: Decode) -> Decode:
    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except (DecodeError, UnicodeDecodeError):
            return _UNDECODABLE

    return decode_or_mark


def _require_decoded(request: Any) -> None:
    if request is _UNDECODABLE:
        raise InvalidArgument([Violation("", "the request is not a message of this method")])


async def _each_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _require_decoded(request)
        yield request
