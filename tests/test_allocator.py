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

GROWTH = """
import threading
from srgan.allocator import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
{keep}
turn, all_there = threading.Lock(), threading.Barrier(8)
def work():
    all_there.wait()  # a thread that ends would leave its memory to the next
    with turn:
        b"." * 2**22
    all_there.wait()
before = resident()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(script: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", script]))


@needs_glibc
def test_memory_is_not_fetched_page_by_page_again():
    faults = [run(PAGE_FAULTS.format(keep=keep)) for keep in ("", "keep_freed_memory()")]
    assert faults[1] < faults[0] / 4


@needs_glibc
def test_threads_that_take_turns_need_no_more_memory_than_one():
    assert run(GROWTH.format(keep="keep_freed_memory()")) < 8 * 2**20


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory()
