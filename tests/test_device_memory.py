"""Memory that a process holds on its device."""

import math

import psutil
import pytest
import torch

from server import device_memory
from server.device_memory import device_memory_bytes


def test_on_a_cpu_it_is_what_is_resident():
    measured = device_memory_bytes(torch.device("cpu"))
    assert measured == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_where_nothing_tells_it_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(device_memory, "STATM", tmp_path / "statm")
    assert math.isnan(device_memory_bytes(torch.device("cpu")))
