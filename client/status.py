"""Turns a failed gRPC call into one of client.errors, details included. Sync and async alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from client.errors import CLASS_OF_CODE, ErrorDetails, NanoGPTError, Violation


@contextmanager
def translated() -> Iterator[None]:
    """Raises NanoGPTError where the block raises grpc.RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from error


def error_of(error: grpc.RpcError) -> NanoGPTError:
    """The error for a failed call: its class by status, its details from google.rpc.Status."""
    call = cast(grpc.Call, error)  # every RpcError that a call raises is that call
    code = call.code().name
    status = rpc_status.from_call(call)
    details = _details(status) if status is not None else ErrorDetails()
    translated_error = CLASS_OF_CODE.get(code, NanoGPTError)(call.details() or code, details)
    translated_error.code = code
    return translated_error


def _details(status: Status) -> ErrorDetails:
    def unpacked(kind: type[Message]) -> Any:
        """The detail of that kind, or an empty one."""
        message = kind()
        for packed in status.details:
            if packed.Unpack(message):
                break
        return message

    info = unpacked(rpc.ErrorInfo)
    retry = unpacked(rpc.RetryInfo)
    resource = unpacked(rpc.ResourceInfo)
    fields = unpacked(rpc.BadRequest).field_violations
    limits = unpacked(rpc.QuotaFailure).violations
    conditions = unpacked(rpc.PreconditionFailure).violations
    return ErrorDetails(
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=(
            *(Violation(v.field, v.description) for v in fields),
            *(Violation(v.subject, v.description) for v in (*limits, *conditions)),
        ),
        retry_seconds=(
            retry.retry_delay.ToTimedelta().total_seconds()
            if retry.HasField("retry_delay")
            else None
        ),
        resource_type=resource.resource_type.rpartition(".")[2],
        resource_name=resource.resource_name,
    )
