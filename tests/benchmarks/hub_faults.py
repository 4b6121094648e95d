"""Seconds from `python app.py` to a page that serves, while the Hub fails in every way.

    python -m tests.benchmarks.hub_faults

The app is told to take its weights from a Hub on this machine, with an empty cache. What the Hub
costs is in the seconds that the app takes for its weights; the rest is Python, torch and Gradio.
"""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.app_process import ROOT, running_app
from tests.hub_server import FAULTS, HubServer

REPOSITORY = "user/srgan-x4"
#: The app without a Hub, with one that works, and with those that don't.
BUNDLED, WORKING, REFUSED = "bundled weights", "no fault", "refused"
CASES = (BUNDLED, WORKING, REFUSED, *FAULTS)
#: app.py, and how long it takes for its weights.
SCRIPT = """
import runpy
import time
from srgan import upscaler

load_weights = upscaler.load_weights

def timed(*arguments, **options):
    start = time.monotonic()
    weights = load_weights(*arguments, **options)
    print(f"weights after {time.monotonic() - start} seconds", flush=True)
    return weights

upscaler.load_weights = timed
runpy.run_path("app.py", run_name="__main__")
"""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of the app.

    Attributes:
        seconds: until it serves.
        weights_seconds: those of them in which it gets its weights.
        source: as its /info then says.
        notices: as its /info then says.
    """

    seconds: float
    weights_seconds: float
    source: str
    notices: list[str]


def start_app(case: str) -> Start:
    """Starts the app in one of CASES, waits until it serves, and ends it."""
    server = HubServer()
    files = [path for path in (ROOT / "weights").iterdir() if path.suffix != ".png"]
    server.commit(REPOSITORY, {path.name: path.read_bytes() for path in files})
    if case == REFUSED:
        server.stop()
    elif case in FAULTS:
        server.fault = case
    spec = None if case == BUNDLED else REPOSITORY
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": f"{folder}/hub"}
        start = time.monotonic()
        with running_app(Path(folder), spec, SCRIPT, environment) as app:
            seconds = time.monotonic() - start
            info = app.info()
        log = Path(folder, "app.log").read_text()
    server.stop()
    return Start(
        seconds=seconds,
        weights_seconds=float(re.search(r"weights after (\S+) seconds", log)[1]),
        source=info["source"],
        notices=info["notices"],
    )


def main() -> None:
    start_app(BUNDLED)  # the files are in the system's cache from here on
    print("| Hub | serves after s | weights after s | weights in use | notice |")
    print("| --- | ---: | ---: | --- | --- |")
    for case in CASES:
        start = start_app(case)
        notice = next((text for text in start.notices if "Hub" in text or "sha256" in text), "")
        numbers = f"{start.seconds:.1f} | {start.weights_seconds:.2f}"
        print(f"| {case} | {numbers} | {start.source} | {notice} |", flush=True)


if __name__ == "__main__":
    main()
