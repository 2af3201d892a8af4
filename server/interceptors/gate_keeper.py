"""Leads every call through the gate: those that work only while it is open."""

from typing import Any

from server.gate import Gate
from server.interceptors.call import Call, CallInterceptor

WORK = frozenset(
    {
        "/nanogpt.v1.DatasetService/CreateDataset",
        "/nanogpt.v1.InferenceService/Benchmark",
        "/nanogpt.v1.InferenceService/Generate",
        "/nanogpt.v1.InferenceService/Score",
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


class GateKeeper(CallInterceptor):
    """Refuses work once the gate is closed, and lets it know which calls still run."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def around(self, call: Call) -> Any:
        with self._gate.passing(is_work=call.method in WORK):
            return await call.proceed()
