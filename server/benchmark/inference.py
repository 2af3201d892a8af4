"""Measures how fast a model generates, and what share of the device that is.

Requests are sent the way `Generate` sends them, so queueing and live traffic count. Greedy, with
end-of-text ignored, so that every request has the same length. They are sent in windows, as many
in each, until the last three agree; a single window is no evidence that a speed lasts. Knows
nothing about protobuf.
"""

import asyncio
import itertools
import random
import secrets
import statistics
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nanogpt.device import DTYPES, Peak, device_name, measure_peak
from nanogpt.flops import decode_bytes_per_step, mfu, request_flops
from nanogpt.inference.events import Delta
from nanogpt.inference.request import Request
from nanogpt.inference.sampling_params import SamplingParams, StoppingParams
from nanogpt.option import InvalidConfig, Violation, option, range_violations
from server.models.loaded import LoadedModel
from server.models.runners import Arithmetic, bytes_per_kv_value, bytes_per_weight
from server.serving.figures import Percentiles

WARM_UP_TOKENS = 8
MAX_LEVELS, MAX_CONCURRENCY = 16, 256

STABLE_WINDOWS, STABLE_RATIO = 3, 1.10
"""So many windows in a row, whose throughput and median latency differ by at most this factor, are
stable: perf_analyzer's rule.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/README.html
"""


