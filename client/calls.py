"""What a client can ask for, once for both clients: plain arguments in, a call to make out.

Each function makes one RPC, whose errors, ranges and defaults are in protos/nanogpt/v1/, and is a
method of Client and AsyncClient, but for jobs_page and export_pieces, of which they make jobs and
export_model. Generating, watching and uploading take more than one call or one message, so the
clients have those themselves.
"""

from collections.abc import Sequence

from client import methods as rpc
from client.methods import Call
from client.requests import ConfigValue, score_request, train_request
from protos.nanogpt.v1.datasets_pb2 import (
    Dataset,
    DeleteDatasetRequest,
    GetDatasetRequest,
    ListDatasetsRequest,
    ListDatasetsResponse,
)
from protos.nanogpt.v1.inference_pb2 import (
    BenchmarkRequest,
    BenchmarkResponse,
    DetokenizeRequest,
    InferenceBenchmark,
    ScoreResponse,
    TokenizeRequest,
    TrainingBenchmark,
)
from protos.nanogpt.v1.models_pb2 import (
    DeleteModelRequest,
    ExportModelRequest,
    ExportModelResponse,
    GetModelRequest,
    ImportModelRequest,
    ListModelsRequest,
    LoadModelRequest,
    Model,
    UnloadModelRequest,
)
from protos.nanogpt.v1.training_pb2 import (
    CancelJobRequest,
    Checkpoint,
    DeleteCheckpointRequest,
    GetJobRequest,
    Job,
    ListCheckpointsRequest,
    ListJobsRequest,
    ListJobsResponse,
    PauseJobRequest,
    PinCheckpointRequest,
    ResumeJobRequest,
)

# Inference


def tokenize(text: str, *, model: str = "") -> Call[list[int]]:
    """Token ids of a text."""
    request = TokenizeRequest(model=model, text=text)
    return rpc.TOKENIZE.call(request, lambda response: list(response.token_ids))


def detokenize(token_ids: Sequence[int], *, model: str = "") -> Call[str]:
    """Text of token ids."""
    request = DetokenizeRequest(model=model, token_ids=token_ids)
    return rpc.DETOKENIZE.call(request, lambda response: response.text)


def score(
    text: str | Sequence[int], *, model: str = "", top_logprobs: int | None = None
) -> Call[ScoreResponse]:
    """Log-probability of each token of a text, or of token ids, and the likeliest in its place."""
    return rpc.SCORE.call(score_request(text, model, top_logprobs), lambda response: response)


def benchmark_inference(target: InferenceBenchmark) -> Call[BenchmarkResponse]:
    """Latency and throughput of a model, one response for each concurrency."""
    return rpc.BENCHMARK.call(BenchmarkRequest(inference=target), lambda response: response)


def benchmark_training(target: TrainingBenchmark) -> Call[BenchmarkResponse]:
    """Duration of a training step."""
    return rpc.BENCHMARK.call(BenchmarkRequest(training=target), lambda response: response)


# Training


def train(
    dataset: str = "",
    *,
    model: str = "",
    preset: str = "",
    request_id: str = "",
    priority: int | None = None,
    **config: ConfigValue,
) -> Call[Job]:
    """Queues a job and returns it at once. `config` has fields of TrainConfig, else ValueError.

    The lowest `priority` goes first.
    """
    request = train_request(dataset, model, preset, request_id, priority, config)
    return rpc.TRAIN.call(request, lambda response: response.job)


def job(job_id: str) -> Call[Job]:
    """One job."""
    return rpc.GET_JOB.call(GetJobRequest(id=job_id), lambda response: response.job)


def jobs_page(page_token: str = "") -> Call[ListJobsResponse]:
    """One page of jobs, newest first."""
    return rpc.LIST_JOBS.call(ListJobsRequest(page_token=page_token), lambda response: response)


def cancel(job_id: str) -> Call[Job]:
    """Asks a job to stop after its current step, keeping a checkpoint."""
    return rpc.CANCEL_JOB.call(CancelJobRequest(id=job_id), lambda response: response.job)


