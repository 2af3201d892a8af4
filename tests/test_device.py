"""Which device, in which type, how fast: chosen, matched by name, measured."""

import time

import pytest
import torch

from nanogpt import device
from nanogpt.listed_peaks import LISTED_PEAKS, listed_peak

CPU = torch.device("cpu")


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    def there(cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        return device.pick_device("auto").type

    assert there(True, True) == "cuda"
    assert there(False, True) == "mps"
    assert there(False, False) == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no cuda here; available: .*cpu"):
        device.pick_device("cuda")
    with pytest.raises(ValueError, match="no tpu here"):
        device.pick_device("tpu")


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H800", 756),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A30", 165),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 438.9),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA RTX A6000", 154.85),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("AMD Instinct MI355X", 2500),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI300A", 980.6),
        ("AMD Instinct MI250X", 191.5),
    ],
)
def test_the_name_that_a_driver_gives_finds_its_device(name, teraflops):
    entry = listed_peak(name)
    assert entry is not None
    assert entry.teraflops == teraflops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "NVIDIA A4000",
        "Tesla T4",
        "AMD Radeon RX 7900 XTX",
        "",
    ],
)
def test_no_figure_is_better_than_that_of_another_device(name):
    assert listed_peak(name) is None


def test_each_entry_is_found_by_its_own_words_and_has_a_source():
    for entry in LISTED_PEAKS:
        assert listed_peak(entry.words) is entry  # no earlier entry hides it
        assert entry.source.startswith("https://")


def test_the_memory_of_an_a100_depends_on_its_size():
    assert listed_peak("NVIDIA A100-SXM4-40GB").terabytes_per_second == 1.555
    assert listed_peak("NVIDIA A100-SXM4-80GB").terabytes_per_second == 2.0


def test_a_listed_peak_is_for_16_bit_types_that_the_device_has(monkeypatch):
    cuda = torch.device("cuda")

    def peak(name, dtype):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: name)
        return device.measure_peak(cuda, dtype)

    assert peak("NVIDIA H100 PCIe", torch.bfloat16) == device.Peak(756e12, 2e12, "listed")
    assert peak("NVIDIA H100 PCIe", torch.float32) == device.Peak(None, 2e12, "listed")
    assert peak("Tesla V100-SXM2-16GB", torch.float16).flops == 125e12
    assert peak("Tesla V100-SXM2-16GB", torch.bfloat16) == device.Peak(None, None, "")
    assert peak("Some GPU", torch.bfloat16) == device.Peak(None, None, "")


def test_the_peak_of_a_cpu_is_measured():
    peak = device.measure_peak(CPU, torch.float32)
    assert peak.source == "measured"
    assert 1e9 < peak.flops < 1e15
    assert 1e8 < peak.bytes_per_second < 1e13
    assert device.measure_peak(CPU, torch.float32, bandwidth=False).bytes_per_second is None


def test_the_automatic_type_is_measured_once(monkeypatch):
    device._bfloat16_is_faster.cache_clear()
    durations = {torch.float32: 2.0, torch.bfloat16: 1.0}
    calls = []

    def seconds(where, dtype, size, repetitions):
        calls.append(dtype)
        return durations[dtype]

    monkeypatch.setattr(device, "_multiplication_seconds", seconds)
    assert device.pick_dtype("auto", CPU) == torch.bfloat16
    assert device.pick_dtype("auto", CPU) == torch.bfloat16
    assert len(calls) == 2
    device._bfloat16_is_faster.cache_clear()
    durations[torch.bfloat16] = 1.9  # a gain, but casts would eat it
    assert device.pick_dtype("auto", CPU) == torch.float32
    device._bfloat16_is_faster.cache_clear()


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_asked_for_its_types(monkeypatch, has_it, dtype):
    """Not measured: a product that takes a moment takes less than its launch."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    monkeypatch.delattr(device, "_multiplication_seconds")
    assert device.pick_dtype("auto", torch.device("cuda")) == dtype


def test_choosing_the_type_takes_a_moment_only():
    device._bfloat16_is_faster.cache_clear()
    begin = time.process_time()
    assert device.pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert time.process_time() - begin < 1.0  # 0.3 s on an idle machine
    device._bfloat16_is_faster.cache_clear()


def test_named_types():
    for name, dtype in device.DTYPES.items():
        assert device.pick_dtype(name, CPU) == dtype
        assert device.dtype_name(dtype) == name


def test_memory_is_that_of_this_process():
    assert 10 << 20 < device.peak_memory_bytes(CPU) < 1 << 40
    assert device.device_name(CPU)


@pytest.mark.parametrize(("limit", "is_smaller"), [("1000000\n", True), ("max\n", False)])
def test_total_memory_is_that_of_the_container(tmp_path, monkeypatch, limit, is_smaller):
    monkeypatch.setattr(device, "CONTAINER_LIMIT", tmp_path / "none")
    machine = device.total_memory_bytes(CPU)
    monkeypatch.setattr(device, "CONTAINER_LIMIT", tmp_path / "memory.max")
    device.CONTAINER_LIMIT.write_text(limit)
    assert machine > 1 << 28
    assert device.total_memory_bytes(CPU) == (10**6 if is_smaller else machine)


def test_running_out_of_memory_is_recognized():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert device.is_out_of_memory(raised.value)
    assert device.is_out_of_memory(MemoryError())
    assert device.is_out_of_memory(torch.OutOfMemoryError())
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not device.is_out_of_memory(ValueError("DefaultCPUAllocator"))
