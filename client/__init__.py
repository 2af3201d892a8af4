"""Client of nanogpt-service: a library, and the command line `python -m client`.

    from client import Client

    with Client("127.0.0.1:50051") as client:
        for delta in client.generate("To be"):
            print(delta.text, end="", flush=True)

Needs neither torch nor the server's code. Names load when they are first used, so that commands
which call no server start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.async_client import AsyncClient
    from client.client import Client
    from client.errors import (
        AlreadyExists,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        InternalError,
        InvalidArgument,
        NanoGPTError,
        NotFound,
        ResourceExhausted,
        Unavailable,
        Unimplemented,
        Violation,
    )
    from client.generation import AsyncGeneration, Generation
    from protos.nanogpt.v1.inference_pb2 import InferenceBenchmark, TrainingBenchmark

__version__ = "0.1.0"

_MODULES = {
    "client.async_client": ("AsyncClient",),
    "client.client": ("Client",),
    "client.errors": (
        "AlreadyExists",
        "Cancelled",
        "DataLoss",
        "DeadlineExceeded",
        "FailedPrecondition",
        "InternalError",
        "InvalidArgument",
        "NanoGPTError",
        "NotFound",
        "ResourceExhausted",
        "Unavailable",
        "Unimplemented",
        "Violation",
    ),
    "client.generation": ("AsyncGeneration", "Generation"),
    "protos.nanogpt.v1.inference_pb2": ("InferenceBenchmark", "TrainingBenchmark"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "AsyncGeneration",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Generation",
    "InferenceBenchmark",
    "InternalError",
    "InvalidArgument",
    "NanoGPTError",
    "NotFound",
    "ResourceExhausted",
    "TrainingBenchmark",
    "Unavailable",
    "Unimplemented",
    "Violation",
]


def __getattr__(name: str) -> object:
    """Imports an exported name on first use: https://peps.python.org/pep-0562/"""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