def pause(job_id: str) -> Call[Job]:
    """Asks a job to write a checkpoint and free the device."""
    return rpc.PAUSE_JOB.call(PauseJobRequest(id=job_id), lambda response: response.job)


def resume(job_id: str) -> Call[Job]:
    """Puts a paused job back into the queue."""
    return rpc.RESUME_JOB.call(ResumeJobRequest(id=job_id), lambda response: response.job)


def checkpoints(job_id: str) -> Call[list[Checkpoint]]:
    """A job's checkpoints on disk, newest first."""
    request = ListCheckpointsRequest(job_id=job_id)
    return rpc.LIST_CHECKPOINTS.call(request, lambda response: list(response.checkpoints))


def pin(job_id: str, step: int) -> Call[Checkpoint]:
    """Keeps a checkpoint until it is unpinned."""
    request = PinCheckpointRequest(job_id=job_id, step=step)
    return rpc.PIN_CHECKPOINT.call(request, lambda response: response.checkpoint)


def unpin(job_id: str, step: int) -> Call[Checkpoint]:
    """Lets a checkpoint go again."""
    request = PinCheckpointRequest(job_id=job_id, step=step, pinned=False)
    return rpc.PIN_CHECKPOINT.call(request, lambda response: response.checkpoint)


def delete_checkpoint(job_id: str, step: int) -> Call[None]:
    """Deletes a checkpoint."""
    request = DeleteCheckpointRequest(job_id=job_id, step=step)
    return rpc.DELETE_CHECKPOINT.call(request, lambda _: None)


# Models


def models() -> Call[list[Model]]:
    """Every model on disk, newest first."""
    return rpc.LIST_MODELS.call(ListModelsRequest(), lambda response: list(response.models))


def model(name: str) -> Call[Model]:
    """One model."""
    return rpc.GET_MODEL.call(GetModelRequest(name=name), lambda response: response.model)


def load(name: str, *, precision: str = "") -> Call[Model]:
    """Loads a model and keeps it in memory; returns once it can generate.

    `precision` is "float32", "bfloat16", "int8" or "int4"; the server's setting if it is empty.
    """
    request = LoadModelRequest(name=name, precision=precision)
    return rpc.LOAD_MODEL.call(request, lambda response: response.model)


def unload(name: str) -> Call[Model]:
    """Frees a model's memory once its running requests have finished."""
    return rpc.UNLOAD_MODEL.call(UnloadModelRequest(name=name), lambda response: response.model)


def delete_model(name: str) -> Call[None]:
    """Deletes a model's files."""
    return rpc.DELETE_MODEL.call(DeleteModelRequest(name=name), lambda _: None)


def import_model(name: str, source: str, format: str, *, dataset: str = "") -> Call[Model]:
    """Makes a model of the files in the server's folder imports/`source`.

    `format` is "hugging_face" or "nanogpt". `dataset` lends its characters; GPT-2's tokenizer if
    it is empty.
    """
    request = ImportModelRequest(
        name=name, source=source, format=_model_format(format), dataset=dataset
    )
    return rpc.IMPORT_MODEL.call(request, lambda response: response.model)


def export_pieces(name: str, format: str) -> Call[ExportModelResponse]:
    """A model's files in another format, in pieces, one file after another."""
    request = ExportModelRequest(name=name, format=_model_format(format))
    return rpc.EXPORT_MODEL.call(request, lambda response: response)


def _model_format(word: str) -> str:
    """The name on the wire of `hugging_face`; the message refuses one that does not exist."""
    return f"MODEL_FORMAT_{word.upper()}"


# Datasets


def dataset(name: str) -> Call[Dataset]:
    """One dataset."""
    return rpc.GET_DATASET.call(GetDatasetRequest(name=name), lambda response: response.dataset)


def datasets() -> Call[ListDatasetsResponse]:
    """Datasets that jobs can use, that are being made, and that need no upload."""
    return rpc.LIST_DATASETS.call(ListDatasetsRequest(), lambda response: response)


def delete_dataset(name: str) -> Call[None]:
    """Deletes a dataset."""
    return rpc.DELETE_DATASET.call(DeleteDatasetRequest(name=name), lambda _: None)
