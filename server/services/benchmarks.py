"""Messages of Benchmark <-> loads and results."""

from dataclasses import asdict
from typing import Any

from google.protobuf.message import Message

from nanogpt.option import InvalidConfig, Violation
from protos.nanogpt.v1 import inference_pb2 as pb
from server.benchmark.inference import DeviceInfo, InferenceLoad, InferenceResult
from server.benchmark.training import TrainingResult
from server.errors import InvalidArgument
from server.services.scalars import decimal


def inference_load_from_pb(message: pb.InferenceBenchmark) -> InferenceLoad:
    """The load, defaults filled in. Raises InvalidArgument naming every field that is wrong."""
    values = _set_fields(message)
    values.pop("model", None)
    if "concurrency" in values:
        values["concurrency"] = tuple(values["concurrency"])
    try:
        return InferenceLoad(**values)
    except InvalidConfig as error:
        raise invalid("inference", error) from None


def training_values_from_pb(message: pb.TrainingBenchmark) -> dict[str, Any]:
    """The fields that are set."""
    values = _set_fields(message)
    if "dropout" in values:
        values["dropout"] = decimal(values["dropout"])
    return values


def inference_result_to_pb(result: InferenceResult) -> pb.InferenceResult:
    return pb.InferenceResult(**_messages(result))


def training_result_to_pb(result: TrainingResult) -> pb.TrainingResult:
    return pb.TrainingResult(**_messages(result))


def device_to_pb(device: DeviceInfo) -> pb.Device:
    return pb.Device(**asdict(device))


def invalid(path: str, error: InvalidConfig) -> InvalidArgument:
    """The violations of a part of the request, at their place in the whole."""
    return InvalidArgument(
        [Violation(f"{path}.{found.field}", found.description) for found in error.violations]
    )


def _set_fields(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _messages(result: InferenceResult | TrainingResult) -> dict[str, Any]:
    """The fields of a result, by name; None stays unset."""
    return {
        name: pb.Percentiles(**value) if isinstance(value, dict) else value
        for name, value in asdict(result).items()
    }
