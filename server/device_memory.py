"""How much memory this process holds on the device that models run on."""

import math
import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")  # https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html


def device_memory_bytes(device: torch.device) -> float:
    """Allocated by torch on an accelerator, resident on a CPU; NaN where neither is known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    if not STATM.exists():
        return math.nan
    resident_pages = int(STATM.read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
