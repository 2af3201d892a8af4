"""What tests of serving share: tiny checkpoints on disk, a model store, a server, conditions."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nanogpt.checkpoint import CheckpointMeta, read_meta, save_checkpoint, write_meta
from nanogpt.checkpoint_folder import drop_newer, step_folder
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.ensemble import make_network
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.inference.torch_runner import TorchRunner
from nanogpt.model import GPT
from nanogpt.tokenizer import CharTokenizer
from nanogpt.training.run_directory import RunDirectory, RunSpec
from protos.nanogpt.v1 import inference_pb2_grpc, models_pb2_grpc
from server.benchmark.training import TrainingBenchmark
from server.dataset_store import DatasetStore
from server.gate import Gate
from server.interceptors import interceptor_chain
from server.metrics import Metrics
from server.models.store import ModelStore
from server.services.inference import InferenceService
from server.services.models import ModelService
from server.serving.engine_thread import EngineThread

TOKENIZER = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")
CONFIG = ModelConfig(
    block_size=64, vocab_size=TOKENIZER.vocab_size, n_layer=2, n_head=4, n_embd=32, bias=False
)
LONG = 65536
"""Tokens of a request that outlives any test that does not cancel it."""


def tiny_model(seed: int = 0, config: ModelConfig = CONFIG) -> GPT:
    """A network of random weights, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT(config)


def tiny_runner(model: GPT | None = None, num_slots: int = 4) -> TorchRunner:
    """A runner of a tiny model."""
    return TorchRunner(model or tiny_model(), TOKENIZER.vocab_size, num_slots=num_slots)


def write_checkpoint(
    folder: Path,
    *,
    step: int = 10,
    seed: int = 0,
    job_id: str = "",
    rollbacks: int = 0,
    tokenizer=TOKENIZER,
    config: ModelConfig = CONFIG,
) -> None:
    meta = CheckpointMeta(
        step=step,
        model_config=config,
        tokenizer=tokenizer.to_json(),
        val_loss=4.0,
        create_time=time.time(),
        job_id=job_id,
        rollbacks=rollbacks,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_checkpoint(folder, meta, make_network(config).state_dict(), None)


def write_job_checkpoint(
    data_dir: Path, job_id: str, step: int, *, model: str = "trained", rollbacks: int = 0
) -> Path:
    """One checkpoint of a job, and the job's specification. The weights depend on the step and on
    how often the run has gone back."""
    run = RunDirectory(data_dir / "runs" / job_id)
    run.write_spec(RunSpec(job_id, model, "../../datasets/text", TrainConfig()))
    folder = step_folder(run.checkpoints_path, step)
    seed = step + 1000 * rollbacks
    write_checkpoint(folder, step=step, seed=seed, job_id=job_id, rollbacks=rollbacks)
    return folder


def go_back(data_dir: Path, job_id: str, step: int, *, rollbacks: int = 1) -> None:
    """Does to a job's checkpoints what its trainer does when it goes back to one of them."""
    checkpoints = RunDirectory(data_dir / "runs" / job_id).checkpoints_path
    drop_newer(checkpoints, step)
    folder = step_folder(checkpoints, step)
    write_meta(folder, replace(read_meta(folder), rollbacks=rollbacks))


def damage(folder: Path) -> None:
    """Flips a bit of a checkpoint's weights."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # others may share the file
    path.write_bytes(data)


async def nobody() -> set[str]:
    """No job trains."""
    return set()


def dataset_store(data_dir: Path) -> DatasetStore:
    return DatasetStore(data_dir, max_upload_bytes=1 << 20, in_use=nobody)


@asynccontextmanager
async def model_store(data_dir: Path, **options) -> AsyncIterator[ModelStore]:
    options = {"num_slots": 4, "max_waiting": 200, "memory_bytes": 1 << 30, **options}
    metrics = options.pop("metrics", None) or Metrics()
    store = ModelStore(
        data_dir,
        datasets=dataset_store(data_dir),
        models_in_training=options.pop("models_in_training", nobody),
        metrics=metrics,
        device="cpu",
        **options,
    )
    try:
        yield store
    finally:
        await store.stop()


class Served:
    """Stubs of a server in this process, and what is behind them."""

    def __init__(
        self, store: ModelStore, metrics: Metrics, address: str, channel: grpc.aio.Channel
    ) -> None:
        self.address = address
        self.store = store
        self.metrics = metrics
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.models = models_pb2_grpc.ModelServiceStub(channel)

    def load(self, model: str = "tiny") -> tuple[float, float, float]:
        """Running, waiting, share of the KV cache: the gauges of a model."""
        return gauges(self.metrics, model)


@asynccontextmanager
async def served(
    data_dir: Path,
    *,
    slow_reader_seconds: float = 30,
    queued_seconds: float = 10,
    max_deadline_seconds: float = 600,
    training_command=("false",),
    channel_options=(),
    models_in_training=nobody,
    **options,
) -> AsyncIterator[Served]:
    """A server on a free port, with the interceptors of the real one."""
    metrics = Metrics()
    gate = Gate()
    server = grpc.aio.server(interceptors=interceptor_chain(metrics, gate, max_deadline_seconds))
    async with model_store(
        data_dir, metrics=metrics, models_in_training=models_in_training, **options
    ) as store:
        training_benchmark = TrainingBenchmark(
            data_dir,
            datasets=dataset_store(data_dir),
            models_in_training=models_in_training,
            device="cpu",
            command=training_command,
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(
                store,
                training_benchmark,
                slow_reader_seconds=slow_reader_seconds,
                queued_seconds=queued_seconds,
            ),
            server,
        )
        models_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(store), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        # a channel of its own per server: grpc shares connections of equal channels otherwise
        own = [("grpc.use_local_subchannel_pool", 1), *channel_options]
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address, options=own) as channel:
            try:
                yield Served(store, metrics, address, channel)
            finally:
                await server.stop(0)
                await gate.idle()


def gauges(metrics: Metrics, model: str) -> tuple[float, float, float]:
    """Running, waiting, share of the KV cache."""
    return tuple(
        metrics.registry.get_sample_value(f"nanogpt_{name}", {"model": model})
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")
    )


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of one series, 0 if there is none yet."""
    return metrics.registry.get_sample_value(f"nanogpt_{name}", labels) or 0.0


def held_steps(thread: EngineThread, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The engine takes no step until this is set."""
    step, gate = thread._engine.step, threading.Event()

    def wait_and_step():
        assert gate.wait(20)
        return step()

    monkeypatch.setattr(thread._engine, "step", wait_and_step)
    return gate


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def request(
    id: str, tokens: int = 8, *, prompt: str = "once", num_samples: int = 1, **sampling
) -> Request:
    return Request(
        id,
        TOKENIZER.encode(prompt),
        SamplingParams(**sampling),
        StoppingParams(max_new_tokens=tokens),
        num_samples,
    )


async def refused(call) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def detail(error: grpc.aio.AioRpcError, kind):
    """The error's detail of one type of google.rpc.error_details, or None."""
    status = rpc_status.from_call(error)
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Field and description of all that is wrong with a request."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    found = detail(error, error_details_pb2.BadRequest)
    return {violation.field: violation.description for violation in found.field_violations}
