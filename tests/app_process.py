"""The real app in a process of its own, for tests that speak to it from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for Python, torch and Gradio to come up on a busy machine.
START = 120


@dataclass
class RunningApp:
    """An app that answers at `url`."""

    url: str
    process: subprocess.Popen

    def info(self) -> dict:
        """What the endpoint /info answers."""
        call = f"{self.url}/gradio_api/call/info"
        body = json.dumps({"data": []}).encode()
        request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{call}/{event}", timeout=60) as stream:
            lines = stream.read().decode().splitlines()
        return json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    arguments: list[str],
    port: int,
    folder: Path,
    environment: dict[str, str] | None = None,
    root: Path = ROOT,
) -> subprocess.Popen:
    """Starts Python in the repository, or a copy of it, with its own temporary folder; output
    goes to a file."""
    with open(folder / "app.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=root,
            env={
                **os.environ,
                "GRADIO_SERVER_PORT": str(port),
                "GRADIO_TEMP_DIR": str(folder / "gradio"),
                **(environment or {}),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def running_app(
    folder: Path,
    weights: Path | str | None = None,
    script: str | None = None,
    environment: dict[str, str] | None = None,
    port: int | None = None,
) -> Iterator[RunningApp]:
    """The app, from when it answers.

    Args:
        folder: for its temporary files and its log, app.log.
        weights: a weights folder, or a repository on the Hub; None for the bundled ones.
        script: Python code to run in place of app.py.
        environment: further variables.
        port: where; None for one that is free.
    """
    port = port or free_port()
    arguments = ["-c", script] if script else ["app.py"]
    environment = {"SRGAN_WEIGHTS": str(weights or "bundled"), **(environment or {})}
    process = start(arguments, port, folder, environment)
    app = RunningApp(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + START
        while not _answers(app.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the app did not start:\n{(folder / 'app.log').read_text()}")
            time.sleep(0.2)
        yield app
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