@dataclass(frozen=True, slots=True)
class InferenceLoad:
    """Load to put on a model; fields are those of the message InferenceBenchmark."""

    concurrency: tuple[int, ...] = (1, 8)
    prompt_tokens: int = option(16, "Random tokens in each prompt.", ge=1)
    completion_tokens: int = option(64, "Tokens sampled by each request.", ge=2, le=4096)
    requests: int | None = option(None, "Requests in each window.", ge=1, le=10_000)
    seed: int = option(1337, "Seeds the prompts.", ge=0, lt=1 << 64)
    max_windows: int = option(1, "Most windows at each concurrency.", ge=1, le=100)
    time_to_first_token_objective_seconds: float | None = option(
        None, "Time to first token that counts as good.", gt=0
    )
    time_per_output_token_objective_seconds: float | None = option(
        None, "Mean time per token after the first that counts as good.", gt=0
    )

    def __post_init__(self) -> None:
        found = range_violations(self)
        if not 1 <= len(self.concurrency) <= MAX_LEVELS:
            problem = f"must have 1 to {MAX_LEVELS} entries, got {len(self.concurrency)}"
            found.append(Violation("concurrency", problem))
        for index, level in enumerate(self.concurrency):
            if not 1 <= level <= MAX_CONCURRENCY:
                problem = f"must be in [1, {MAX_CONCURRENCY}], got {level}"
                found.append(Violation(f"concurrency[{index}]", problem))
        if found:
            raise InvalidConfig(found)

    def check_fits(self, block_size: int, most_requests: int) -> None:
        """Raises InvalidConfig if a prompt would fill the model's window, or if more requests at a
        time are asked for than its queue ever takes."""
        found = [
            Violation(
                f"concurrency[{index}]",
                f"must be at most {most_requests}, as many requests as this server lets run and "
                f"wait at a time, got {level}",
            )
            for index, level in enumerate(self.concurrency)
            if level > most_requests
        ]
        if self.prompt_tokens >= block_size:
            problem = f"must be below block_size ({block_size}), got {self.prompt_tokens}"
            found.append(Violation("prompt_tokens", problem))
        if found:
            raise InvalidConfig(found)


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """What one concurrency gave; fields are those of the message of the same name."""

    model: str
    concurrency: int
    completed: int
    duration_seconds: float
    requests_per_second: float
    tokens_per_second: float
    time_to_first_token_seconds: Percentiles
    inter_token_latency_seconds: Percentiles
    mfu: float | None
    mbu: float | None
    time_per_output_token_seconds: Percentiles
    e2e_latency_seconds: Percentiles
    goodput_requests_per_second: float | None
    """Of requests that met every objective; None if there is none."""
    windows: int
    is_stable: bool | None
    """None if too few windows were asked for to tell."""
    precision: str


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a measurement ran on; fields are those of the message Device."""

    type: str
    name: str
    dtype: str
    threads: int
    peak_flops: float | None
    peak_bytes_per_second: float | None
    peak_source: str


@dataclass(frozen=True, slots=True)
class _Lap:
    """One request: seconds until its first token, and between its tokens."""

    first_token_seconds: float
    gaps: "array[float]"

    @property
    def seconds_per_token(self) -> float:
        """Mean time per token after the first."""
        return sum(self.gaps) / len(self.gaps)

    @property
    def total_seconds(self) -> float:
        return self.first_token_seconds + sum(self.gaps)


@dataclass(frozen=True, slots=True)
class _Window:
    """All requests of one window, and how long it took to answer them."""

    laps: list[_Lap]
    seconds: float

    @property
    def requests_per_second(self) -> float:
        return len(self.laps) / self.seconds

    @property
    def median_latency(self) -> float:
        return statistics.median(lap.total_seconds for lap in self.laps)


class PeakMeter:
    """Knows how fast a device can be, after one measurement of each type off the event loop."""

    def __init__(self) -> None:
        self._peaks: dict[tuple[str, torch.dtype], Peak] = {}
        self._measuring = asyncio.Lock()

    async def peak(self, device: torch.device, arithmetic: Arithmetic) -> Peak:
        """Peaks of a device in this type; of integers that of reading memory alone."""
        if arithmetic == "integer":
            return replace(await self.peak(device, "float32"), flops=None)
        key = str(device), DTYPES[arithmetic]
        async with self._measuring:
            if key not in self._peaks:
                self._peaks[key] = await asyncio.to_thread(measure_peak, device, key[1])
        return self._peaks[key]


class InferenceBenchmark:
    """Puts a load on a model, one concurrency after another."""

    def __init__(self, model: LoadedModel, load: InferenceLoad, peak: Peak) -> None:
        """The load must fit the model."""
        self._model = model
        self._load = load
        self._peak = peak

    @property
    def device(self) -> DeviceInfo:
        """What it runs on."""
        return DeviceInfo(
            type=self._model.device.type,
            name=device_name(self._model.device),
            dtype=self._model.arithmetic,
            threads=torch.get_num_threads(),
            peak_flops=self._peak.flops,
            peak_bytes_per_second=self._peak.bytes_per_second,
            peak_source=self._peak.source,
        )

    async def measure(self, concurrency: int) -> InferenceResult:
        """Sends windows of requests, `concurrency` at a time, after a warm-up that does not count.

        Raises as `EngineThread.submit`. Cancelling it cancels its requests.
        """
        load, prompts = self._load, self._prompts()
        warm_up = itertools.islice(prompts, concurrency)
        await self._run(concurrency, warm_up, min(WARM_UP_TOKENS, load.completion_tokens))
        windows: list[_Window] = []  # the last ones
        num_windows = 0
        while num_windows < load.max_windows and not await asyncio.to_thread(are_stable, windows):
            start = time.monotonic()
            requests = itertools.islice(prompts, load.requests or 4 * concurrency)
            laps = await self._run(concurrency, requests, load.completion_tokens)
            window = _Window(laps, time.monotonic() - start)
            windows = [*windows, window][-STABLE_WINDOWS:]
            num_windows += 1
        # in a thread, as above: there may be millions of gaps between tokens
        return await asyncio.to_thread(self._summary, concurrency, windows, num_windows)

    def _summary(
        self, concurrency: int, windows: Sequence[_Window], num_windows: int
    ) -> InferenceResult:
        """What the last windows say, of so many."""
        load, model = self._load, self._model
        laps = [lap for window in windows for lap in window.laps]
        seconds = sum(window.seconds for window in windows)
        requests_per_second = len(laps) / seconds
        tokens_per_second = requests_per_second * load.completion_tokens
        flops = request_flops(model.model_config, load.prompt_tokens, load.completion_tokens)
        bytes_per_second = tokens_per_second * self._bytes_per_token(concurrency)
        peak_bytes = self._peak.bytes_per_second
        return InferenceResult(
            model=model.name,
            concurrency=concurrency,
            completed=len(laps),
            duration_seconds=seconds,
            requests_per_second=requests_per_second,
            tokens_per_second=tokens_per_second,
            time_to_first_token_seconds=percentiles(lap.first_token_seconds for lap in laps),
            inter_token_latency_seconds=percentiles(gap for lap in laps for gap in lap.gaps),
            mfu=mfu(requests_per_second * flops, self._peak.flops),
            mbu=bytes_per_second / peak_bytes if peak_bytes else None,
            time_per_output_token_seconds=percentiles(lap.seconds_per_token for lap in laps),
            e2e_latency_seconds=percentiles(lap.total_seconds for lap in laps),
            goodput_requests_per_second=self._goodput(laps, seconds),
            windows=num_windows,
            is_stable=are_stable(windows) if load.max_windows >= STABLE_WINDOWS else None,
            precision=model.precision,
        )

    def _goodput(self, laps: Sequence[_Lap], seconds: float) -> float | None:
        first = self._load.time_to_first_token_objective_seconds
        per_token = self._load.time_per_output_token_objective_seconds
        if first is None and per_token is None:
            return None
        good = sum(
            (first is None or lap.first_token_seconds <= first)
            and (per_token is None or lap.seconds_per_token <= per_token)
            for lap in laps
        )
        return good / seconds

    def _prompts(self) -> Iterator[list[int]]:
        """Random prompts without end, no two alike, which depend on the load's seed alone."""
        dice, vocabulary = random.Random(self._load.seed), range(self._model.tokenizer.vocab_size)
        while True:
            yield dice.choices(vocabulary, k=self._load.prompt_tokens)

    async def _run(
        self, concurrency: int, prompts: Iterable[list[int]], completion_tokens: int
    ) -> list[_Lap]:
        """The lap of every prompt's request."""
        waiting = iter(prompts)
        laps: list[_Lap] = []

        async def take_turns() -> None:
            for prompt in waiting:  # shared: each prompt goes to one of the senders
                laps.append(await self._send(prompt, completion_tokens))

        senders = [asyncio.create_task(take_turns()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        return laps

    async def _send(self, prompt_ids: list[int], completion_tokens: int) -> _Lap:
        stopping = StoppingParams(max_new_tokens=completion_tokens, ignore_end_of_text=True)
        request = Request(
            secrets.token_hex(8),
            prompt_ids,
            SamplingParams(temperature=0.0),
            stopping,
            use_prefix_cache=False,  # or a load that was sent before would cost less
        )
        gaps = array("d")
        previous: float | None = None
        with self._model.engine.submitted(request, time.monotonic()) as stream:
            while events := await stream.next():
                num_tokens = sum(len(e.token_ids) for e in events if isinstance(e, Delta))
                if num_tokens:
                    now = time.monotonic()
                    if previous is None:  # the first token follows none
                        previous = stream.clock.samples[0].first_token_at
                        num_tokens -= 1
                    gaps.extend([(now - previous) / num_tokens for _ in range(num_tokens)])
                    previous = now
        return _Lap(stream.timings.time_to_first_token_seconds, gaps)

    def _bytes_per_token(self, concurrency: int) -> float:
        """Bytes of weights and KV cache read for each sampled token: a batch shares a step."""
        config, load = self._model.model_config, self._load
        batch = min(concurrency, self._model.num_slots)
        context = min(load.prompt_tokens + load.completion_tokens // 2, config.block_size)
        precision, is_native = self._model.precision, self._model.is_native
        step_bytes = decode_bytes_per_step(
            config,
            bytes_per_weight=bytes_per_weight(config, precision),
            bytes_per_kv_value=bytes_per_kv_value(precision, is_native),
            batch=batch,
            context_tokens=context,
        )
        return step_bytes / batch


def are_stable(windows: Sequence[_Window]) -> bool:
    """Whether throughput and median latency of the last windows agree; False if there are few."""
    last = windows[-STABLE_WINDOWS:]
    return len(last) == STABLE_WINDOWS and all(
        max(values) <= STABLE_RATIO * min(values)
        for values in (
            [window.requests_per_second for window in last],
            [window.median_latency for window in last],
        )
    )


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Median, 95th and 99th percentile, interpolated between measurements."""
    p50, p95, p99 = np.percentile(np.fromiter(seconds, dtype=np.float64), [50, 95, 99])
    return Percentiles(float(p50), float(p95), float(p99))
