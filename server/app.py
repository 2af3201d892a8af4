"""The whole server: everything is built here once, and stopped here in reverse.

    app = await App.start(Settings(grpc_address="127.0.0.1:0"))
    ...  # app.grpc_port, app.http_port
    await app.stop()

So stopping means, in this order: health says NOT_SERVING; new work is refused; the trainer saves a
checkpoint and leaves; running calls get the rest of the grace; engines end what still generates;
the gRPC listener, HTTP and database close.
"""

import asyncio
import logging
import platform
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Self

import grpc
import torch
from grpc_health.v1.health_pb2_grpc import (  # type: ignore[import-untyped]
    add_HealthServicer_to_server,
)

from nanogpt.device import device_name, pick_device
from protos.nanogpt.v1.datasets_pb2_grpc import add_DatasetServiceServicer_to_server
from protos.nanogpt.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from protos.nanogpt.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from protos.nanogpt.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server
from server.benchmark.training import TrainingBenchmark
from server.data_dir import claim
from server.dataset_store import DatasetStore
from server.device_memory import device_memory_bytes
from server.errors import CannotStart, ServiceError
from server.gate import Gate
from server.grpc_server import bind, create_server, enable_reflection
from server.health import Health
from server.interceptors import interceptor_chain
from server.jobs.launcher import Launcher, Launchers, LocalLauncher
from server.jobs.ray_launcher import RayJobs, RayLauncher
from server.jobs.service import JobService
from server.metrics import Metrics
from server.models.kernels import Kernels
from server.models.monitor import ServingMonitor
from server.models.store import ModelStore
from server.pulse import beat
from server.services.datasets import DatasetService
from server.services.health import HealthService
from server.services.inference import InferenceService
from server.services.models import ModelService
from server.services.training import TrainingService
from server.settings import Settings, is_loopback, split_address
from server.version import version
from server.web.api.checkpoints import CheckpointsApi
from server.web.api.datasets import DatasetsApi
from server.web.api.form import form_routes
from server.web.api.generation import GenerationApi
from server.web.api.jobs import JobsApi
from server.web.api.models import ModelsApi
from server.web.api.serving import ServingApi
from server.web.api.session import SessionApi
from server.web.assets import asset_routes
from server.web.http_server import HttpServer
from server.web.probes import probe_routes
from server.web.site import create_site

logger = logging.getLogger(__name__)

INFERENCE = "nanogpt.v1.InferenceService"
SERVICES = (
    INFERENCE,
    "nanogpt.v1.TrainingService",
    "nanogpt.v1.ModelService",
    "nanogpt.v1.DatasetService",
)
HEALTH = "grpc.health.v1.Health"

LAST_WORDS_SECONDS = 1.0
"""How long calls may take to send what they end with, once the grace is over."""

CLEAN_UP_SECONDS = 5.0
"""How long handlers may take to clean up once the end of the grace has cancelled them."""


