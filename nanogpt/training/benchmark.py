"""Measures one training step: `python -m nanogpt.training.benchmark < options.json`.

nanoGPT's protocol: warm-up steps, then counted steps of forward, backward and fused AdamW. Options
are a JSON object on standard input with the fields of `TrainingBenchmark` in
protos/nanogpt/v1/inference.proto, all of them optional, and

    dataset_dir   folder of the dataset, if `dataset` is set; else tokens are random
    device        auto, cpu, cuda or mps

The answer is one line of JSON on standard output: `result` has the fields of `TrainingResult`,
`device` those of `Device`; null is unset. Exit codes are those of `nanogpt.training`.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nanogpt import device, flops
from nanogpt.config import ARCHITECTURES, TrainConfig
from nanogpt.datasets.dataset import BadDataset, Dataset
from nanogpt.ensemble import make_network
from nanogpt.option import InvalidConfig, Violation, option, range_violations, unknown_key
from nanogpt.training.batches import Batches, Prefetcher, Stream
from nanogpt.training.execution import choose_execution
from nanogpt.training.forward import make_forward
from nanogpt.training.optimizer import make_optimizer
from nanogpt.training.run_directory import ERROR_PREFIX, ExitCode
from nanogpt.training.starting_point import PADDED_GPT2_VOCAB_SIZE, num_vocab_rows
from nanogpt.training.step import Diverged, TrainingStep


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to measure. Names and defaults are those of nanoGPT's bench.py."""

    batch_size: int = option(12, "Sequences in each step.", ge=1)
    block_size: int = option(1024, "Tokens in each sequence.", ge=1, le=1 << 20)
    n_layer: int = option(12, "Transformer blocks.", ge=1, le=1024)
    n_head: int = option(12, "Attention heads in each block; a divisor of n_embd.", ge=1, le=1024)
    n_embd: int = option(768, "Width of the residual stream.", ge=1, le=1 << 16)
    dropout: float = option(0.0, "Probability of dropping an activation.", ge=0, lt=1)
    bias: bool = option(False, "Whether linear and normalization layers have biases; not modern.")
    arch: str = option("gpt2", "Architecture of the network.", choices=ARCHITECTURES)
    n_member: int = option(1, "Networks that learn side by side.", ge=1, le=64)
    dataset: str = option("", "Dataset to read batches from; empty uses random tokens.")
    dataset_dir: str = option("", "Folder of the dataset.")
    device: str = option("auto", "Where to run.", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option(
        "auto", "Arithmetic type.", choices=("auto", "float32", "bfloat16", "float16")
    )
    compile: str = option("off", "Whether to compile the model.", choices=("auto", "on", "off"))
    seed: int = option(1337, "Seeds weights and batches.", ge=0, lt=1 << 64)
    warmup_steps: int = option(10, "Steps that are run and not counted.", ge=1)
    steps: int = option(20, "Steps that are counted.", ge=1)

    def __post_init__(self) -> None:
        found = range_violations(self)
        if self.dataset and not self.dataset_dir:
            found.append(Violation("dataset_dir", f"must be the folder of {self.dataset!r}"))
        if found:
            raise InvalidConfig(found)

    def train_config(self) -> TrainConfig:
        """The run of which a step is measured, with the optimizer of nanoGPT's bench.py.

        Raises InvalidConfig.
        """
        return TrainConfig(
            batch_size=self.batch_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
            bias=self.bias,
            arch=self.arch,
            n_member=self.n_member,
            learning_rate=1e-4,
            weight_decay=1e-2,
            beta1=0.9,
            beta2=0.95,
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Options of these values and defaults for the rest. Raises InvalidConfig."""
        names = [spec.name for spec in fields(cls)]
        unknown = [unknown_key(key, names) for key in values if key not in names]
        if unknown:
            raise InvalidConfig(unknown)
        return cls(**values)


def measure(options: BenchmarkOptions) -> dict[str, Any]:
    """The result and the device. Raises as nanogpt.training.trainer.train does."""
    try:
        where = device.pick_device(options.device)
    except ValueError as error:
        raise InvalidConfig([Violation("device", str(error))]) from error
    dtype = device.pick_dtype(options.dtype, where)
    config = options.train_config()
    vocab_size, batches = _batches(options)
    torch.manual_seed(options.seed)
    model = make_network(config.model_config(vocab_size)).to(where).train()
    optimizer = make_optimizer(model, config, dtype)
    execution = choose_execution(model, config.batch_size, dtype)
    forward = make_forward(
        model, execution, batches.at(0), dtype=dtype, compile=options.compile, log=_complain
    )
    step = TrainingStep(
        model, optimizer, dtype=dtype, grad_clip=0.0, forward=forward, pieces=execution.pieces
    )

    durations = []
    with Prefetcher(batches, where, first_step=0) as prefetcher:
        for index in range(options.warmup_steps + options.steps):
            start = time.perf_counter()
            result = step(*prefetcher.next())
            if not result.applied:
                raise Diverged(f"the loss is {result.loss}, the gradient {result.grad_norm}")
            if where.type != "cpu":
                torch.accelerator.synchronize(where)
            if index >= options.warmup_steps:
                durations.append(time.perf_counter() - start)

    memory_bytes = device.peak_memory_bytes(where)  # before the buffers of the measurement below
    peak = device.measure_peak(where, dtype)
    tokens = config.tokens_per_step
    flops_per_step = tokens * flops.training_flops_per_token(model.config)
    median = statistics.median(durations)
    p50, p95, p99 = np.percentile(durations, [50, 95, 99]).tolist()
    return {
        "result": {
            "step_seconds": {"p50": p50, "p95": p95, "p99": p99},
            "tokens_per_second": tokens / median,
            "flops_per_step": flops_per_step,
            "mfu": flops.mfu(flops_per_step / median, peak.flops),
            "loss": result.loss,
            "peak_memory_bytes": memory_bytes,
            "parameter_count": model.parameter_count(),
        },
        "device": {
            "type": where.type,
            "name": device.device_name(where),
            "dtype": device.dtype_name(dtype),
            "threads": torch.get_num_threads(),
            "peak_flops": peak.flops,
            "peak_bytes_per_second": peak.bytes_per_second,
            "peak_source": peak.source,
        },
    }


def main() -> int:
    """Returns the exit code."""
    try:
        values = json.load(sys.stdin)
        if not isinstance(values, dict):
            raise InvalidConfig([Violation("options", "must be a JSON object")])
        print(json.dumps(measure(BenchmarkOptions.from_mapping(values))), flush=True)
        return ExitCode.DONE
    except BadDataset as error:
        return _fail(ExitCode.BAD_DATASET, str(error))
    except (InvalidConfig, json.JSONDecodeError) as error:
        return _fail(ExitCode.BAD_CONFIG, str(error))
    except Diverged as error:
        return _fail(ExitCode.DIVERGED, str(error))
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        return _fail(
            ExitCode.OUT_OF_MEMORY, "memory ran out; a smaller batch_size or block_size takes less"
        )


def _batches(options: BenchmarkOptions) -> tuple[int, Batches]:
    """The vocabulary size, and batches of a dataset's tokens or of random ones."""
    tokens: NDArray[np.uint16]
    if options.dataset_dir:
        dataset = Dataset.open(Path(options.dataset_dir))
        vocab_size, tokens = num_vocab_rows(dataset.tokenizer), dataset.tokens("train")
    else:
        vocab_size = PADDED_GPT2_VOCAB_SIZE
        num_tokens = max(1 << 20, options.block_size + 1)
        draws = np.random.default_rng(options.seed)
        tokens = draws.integers(0, vocab_size, size=num_tokens, dtype=np.uint16)
    shape = (1, options.batch_size, options.block_size)
    return vocab_size, Batches(tokens, shape=shape, seed=options.seed, stream=Stream.TRAIN)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(code: int, sentence: str) -> int:
    _complain(ERROR_PREFIX + " ".join(sentence.split()))
    return code


if __name__ == "__main__":
    sys.exit(main())
