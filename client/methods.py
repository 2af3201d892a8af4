"""The RPCs of nanogpt.v1 in one table: messages, deadline, and which may be sent again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from protos.nanogpt.v1 import datasets_pb2 as datasets
from protos.nanogpt.v1 import inference_pb2 as inference
from protos.nanogpt.v1 import models_pb2 as models
from protos.nanogpt.v1 import training_pb2 as training

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call to make: which RPC, with what, and what the caller gets of each response."""

    method: "Method[Any, Any]"
    request: Message
    unpack: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One RPC. Each proto file has one service, each RPC a request of its own name."""

    request: type[Request]
    response: type[Response]
    deadline_seconds: float
    """Unless the client was given another."""
    is_repeatable: bool = False
    """Whether a second one changes nothing: reading, and Train, which carries a request id."""

    def call(self, request: Request, unpack: Callable[[Response], T]) -> Call[T]:
        return Call(self, request, unpack)

    @property
    def service(self) -> str:
        """Full name, such as `nanogpt.v1.TrainingService`."""
        (service,) = self.request.DESCRIPTOR.file.services_by_name.values()
        return str(service.full_name)

    @property
    def name(self) -> str:
        """Name within its service, such as `GetJob`."""
        return self.request.DESCRIPTOR.name.removesuffix("Request")

    @property
    def path(self) -> str:
        """Name on the wire, such as `/nanogpt.v1.TrainingService/GetJob`."""
        return f"/{self.service}/{self.name}"

    @property
    def request_serializer(self) -> Callable[[Request], bytes]:
        return self.request.SerializeToString

    @property
    def response_deserializer(self) -> Callable[[bytes], Response]:
        return self.response.FromString


_QUICK = 10.0  # seconds; answered from memory or a small file
_PLAIN = 30.0  # changes something small
_HEAVY = 600.0  # generates, or reads weights
_LONG = 86_400.0  # takes as much as the caller asks for, or as long as a job does

GENERATE = Method(inference.GenerateRequest, inference.GenerateResponse, _HEAVY)
BENCHMARK = Method(inference.BenchmarkRequest, inference.BenchmarkResponse, _LONG)
TOKENIZE = Method(inference.TokenizeRequest, inference.TokenizeResponse, _HEAVY, is_repeatable=True)
DETOKENIZE = Method(
    inference.DetokenizeRequest, inference.DetokenizeResponse, _HEAVY, is_repeatable=True
)
SCORE = Method(inference.ScoreRequest, inference.ScoreResponse, _HEAVY, is_repeatable=True)

TRAIN = Method(training.TrainRequest, training.TrainResponse, _HEAVY, is_repeatable=True)
STREAM_METRICS = Method(training.StreamMetricsRequest, training.StreamMetricsResponse, _LONG)
GET_JOB = Method(training.GetJobRequest, training.GetJobResponse, _QUICK, is_repeatable=True)
LIST_JOBS = Method(training.ListJobsRequest, training.ListJobsResponse, _QUICK, is_repeatable=True)
CANCEL_JOB = Method(training.CancelJobRequest, training.CancelJobResponse, _PLAIN)
PAUSE_JOB = Method(training.PauseJobRequest, training.PauseJobResponse, _PLAIN)
RESUME_JOB = Method(training.ResumeJobRequest, training.ResumeJobResponse, _PLAIN)
LIST_CHECKPOINTS = Method(
    training.ListCheckpointsRequest, training.ListCheckpointsResponse, _QUICK, is_repeatable=True
)
PIN_CHECKPOINT = Method(training.PinCheckpointRequest, training.PinCheckpointResponse, _PLAIN)
DELETE_CHECKPOINT = Method(
    training.DeleteCheckpointRequest, training.DeleteCheckpointResponse, _PLAIN
)
STREAM_LOGS = Method(training.StreamLogsRequest, training.StreamLogsResponse, _LONG)

LIST_MODELS = Method(
    models.ListModelsRequest, models.ListModelsResponse, _QUICK, is_repeatable=True
)
GET_MODEL = Method(models.GetModelRequest, models.GetModelResponse, _QUICK, is_repeatable=True)
LOAD_MODEL = Method(models.LoadModelRequest, models.LoadModelResponse, _HEAVY)
UNLOAD_MODEL = Method(models.UnloadModelRequest, models.UnloadModelResponse, _HEAVY)
DELETE_MODEL = Method(models.DeleteModelRequest, models.DeleteModelResponse, _PLAIN)
IMPORT_MODEL = Method(models.ImportModelRequest, models.ImportModelResponse, _HEAVY)
EXPORT_MODEL = Method(models.ExportModelRequest, models.ExportModelResponse, _LONG)

CREATE_DATASET = Method(datasets.CreateDatasetRequest, datasets.CreateDatasetResponse, _LONG)
GET_DATASET = Method(
    datasets.GetDatasetRequest, datasets.GetDatasetResponse, _QUICK, is_repeatable=True
)
LIST_DATASETS = Method(
    datasets.ListDatasetsRequest, datasets.ListDatasetsResponse, _QUICK, is_repeatable=True
)
DELETE_DATASET = Method(datasets.DeleteDatasetRequest, datasets.DeleteDatasetResponse, _PLAIN)
