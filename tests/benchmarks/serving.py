"""What a visitor waits for beyond the network: start-up, first picture, the way there and back.

    python -m tests.benchmarks.serving [--size 256] [--repeats 7]

Starts of the app are compared with a bare import of what it needs; calls of its API, interleaved,
with the network alone on the same pixels in this process, which has the same number of threads.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from gradio_client import Client, handle_file
from PIL import Image

from srgan.allocator import keep_freed_memory
from srgan.image import enlarge_bicubic, open_image, to_tensor
from srgan.upscaler import Upscaler
from tests.app_process import ROOT, running_app

PHOTO = ROOT / "examples" / "astronaut.png"
BARE_IMPORT = "import torch, gradio"
FIRST_RESULT = f"""
from srgan import Upscaler
from PIL import Image
Upscaler().upscale(Image.open({str(PHOTO)!r}).resize((64, 64)))
"""


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def python(code: str) -> float:
    """Seconds for a new Python to run some code."""
    command = [sys.executable, "-c", code]
    return seconds(lambda: subprocess.run(command, cwd=ROOT, check=True))


def start_app() -> float:
    """Seconds from `python app.py` to a page that is served."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with running_app(Path(folder)):
            return time.perf_counter() - start


def measure_starts(repeats: int) -> dict[str, float]:
    cases = {
        f"`{BARE_IMPORT}`": lambda: python(BARE_IMPORT),
        "`python app.py` to a served page": start_app,
        "import to first result, 64×64": lambda: python(FIRST_RESULT),
    }
    for case in cases.values():  # the files are in the system's cache from here on
        case()
    results: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            results[name].append(case())
    return {name: statistics.median(values) for name, values in results.items()}


def call_by_http(client: httpx.Client, file: Path) -> bytes:
    """What gradio_client does, in four requests over one connection: the enlarged file."""
    uploaded = client.post("upload", files={"files": file.read_bytes()}).json()[0]
    image = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    event = client.post("call/upscale", json={"data": [image]}).json()["event_id"]
    answer = client.get(f"call/upscale/{event}").text  # ends with the last event
    data = json.loads(answer.rpartition("data: ")[2])
    return client.get(data[0]["url"]).raise_for_status().content


def measure_calls(size: int, repeats: int) -> dict[str, float]:
    """Medians in seconds of the network alone and of calls, and the first call of all."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.png"
        photo = open_image(PHOTO)
        large = enlarge_bicubic(photo).resize((size, size), Image.Resampling.BICUBIC)
        large.save(file)
        keep_freed_memory()  # as the app does
        upscaler = Upscaler()
        lr = to_tensor(open_image(file))
        with running_app(Path(folder)) as app, torch.inference_mode():
            gradio_client = Client(app.url, verbose=False, download_files=folder)
            bare = httpx.Client(base_url=f"{app.url}/gradio_api/", timeout=60)
            first = seconds(lambda: call_by_http(bare, file))
            cases = {
                "network alone": lambda: upscaler.enlarge(lr),
                "call of /upscale": lambda: call_by_http(bare, file),
                "the same by gradio_client": lambda: gradio_client.predict(
                    handle_file(file), api_name="/upscale"
                ),
            }
            results: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(repeats + 1):
                for name, case in cases.items():
                    results[name].append(seconds(case))
    medians = {name: statistics.median(values[1:]) for name, values in results.items()}
    return medians | {"first call after the start": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the photo in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    starts = measure_starts(min(options.repeats, 3))
    bare = next(iter(starts.values()))
    print("| start | seconds | ratio |\n| --- | ---: | ---: |")
    for name, value in starts.items():
        print(f"| {name} | {value:.2f} | {value / bare:.2f} |")
    calls = measure_calls(options.size, options.repeats)
    alone = next(iter(calls.values()))
    print(f"\n| {options.size}×{options.size} | seconds | ratio |\n| --- | ---: | ---: |")
    for name, value in calls.items():
        print(f"| {name} | {value:.2f} | {value / alone:.2f} |")


if __name__ == "__main__":
    main()
