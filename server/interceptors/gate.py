"""Lets calls in until the server drains, and knows which still run."""

import asyncio
from typing import Any

from server.errors import Unavailable
from server.interceptors.call import Call, CallInterceptor

WORK = frozenset(
    {
        "/nanogpt.v1.DatasetService/CreateDataset",
        "/nanogpt.v1.InferenceService/Benchmark",
        "/nanogpt.v1.InferenceService/Generate",
        "/nanogpt.v1.ModelService/ExportModel",
        "/nanogpt.v1.ModelService/ImportModel",
        "/nanogpt.v1.ModelService/LoadModel",
        "/nanogpt.v1.TrainingService/ResumeJob",
        "/nanogpt.v1.TrainingService/StreamLogs",
        "/nanogpt.v1.TrainingService/StreamMetrics",
        "/nanogpt.v1.TrainingService/Train",
    }
)
"""Methods that a closed gate refuses: they start something, or would not end by themselves."""


class Gate(CallInterceptor):
    """Refuses new work once closed; looking and cancelling go on until the server has stopped."""

    def __init__(self) -> None:
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()
        self._working: set[asyncio.Task[Any]] = set()
        """Those of `_running` that do work."""

    async def around(self, call: Call) -> Any:
        if self._closed and call.method in WORK:
            raise Unavailable("the server is stopping; try another one, or later")
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        if call.method in WORK:
            self._working.add(task)
        try:
            return await call.proceed()
        finally:
            self._running.discard(task)
            self._working.discard(task)

    def close(self) -> None:
        """From now on, work is refused."""
        self._closed = True

    async def work_done(self, seconds: float) -> None:
        """Returns once no handler does work, or after `seconds`. Close the gate first."""
        if self._working:
            await asyncio.wait(self._working, timeout=seconds)

    async def idle(self) -> None:
        """Returns once no handler runs, also those that `grpc.aio.Server.stop` does not await.

        https://github.com/grpc/grpc/issues/37239
        """
        if self._running:
            await asyncio.wait(self._running)
