"""Keeps the serving metrics of one engine: latencies, tokens, batches, queue.

Gauges move by differences, because two versions of one model share a label while new weights
replace old ones; both add up, and an idle engine adds exactly 0.
"""

from collections import Counter

from nanogpt.inference.events import Delta, StepResult
from nanogpt.inference.request import Request
from server.metrics import Metrics
from server.serving.figures import Meter
from server.serving.request_stream import RequestClock

KV_USAGE_GRAIN = 1 << 20
"""KV usage is rounded to a multiple of 2**-20: differences of such numbers are exact in binary, so
they add up to exactly 0."""


class ServingRecord:
    """Metrics of one engine, under its model's name."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._running = metrics.num_requests_running.labels(model=model)
        self._waiting = metrics.num_requests_waiting.labels(model=model)
        self._kv_usage = metrics.kv_cache_usage_ratio.labels(model=model)
        self._inter_token_latency = metrics.inter_token_latency_seconds.labels(model=model)
        self._generation_tokens = metrics.generation_tokens_total.labels(model=model)
        self._batch_size = metrics.batch_size.labels(model=model)
        self._iteration_tokens = metrics.iteration_tokens.labels(model=model)
        self._load = (0, 0, 0.0)
        self._num_tokens = 0
        """That came with the step at hand."""
        self._gaps: Counter[float] = Counter()
        """How many of them came after how many seconds: most streams wait equally long."""
        self.meter = Meter()

    def load(self, running: int, waiting: int, kv_usage: float) -> None:
        """What the engine holds now: sequences in the batch, in the queue, share of the cache."""
        now = (running, waiting, round(kv_usage * KV_USAGE_GRAIN) / KV_USAGE_GRAIN)
        for gauge, old, new in zip(
            (self._running, self._waiting, self._kv_usage), self._load, now, strict=True
        ):
            if new != old:
                gauge.inc(new - old)
        self._load = now
        self.meter.load = (running, waiting, kv_usage)

    def step(self, result: StepResult, now: float) -> None:
        """One forward pass, over now, and the tokens that it brought."""
        self._batch_size.observe(result.batch_size)
        self._iteration_tokens.observe(result.num_tokens)
        self._generation_tokens.inc(self._num_tokens)
        self.meter.generated_tokens += self._num_tokens
        self._num_tokens = 0
        for gap, num_tokens in self._gaps.items():
            self.meter.inter_token_latency.add(gap, now, num_tokens)
            for _ in range(num_tokens):
                self._inter_token_latency.observe(gap)
        self._gaps.clear()
        if result.drafts:
            metrics, model = self._metrics, self._model
            for counter, count in (
                (metrics.spec_decode_drafts_total, result.drafts),
                (metrics.spec_decode_draft_tokens_total, result.drafted_tokens),
                (metrics.spec_decode_accepted_tokens_total, result.accepted_tokens),
            ):
                counter.labels(model=model).inc(count)

    def rejected(self, reason: str) -> None:
        """A request got no whole answer, for `reason`."""
        self._metrics.requests_rejected_total.labels(model=self._model, reason=reason).inc()

    def started(self, clock: RequestClock, prompt_tokens: int) -> None:
        """A request left the queue."""
        self._metrics.request_queue_time_seconds.labels(model=self._model).observe(
            clock.started_at - clock.received_at
        )
        self._metrics.prompt_tokens_total.labels(model=self._model).inc(prompt_tokens)
        self.meter.prompt_tokens += prompt_tokens

    def prefilled(self, request: Request, cached_tokens: int) -> None:
        """A prompt was computed, but for what the prefix cache held of it."""
        if request.may_reuse:
            looked_up = len(request.prompt_ids)
            self._metrics.prefix_cache_queries_total.labels(model=self._model).inc(looked_up)
            self._metrics.prefix_cache_hits_total.labels(model=self._model).inc(cached_tokens)
            self._metrics.prompt_tokens_cached_total.labels(model=self._model).inc(cached_tokens)
            self.meter.looked_up_tokens += looked_up
            self.meter.cached_tokens += cached_tokens

    def tokens(self, clock: RequestClock, delta: Delta, now: float) -> None:
        """Tokens of one sample came with the step that `step` is told of next."""
        num_tokens = len(delta.token_ids)
        self._num_tokens += num_tokens
        gap = clock.samples[delta.sample_index].count(num_tokens, now)
        if gap is not None:
            self._gaps[gap / num_tokens] += num_tokens
        elif clock.num_tokens == num_tokens:  # of all samples the first
            model = self._model
            self.meter.time_to_first_token.add(now - clock.received_at, now)
            self._metrics.time_to_first_token_seconds.labels(model=model).observe(
                now - clock.received_at
            )
            self._metrics.request_prefill_time_seconds.labels(model=model).observe(
                now - clock.started_at
            )

    def sample_finished(self, reason: str) -> None:
        """A sample is complete: `length`, `end_of_text` or `stop`."""
        self._metrics.request_finished_total.labels(model=self._model, finish_reason=reason).inc()

    def completed(self, clock: RequestClock) -> None:
        """All samples of a request are complete."""
        model, timings = self._model, clock.timings
        self._metrics.e2e_request_latency_seconds.labels(model=model).observe(timings.total_seconds)
        self._metrics.request_decode_time_seconds.labels(model=model).observe(
            timings.decode_seconds
        )
        per_token = self._metrics.request_time_per_output_token_seconds.labels(model=model)
        for sample in clock.samples:
            if sample.num_tokens > 1:
                decode_seconds = sample.last_token_at - sample.first_token_at
                per_token.observe(decode_seconds / (sample.num_tokens - 1))
