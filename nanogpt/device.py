"""The hardware: which device to use, in which arithmetic type, and how fast it can be.

Takes plain names and returns torch's types. It knows nothing about models. Measuring happens when
asked, never at import; what is measured for a choice is measured once a process.
"""

import functools
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt.listed_peaks import listed_peak

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# bfloat16 also costs casts of weights and activations, so a multiplication must gain this much
WORTHWHILE_SPEEDUP = 1.5


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS and CPU that is there.

    Raises ValueError if the one named is not.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(device for device, present in available.items() if present)
        raise ValueError(f"there is no {name} here; available: {there}")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Name of the device as its driver or operating system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic type of that name; `auto` is bfloat16 where it is faster, else float32.

    Faster is measured (below 0.3 s, once a process): processors without instructions for bfloat16
    emulate it, up to a hundred times slower than float32. CUDA says which GPUs have it.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":  # where a product small enough to measure takes less than its launch
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if _bfloat16_is_faster(device) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16` or `float16`."""
    return str(dtype).removeprefix("torch.")


CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most a device can do; None is unknown."""

    flops: float | None
    """Dense matrix multiplication in one type, in FLOP/s."""
    bytes_per_second: float | None
    """Reading memory."""
    source: str
    """`listed`, `measured`, or empty if both are unknown."""


def measure_peak(device: torch.device, dtype: torch.dtype, bandwidth: bool = True) -> Peak:
    """Peaks of the device in this type: listed for known GPUs, measured on a CPU, else unknown.

    Measuring takes below a second. The bandwidth needs a buffer larger than any cache; a caller
    that watches its own memory can do without.
    """
    if device.type == "cpu":
        bytes_per_second = _read_bandwidth() if bandwidth else None
        return Peak(_multiplication_flops(device, dtype), bytes_per_second, "measured")
    listed = listed_peak(device_name(device)) if device.type == "cuda" else None
    if listed is None:
        return Peak(None, None, "")
    speed = listed.terabytes_per_second
    bytes_per_second = None if speed is None or not bandwidth else speed * 1e12
    listed_dtypes = {torch.float16, torch.bfloat16} if listed.bfloat16 else {torch.float16}
    flops = listed.teraflops * 1e12 if dtype in listed_dtypes else None
    return Peak(flops, bytes_per_second, "listed" if flops or bytes_per_second else "")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has had so far: of a GPU, for others resident memory.

    Linux carries `ru_maxrss` over from the process that started this one, VmHWM it does not:
    https://man7.org/linux/man-pages/man5/proc_pid_status.5.html
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device, for a CPU that of the machine or the container.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On a CPU torch says so in the text of a RuntimeError only:
    https://github.com/pytorch/pytorch/blob/main/c10/core/impl/alloc_cpu.cpp
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@functools.cache
def _bfloat16_is_faster(device: torch.device) -> bool:
    size = 256  # 34 million operations: 30 ms even where bfloat16 is emulated
    full = _multiplication_seconds(device, torch.float32, size, repetitions=5)
    half = _multiplication_seconds(device, torch.bfloat16, size, repetitions=5)
    return full / half > WORTHWHILE_SPEEDUP


def _multiplication_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of multiplying square matrices: the best of all sizes that take below 0.1 s.

    Each size is repeated for as long, so that a busy machine has a quiet moment among them.
    """
    best = 0.0
    for size in (256, 512, 1024, 2048):
        operations = 2 * size**3
        if best and operations / best > 0.1:
            break
        repetitions = 5 if not best else max(5, int(0.1 * best / operations))
        seconds = _multiplication_seconds(device, dtype, size, repetitions)
        best = max(best, operations / seconds)
    return best


def _multiplication_seconds(
    device: torch.device, dtype: torch.dtype, size: int, repetitions: int
) -> float:
    """Shortest duration of multiplying two square matrices, after a warm-up."""
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    right = left.clone()
    return _shortest_seconds(lambda: left @ right, device, repetitions)


def _read_bandwidth() -> float:
    """Bytes a second of reading memory on the CPU: the sum of 256 MiB."""
    buffer = torch.ones(64 << 20, dtype=torch.float32)
    return buffer.nbytes / _shortest_seconds(buffer.sum, torch.device("cpu"), repetitions=7)


def _shortest_seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """The best of several is the one that other processes disturbed least."""
    durations = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
