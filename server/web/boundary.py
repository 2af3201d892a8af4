"""Lets visitors see `ServiceError`s and nothing else: each becomes a status and a JSON body.

    {"reason": "MODEL_NOT_FOUND", "message": "there is no model 'x'", "violations": []}

The reasons are those of the gRPC API. `retry_seconds` stands beside them where it is known.
"""

import logging
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Internal, InvalidArgument, ServiceError

logger = logging.getLogger(__name__)

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, except for
# FAILED_PRECONDITION: the state of a thing is in the way, which HTTP calls a conflict
STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class ErrorBoundary:
    """Answers known errors with their status and bugs with an error id that the log explains."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return
        except HTTPException as error:  # no such path or method
            answer: Response = problem(error.status_code, "HTTP", error.detail)
        except ServiceError as error:
            answer = _answer(error)
        except Exception:
            answer = _answer(unknown(scope["path"]))
        if not begun:
            await answer(scope, receive, send)


def unknown(path: str) -> Internal:
    """What a visitor may know about the exception that is being handled; the log has the rest."""
    error_id = secrets.token_hex(8)
    logger.exception("path=%s error_id=%s", path, error_id)
    return Internal(error_id)


def to_json(error: ServiceError) -> dict[str, Any]:
    """An error as visitors see it."""
    violations = error.violations if isinstance(error, InvalidArgument) else []
    body: dict[str, Any] = {
        "reason": error.reason,
        "message": error.message,
        "violations": [{"field": v.field, "description": v.description} for v in violations],
    }
    if (seconds := getattr(error, "retry_seconds", None)) is not None:
        body["retry_seconds"] = seconds
    if isinstance(error, Internal):
        body["error_id"] = error.metadata["error_id"]
    return body


def problem(status: int, reason: str, message: str) -> Response:
    """An error that no part of the service raised."""
    return JSONResponse({"reason": reason, "message": message, "violations": []}, status)


def _answer(error: ServiceError) -> Response:
    return JSONResponse(to_json(error), STATUSES.get(error.code.name, 500))
