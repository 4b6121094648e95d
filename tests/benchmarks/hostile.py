"""What open_image and an enlargement make of every file of tests/hostile_files.py.

    python -m tests.benchmarks.hostile [--kinds "declared sizes" laborious]

Each file is opened, enlarged (bicubic) and written as PNG, in a child process. It must end in a
picture or an ImageError of one line, the right one of the two where only one is right, within
SECONDS of processor time, and with less than MEGABYTES above what the process held before.
Whatever doesn't is listed, and the exit status is 1. Linux only.
"""

import argparse
import io
import multiprocessing
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from srgan.errors import ImageError
from srgan.image import enlarge_bicubic, map_pixels, open_image, save_image
from tests.hostile_files import KINDS, MAX_PIXELS, HostileFile, hostile_files

#: Processor time that one file may take.
SECONDS = 10
#: How long, in seconds, a child may be silent, on a busy machine too.
SILENCE = 120
#: Memory, resident, that one file may take: 16 times the pixels in 32 bits, and as much for a PNG.
MEGABYTES = 64
RESULTS = ("picture", "error", "unhandled")


class Outcome(NamedTuple):
    result: str  # one of RESULTS
    reason: str
    seconds: float = 0.0
    megabytes: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()

    failed = 0
    titles = ["kind", "inputs", *RESULTS, "slowest (s)", "peak (MB)"]
    print(f"| {' | '.join(titles)} |\n| --- |{' ---: |' * (len(titles) - 1)}")
    for kind in options.kinds:
        files = list(hostile_files(kind))
        outcomes = [judge(*pair) for pair in zip(files, try_files(files), strict=True)]
        for file, outcome in zip(files, outcomes, strict=True):
            if outcome.result == "unhandled":
                print(f"{kind}: {file.name}: {outcome.reason}", file=sys.stderr)
        counts = Counter(outcome.result for outcome in outcomes)
        cells = [kind, len(files), *(counts[result] for result in RESULTS)]
        cells += [f"{max(outcome.seconds for outcome in outcomes):.1f}"]
        cells += [f"{max(outcome.megabytes for outcome in outcomes):.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        failed += counts["unhandled"]
    return 1 if failed else 0


def judge(file: HostileFile, outcome: Outcome) -> Outcome:
    """The outcome, or why it isn't the right one."""
    if outcome.result != "unhandled":
        if file.expected not in (None, outcome.result):
            reason = f"{outcome.result} instead of {file.expected}: {outcome.reason}"
            return outcome._replace(result="unhandled", reason=reason)
        if outcome.megabytes > MEGABYTES:
            reason = f"{outcome.megabytes:.0f} MB"
            return outcome._replace(result="unhandled", reason=reason)
    return outcome


def try_files(files: list[HostileFile]) -> Iterator[Outcome]:
    """What came of each; a child that a file has ended is replaced."""
    context = multiprocessing.get_context("fork")
    tried = 0
    while tried < len(files):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(files[tried:], sender))
        child.start()
        sender.close()
        try:
            while tried < len(files):
                if not receiver.poll(SILENCE):
                    yield Outcome("unhandled", f"nothing after {SILENCE} s")
                    tried += 1
                    break
                yield receiver.recv()
                tried += 1
        except EOFError:
            child.join()
            yield Outcome("unhandled", f"the process ended with {child.exitcode}")
            tried += 1
        child.kill()
        child.join()


def _child(files: list[HostileFile], sender: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's remarks
    for file in files:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        memory, seconds = _memory("VmRSS"), time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + SECONDS + 1, -1))
        outcome = _try(file.data)
        seconds, memory = time.process_time() - seconds, _memory("VmHWM") - memory
        sender.send(outcome._replace(seconds=seconds, megabytes=memory / 1e6))


def _try(data: bytes) -> Outcome:
    try:
        image = open_image(data, max_pixels=MAX_PIXELS)
        map_pixels(image, lambda pixels: pixels.clone())
        large = enlarge_bicubic(image)
        save_image(large, io.BytesIO(), "png")
        if large.size != (4 * image.width, 4 * image.height):
            return Outcome("unhandled", f"{large.size} of {image.size}")
        return Outcome("picture", f"{image.mode} of {image.size}")
    except ImageError as error:
        text = str(error)
        whole = 10 < len(text) < 200 and text.isprintable() and text.endswith(".")
        return Outcome("error" if whole else "unhandled", text)
    except BaseException as error:
        return Outcome("unhandled", repr(error)[:500])


def _memory(name: str) -> int:
    """In bytes: VmRSS, what is resident now; VmHWM, at most since it was reset."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    sys.exit(main())
