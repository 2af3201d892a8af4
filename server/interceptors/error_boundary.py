"""Lets callers see `ServiceError`s and nothing else."""

import logging
import secrets
from typing import Any

import grpc

from server.errors import Internal, ServiceError, to_status
from server.interceptors.call import Call, CallInterceptor

logger = logging.getLogger(__name__)


class ErrorBoundary(CallInterceptor):
    """Answers known errors with their status and bugs with an error id that the log explains."""

    async def around(self, call: Call) -> Any:
        try:
            return await call.proceed()
        except grpc.aio.AbortError:
            raise  # the status is already on its way
        except ServiceError as error:
            await _abort(call.context, error)
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("method=%s error_id=%s", call.method, error_id)
            await _abort(call.context, Internal(error_id))


async def _abort(context: Any, error: ServiceError) -> None:
    status = to_status(error)
    trailers = (*(context.trailing_metadata() or ()), *status.trailers)
    await context.abort(status.code, status.message, trailers)
