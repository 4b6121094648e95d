"""Work spread over processes, its results in order, with a progress bar."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from train.sources import PrepareError


def map_in_order(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Like `map`, in `workers` processes, with at most 2 × `workers` results waiting.

    Raises:
        PrepareError: a worker process died, or memory ran out.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pending: deque = deque()
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except (BrokenProcessPool, MemoryError) as error:
        raise PrepareError(
            "a worker process died or ran out of memory; lower --workers or --max-pixels and give "
            "the same command again"
        ) from error


def _start_worker() -> None:
    """Lets a worker process end with its parent, and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def progress(total: int | None, done: int, title: str, **options: Any) -> tqdm:
    """A progress bar that starts at `done`; in a log file, a line now and then."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=done, desc=title, mininterval=interval, **options)