class Grace:
    """The time that stopping may take, shared by all that take part in it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = 0.0

    def begin(self) -> None:
        self._end = time.monotonic() + self._seconds

    @property
    def left_seconds(self) -> float:
        return max(0.0, self._end - time.monotonic())


class App:
    """A running server. Create with `start`."""

    def __init__(self, settings: Settings) -> None:
        """Raises CannotStart if the machine lacks the device."""
        try:
            self.device = pick_device(settings.device)
        except ValueError as error:
            raise CannotStart(str(error)) from None
        self.settings = settings
        self.metrics = Metrics()
        self.health = Health(SERVICES)
        self.grpc_port = 0
        self.http_port = 0
        self._gate = Gate()
        self._grace = Grace(settings.drain_seconds)
        self._on_stop = AsyncExitStack()  # each part says how it stops when it starts

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """A server that answers; readiness follows once the models to load at start are loaded.

        Raises CannotStart.
        """
        app = cls(settings)
        try:
            await app._start()
        except BaseException:
            await app._on_stop.aclose()
            raise
        return app

    async def stop(self) -> None:
        """Stops everything, in at most `drain_seconds` and a little. Once is enough.

        Only imports under way may take longer: until then the data folder is not let go.
        """
        self._grace.begin()
        await self._on_stop.aclose()

    async def _start(self) -> None:
        with self._timed("stores"):
            await self._open_stores()
        with self._timed("listen"):
            await self._start_http()
            await self._start_grpc()
        self._describe()
        self.jobs.start()
        self._on_stop.push_async_callback(lambda: self.jobs.drain(self._grace.left_seconds))
        self._on_stop.callback(self.monitor.close)
        self._on_stop.callback(self._gate.close)
        self._on_stop.callback(self.health.drain)
        for name in ("", *SERVICES):
            self.health.set(name, True)
        self._run(self._beat)
        self._run(self._load_models)
        self._run(self.models.adopt_kernels)

    async def _open_stores(self) -> None:
        settings = self.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._on_stop.enter_context(claim(settings.data_dir))
        uses_kernels = settings.kernels != "torch" and self.device.type == "cpu"
        kernels = Kernels(settings.data_dir / "kernels" if uses_kernels else None)
        self._on_stop.push_async_callback(asyncio.to_thread, kernels.close)
        if settings.kernels == "native" and await kernels.made() is None:
            raise CannotStart(f"there are no native kernels for {self.device.type} here")
        try:
            self.datasets = DatasetStore(
                settings.data_dir,
                max_upload_bytes=settings.max_upload_bytes,
                max_datasets_bytes=settings.max_datasets_bytes,
                in_use=lambda: self.jobs.datasets_in_use(),
            )
            self.models = ModelStore(
                settings.data_dir,
                datasets=self.datasets,
                models_in_training=lambda: self.jobs.models_in_training(),
                metrics=self.metrics,
                memory_bytes=settings.model_memory_bytes,
                num_slots=settings.num_slots,
                max_waiting=settings.max_waiting_requests,
                max_waiting_tokens=settings.max_waiting_tokens,
                device=settings.device,
                precision=settings.precision,
                kernels=kernels,
                batch_invariant=settings.batch_invariant == "on",
            )
            self.monitor = ServingMonitor(lambda: self.models.in_memory)
            self.jobs = await JobService.open(
                settings.data_dir,
                datasets=self.datasets,
                models=self.models,
                launcher=_launchers(settings),
                loaded_folders=self.models.loaded_folders,
                metrics=self.metrics,
                max_queued_jobs=settings.max_queued_jobs,
                max_crashes=settings.max_crashes,
                max_backoff_seconds=settings.max_backoff_seconds,
                max_running_jobs=settings.max_running_jobs,
            )
        except ServiceError as error:
            raise CannotStart(error.message) from error
        except (OSError, sqlite3.OperationalError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise CannotStart(
                f"cannot open what is in the data folder {settings.data_dir}: {cause}; this user "
                "must be able to write to all of it, its disk needs room, and no other program may "
                "have jobs.sqlite open"
            ) from error
        self._on_stop.push_async_callback(self.jobs.close)

    async def _start_http(self) -> None:
        settings, health = self.settings, self.health
        host, port = split_address(settings.http_address)
        token = settings.http_token.get_secret_value() if settings.http_token else None
        routes = [
            *probe_routes(self.metrics.registry, health),
            *SessionApi(token, self._about).routes(),
            *JobsApi(self.jobs, self.datasets, health).routes(),
            *CheckpointsApi(self.jobs).routes(),
            *ModelsApi(self.models, self._gate).routes(),
            *GenerationApi(self.models, self._gate, settings.max_deadline_seconds).routes(),
            *ServingApi(self.monitor).routes(),
            *DatasetsApi(self.datasets, self._gate, health, settings.max_upload_bytes).routes(),
            *form_routes(),
            *asset_routes(),
        ]
        self._http = await HttpServer.start(create_site(routes, host, token), host, port)
        if token is None and not is_loopback(host):
            logger.warning("the dashboard on %s is closed: set NANOGPT_HTTP_TOKEN to open it", host)
        self._on_stop.push_async_callback(self._http.stop)
        self.http_port = self._http.port

    async def _start_grpc(self) -> None:
        settings = self.settings
        chain = interceptor_chain(self.metrics, self._gate, settings.max_deadline_seconds)
        server = create_server(chain)
        inference = InferenceService(self.models, self._training_benchmark())
        add_InferenceServiceServicer_to_server(inference, server)
        add_TrainingServiceServicer_to_server(TrainingService(self.jobs, self.monitor), server)
        add_ModelServiceServicer_to_server(ModelService(self.models), server)
        add_DatasetServiceServicer_to_server(DatasetService(self.datasets), server)
        add_HealthServicer_to_server(HealthService(self.health), server)
        host, _ = split_address(settings.grpc_address)
        if settings.reflection == "on" or (settings.reflection == "auto" and is_loopback(host)):
            enable_reflection(server, (*SERVICES, HEALTH))
        self.grpc_port = bind(server, settings.grpc_address)
        await server.start()
        if not is_loopback(host):
            logger.warning("gRPC on %s asks for no credentials: trust its network", host)
        self._on_stop.push_async_callback(self.models.stop)
        self._on_stop.push_async_callback(self._handlers_ended)
        self._on_stop.push_async_callback(self._http.stop)  # both cancel what the grace did not see
        self._on_stop.push_async_callback(server.stop, LAST_WORDS_SECONDS)
        self._on_stop.push_async_callback(self.models.end_requests)
        # Only then does the listener close: until then the gate answers, and says why. One that
        # closes cancels calls that arrive in that moment, and their callers cannot know the reason.
        self._on_stop.push_async_callback(lambda: self._gate.work_done(self._grace.left_seconds))

    def _training_benchmark(self) -> TrainingBenchmark:
        return TrainingBenchmark(
            self.settings.data_dir,
            datasets=self.datasets,
            models_in_training=self.jobs.models_in_training,
            device=self.settings.device,
            threads=self.settings.threads,
        )

    async def _handlers_ended(self) -> None:
        try:
            await asyncio.wait_for(self._gate.idle(), CLEAN_UP_SECONDS)
        except TimeoutError:
            logger.warning("handlers still run %g s after they were cancelled", CLEAN_UP_SECONDS)

    async def _beat(self) -> None:
        await beat(
            self.metrics,
            self.health,
            lambda: self.models.heartbeat_age_seconds,
            names=("liveness", INFERENCE),
        )

    async def _load_models(self) -> None:
        """Loads what is to be loaded at start; without all of it the server is never ready."""
        loaded = True
        with self._timed("models"):
            for name in self.settings.load_models:
                try:
                    await self.models.load(name)
                except ServiceError as error:
                    logger.error("model %s is not loaded: %s", name, error.message)
                    loaded = False
        self.health.set("readiness", loaded)

    def _about(self) -> dict[str, Any]:
        """What the dashboard says about this server."""
        host, _ = split_address(self.settings.grpc_address)
        return {
            "version": version(),
            "grpc_address": f"[{host}]:{self.grpc_port}"
            if ":" in host
            else f"{host}:{self.grpc_port}",
            "device": self.device.type,
            "device_name": device_name(self.device),
        }

    def _describe(self) -> None:
        """Fills in the metrics that say what runs where."""
        self.metrics.build_info.info(
            {
                "version": version(),
                "python": platform.python_version(),
                "grpcio": grpc.__version__,
                "torch": str(torch.__version__),
            }
        )
        self.metrics.accelerator_info.info(
            {"device": self.device.type, "name": device_name(self.device)}
        )
        self.metrics.device_memory_bytes.set_function(lambda: device_memory_bytes(self.device))

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs something in the background until the server stops."""
        task = asyncio.create_task(_logged(work))

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._on_stop.push_async_callback(cancel)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.metrics.startup_time_seconds.labels(phase=phase).set(time.monotonic() - start)


def _launchers(settings: Settings) -> Launchers:
    """This machine, and a cluster if there is one."""
    found: dict[str, Launcher] = {
        "local": LocalLauncher(settings.threads, nice=settings.trainer_nice)
    }
    if settings.ray_address is not None:
        secret = settings.ray_token
        token = None if secret is None else secret.get_secret_value()
        found["ray"] = RayLauncher(RayJobs(settings.ray_address, token))
    return Launchers(found)


async def _logged(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:
        logger.exception("background work ended")
