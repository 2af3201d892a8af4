"""Gives each call an id and writes one line about it, without anything the caller sent."""

import contextvars
import logging
import secrets
import time
from typing import Any

from server.interceptors.call import Call, CallInterceptor, outcome

logger = logging.getLogger(__name__)

_current: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


def current_request_id() -> str:
    """Id of the call that the current task handles, as it stands in the log."""
    return _current.get()


class CallLog(CallInterceptor):
    """Makes the id and sends it as the trailer `x-request-id`.

    Ids are never taken from callers: two of them could choose the same one.
    """

    async def around(self, call: Call) -> Any:
        request_id = secrets.token_hex(8)
        _current.set(request_id)
        call.context.set_trailing_metadata((("x-request-id", request_id),))
        start, failure = time.monotonic(), None
        try:
            return await call.proceed()
        except BaseException as error:
            failure = error
            raise
        finally:
            probe = call.method.startswith("/grpc.")  # health and reflection, by the thousand
            logger.log(
                logging.DEBUG if probe else logging.INFO,
                "method=%s code=%s seconds=%.4f request_id=%s",
                call.method,
                outcome(failure, call.context).name,
                time.monotonic() - start,
                request_id,
            )
