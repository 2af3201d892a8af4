"""Freed memory that stays with the process, in processes of their own."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's"
)

PROGRAM = """
import resource, sys, torch
from nanogpt.training.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def page_faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_large_blocks_are_paged_in_once():
    assert page_faults("keep") < 100 < page_faults()
