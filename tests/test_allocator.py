import platform
import subprocess
import sys

import pytest

from srgan.allocator import keep_freed_memory

PAGE_FAULTS = """
import resource, torch
from srgan.allocator import keep_freed_memory
{keep}
def work():
    return [torch.ones(2**21) for _ in range(6)]  # 48 MB
for i in range(6):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_not_fetched_page_by_page_again():
    faults = [
        int(subprocess.check_output([sys.executable, "-c", PAGE_FAULTS.format(keep=keep)]))
        for keep in ("", "keep_freed_memory()")
    ]
    assert faults[1] < faults[0] / 4


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory()
