"""Several processes that train together, started as torchrun would."""

import os
import signal
import subprocess
import sys

from tests.app_process import ROOT, free_port


def launch(processes: int, module: str, arguments: list[str]) -> list[str]:
    """Runs `python -m module` in so many processes; what each wrote to stderr.

    Args:
        processes: how many.
        module: with a main.
        arguments: of each; {rank} stands for its number.
    """
    environment = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *(a.replace("{rank}", str(rank)) for a in arguments)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
    except subprocess.TimeoutExpired:
        for process in running:
            process.send_signal(signal.SIGABRT)  # each then tells where it waits
        errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "".join(errors)
    return errors
