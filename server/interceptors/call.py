"""One view of the four kinds of call (unary or streaming, in or out) for all interceptors.

An interceptor is a class with one method, `around`, that awaits `call.proceed()` in the middle.
Handlers may be coroutines that write their responses, or async generators; here both are
coroutines, so that cancellation always arrives as CancelledError.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from server.errors import ServiceError, Unimplemented

# RpcMethodHandler is generic in its type stubs only, hence the quotes
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, Any], Any]
Decode = Callable[[bytes], Any]
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

_CODES = {key: code for code in grpc.StatusCode for key in (code, code.value[0])}
"""By what a context has: a StatusCode or its number."""


@dataclass(slots=True)
class Call:
    """One call. An interceptor may replace `request` and `context` before it proceeds."""

    method: str
    """Full name: `/package.Service/Method`."""
    handler: Handler
    request: Any
    """The message, or an async iterator of messages."""
    context: Any
    """The grpc.aio.ServicerContext, or what stands in for it."""

    async def proceed(self) -> Any:
        """Handles the call; returns the response, or None after all responses were written."""
        return await behavior(self.handler)(self.request, self.context)


class CallInterceptor(grpc.aio.ServerInterceptor, ABC):
    """Wraps handlers of every kind so that `around` runs in place of them."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            self.unregistered()
            return handler  # type: ignore[return-value]  # None: grpc answers UNIMPLEMENTED
        method, inner = handler_call_details.method, _awaitable(handler)

        async def behave(request: Any, context: Any) -> Any:
            return await self.around(Call(method, inner, request, context))

        return with_behavior(handler, behave)

    @abstractmethod
    async def around(self, call: Call) -> Any:
        """Does this interceptor's duty and returns what `call.proceed()` returns."""

    def unregistered(self) -> None:
        """Hears of calls to methods that no service has."""
        return


def outcome(failure: BaseException | None, context: Any) -> grpc.StatusCode:
    """The code that a call ends with, after its handler returned or raised `failure`."""
    match failure:
        case ServiceError():
            return failure.code
        case asyncio.CancelledError():
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        case None | grpc.aio.AbortError():
            return _CODES.get(context.code(), grpc.StatusCode.OK)
        case _:
            return grpc.StatusCode.INTERNAL


def behavior(handler: Handler) -> Behavior:
    """The one function of a handler, whatever its kind."""
    found = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    assert found is not None
    return found


def with_behavior(handler: Handler, behave: Behavior, decode: Decode | None = None) -> Handler:
    """A handler of the same kind with another function, and another decoder if one is given."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behave, decode or handler.request_deserializer, handler.response_serializer)


def _awaitable(handler: Handler) -> Handler:
    """The handler with a coroutine function: an async generator's messages are written for it."""
    generate = behavior(handler)
    if inspect.iscoroutinefunction(generate):
        return handler
    if not inspect.isasyncgenfunction(generate):
        # what protoc generates for a method that the service does not define
        return with_behavior(handler, _unimplemented)

    async def write_all(request: Any, context: Any) -> None:
        async with aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return with_behavior(handler, write_all)


async def _unimplemented(request: Any, context: Any) -> None:
    raise Unimplemented("this server does not have that method")
