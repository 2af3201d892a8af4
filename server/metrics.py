"""Every Prometheus metric of the service, defined once.

Attributes carry the metric's name without the prefix `nanogpt_`:

    metrics.time_to_first_token_seconds.labels(model="tiny").observe(0.012)

One `Metrics` belongs to one server, with a registry of its own, so that several servers can live
in a process. It knows nothing about who feeds it. Names follow
https://prometheus.io/docs/practices/naming/, and labels have few values: never the id of a job,
never text of a request.
"""

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase


def geometric(first: float, count: int) -> tuple[float, ...]:
    """`count` bucket bounds from `first` on, each half as large again, of 4 significant digits."""
    return tuple(float(f"{first * 1.5**k:.4g}") for k in range(count))


TOKEN_SECONDS = geometric(0.00025, 26)
"""0.25 ms to 6.3 s. The customary buckets begin at 10 ms and show nothing of a small model."""

REQUEST_SECONDS = geometric(0.001, 32)
"""1 ms to 288 s."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
ITERATION_TOKENS = (1, 8, *(2**k for k in range(4, 15)))
JOB_SECONDS = tuple(4.0**k for k in range(12))
"""1 s to 48 days."""


M = TypeVar("M", bound=MetricWrapperBase)


class Metrics:
    """All metrics of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._of_a_model: list[MetricWrapperBase] = []
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._define_process()
        self._define_grpc()
        self._define_serving()
        self._define_training()

    def _define_process(self) -> None:
        self.build_info = self._info("build", "Versions of this build.")
        self.accelerator_info = self._info("accelerator", "The device that models run on.")
        self.device_memory_bytes = self._gauge(
            "device_memory_bytes", "Memory this process holds on its device."
        )
        self.startup_time_seconds = self._gauge(
            "startup_time_seconds", "Duration of each phase of the server's start.", "phase"
        )
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", TOKEN_SECONDS
        )

    def _define_grpc(self) -> None:
        # Names, labels and meaning of go-grpc-prometheus, so that stock dashboards work.
        method = ("grpc_type", "grpc_service", "grpc_method")
        self.grpc_server_started_total = Counter(
            "grpc_server_started_total", "Calls started.", method, registry=self.registry
        )
        self.grpc_server_handled_total = Counter(
            "grpc_server_handled_total",
            "Calls completed, by code.",
            (*method, "grpc_code"),
            registry=self.registry,
        )
        self.grpc_server_msg_received_total = Counter(
            "grpc_server_msg_received_total", "Messages received.", method, registry=self.registry
        )
        self.grpc_server_msg_sent_total = Counter(
            "grpc_server_msg_sent_total", "Messages sent.", method, registry=self.registry
        )
        self.grpc_server_handling_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of calls.",
            method,
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )

    def _define_serving(self) -> None:
        def tokens(name: str, help: str) -> Histogram:
            return self._histogram(name, help, TOKEN_SECONDS, "model")

        def requests(name: str, help: str) -> Histogram:
            return self._histogram(name, help, REQUEST_SECONDS, "model")

        # one observation per token: a gap that delivered n tokens counts n times gap / n
        self.inter_token_latency_seconds = tokens(
            "inter_token_latency_seconds", "Time between consecutive tokens of a request."
        )
        self.request_time_per_output_token_seconds = tokens(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, one observation per request.",
        )
        self.time_to_first_token_seconds = requests(
            "time_to_first_token_seconds", "From receipt to the first token."
        )
        self.e2e_request_latency_seconds = requests(
            "e2e_request_latency_seconds", "From receipt to the last token."
        )
        self.request_queue_time_seconds = requests(
            "request_queue_time_seconds", "From receipt to entering the batch."
        )
        self.request_prefill_time_seconds = requests(
            "request_prefill_time_seconds", "From entering the batch to the first token."
        )
        self.request_decode_time_seconds = requests(
            "request_decode_time_seconds", "From the first token to the last."
        )
        self.batch_size = self._histogram(
            "batch_size", "Sequences in each forward pass.", BATCH_SIZES, "model"
        )
        self.iteration_tokens = self._histogram(
            "iteration_tokens", "Tokens in each forward pass.", ITERATION_TOKENS, "model"
        )
        self.num_requests_running = self._gauge(
            "num_requests_running", "Sequences being generated.", "model"
        )
        self.num_requests_waiting = self._gauge(
            "num_requests_waiting", "Sequences that wait for a slot.", "model"
        )
        self.kv_cache_usage_ratio = self._gauge(
            "kv_cache_usage_ratio", "Share of the KV cache in use.", "model"
        )
        self.weight_load_duration_seconds = self._gauge(
            "weight_load_duration_seconds", "Duration of the latest load.", "model"
        )
        self.weight_version_info = self._gauge(
            "weight_version_info", "1 for the weights in memory.", "model", "version"
        )
        self.prompt_tokens_total = self._counter(
            "prompt_tokens_total", "Prompt tokens processed.", "model"
        )
        self.prompt_tokens_cached_total = self._counter(
            "prompt_tokens_cached_total", "Prompt tokens that were not computed again.", "model"
        )
        self.prefix_cache_queries_total = self._counter(
            "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", "model"
        )
        self.prefix_cache_hits_total = self._counter(
            "prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", "model"
        )
        self.spec_decode_drafts_total = self._counter(
            "spec_decode_drafts_total", "Times that tokens were guessed ahead.", "model"
        )
        self.spec_decode_draft_tokens_total = self._counter(
            "spec_decode_draft_tokens_total", "Tokens guessed ahead.", "model"
        )
        self.spec_decode_accepted_tokens_total = self._counter(
            "spec_decode_accepted_tokens_total", "Tokens guessed ahead and right.", "model"
        )
        self.generation_tokens_total = self._counter(
            "generation_tokens_total", "Tokens sampled.", "model"
        )
        self.request_finished_total = self._counter(
            "request_finished_total",
            "Samples finished: length, end_of_text, stop.",
            "model",
            "finish_reason",
        )
        self.requests_rejected_total = self._counter(
            "requests_rejected_total",
            "Requests not answered: queue_full, deadline, validation, draining, cancelled, "
            "slow_reader, failed.",
            "model",
            "reason",
        )

    def _define_training(self) -> None:
        self.train_jobs = self._gauge("train_jobs", "Jobs in each state.", "state")
        self.train_queue_depth = self._gauge("train_queue_depth", "Jobs that wait for their turn.")
        self.train_steps_total = self._counter("train_steps_total", "Optimizer updates done.")
        self.train_tokens_total = self._counter("train_tokens_total", "Tokens trained on.")
        self.train_tokens_per_second = self._unknown_gauge(
            "train_tokens_per_second", "Training tokens per second of the running jobs together."
        )
        self.train_mfu_ratio = self._unknown_gauge(
            "train_mfu_ratio", "Share of the device's peak FLOP/s that the running jobs use."
        )
        self.train_step_seconds = self._histogram(
            "train_step_seconds", "Duration of optimizer updates.", REQUEST_SECONDS
        )
        self.train_loss = self._unknown_gauge("train_loss", "Loss of the latest step, in nats.")
        self.train_learning_rate = self._unknown_gauge(
            "train_learning_rate", "Learning rate of the latest step."
        )
        self.train_grad_norm = self._unknown_gauge(
            "train_grad_norm", "Norm of the latest gradient before clipping."
        )
        self.train_last_step_timestamp_seconds = self._unknown_gauge(
            "train_last_step_timestamp_seconds", "When the latest step event was written."
        )
        self.train_checkpoint_last_success_timestamp_seconds = self._unknown_gauge(
            "train_checkpoint_last_success_timestamp_seconds",
            "When the latest checkpoint was written.",
        )
        self.train_job_duration_seconds = self._histogram(
            "train_job_duration_seconds",
            "From first start to end: succeeded, failed, cancelled.",
            JOB_SECONDS,
            "outcome",
        )

    def forget_model(self, model: str) -> None:
        """Drops every series of a model that is no longer in memory."""
        for metric in self._of_a_model:
            metric.remove_by_labels({"model": model})

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return self._kept(Counter(f"nanogpt_{name}", help, labels, registry=self.registry), labels)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return self._kept(Gauge(f"nanogpt_{name}", help, labels, registry=self.registry), labels)

    def _histogram(self, name: str, help: str, buckets: Iterable[float], *labels: str) -> Histogram:
        bounds = tuple(buckets)
        histogram = Histogram(
            f"nanogpt_{name}", help, labels, buckets=bounds, registry=self.registry
        )
        return self._kept(histogram, labels)

    def _info(self, name: str, help: str) -> Info:
        return Info(f"nanogpt_{name}", help, registry=self.registry)

    def _unknown_gauge(self, name: str, help: str) -> Gauge:
        """A gauge that reads NaN until it is first set: unknown is not zero."""
        gauge = self._gauge(name, help)
        gauge.set(float("nan"))
        return gauge

    def _kept(self, metric: M, labels: tuple[str, ...]) -> M:
        """The metric, remembered if its series end with a model."""
        if "model" in labels:
            self._of_a_model.append(metric)
        return metric
