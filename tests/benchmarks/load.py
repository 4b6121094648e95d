"""Many users at once: is every answer the asker's, is none lost, does memory stay?

    python -m tests.benchmarks.load [--requests 200] [--users 16] [--cancels 0.1] [--minutes 30]

starts the app and lets each user, a gradio_client of its own, send one picture after another; no
two are alike. The pixels that come back are compared, by their hash, with what `srgan.Upscaler`
makes of the picture that was sent. A share of the requests is cancelled at a moment drawn by
chance, and the user asks for something else at once; now and then a user leaves and a new one
comes. The same goes on for as long as --minutes says, and every minute a line tells how the server
stands. Exits with 1 if an answer failed, was lost or was mixed up.
"""

import argparse
import hashlib
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from srgan import Upscaler
from tests.app_process import RunningApp, running_app

#: Heights and widths in pixels from which pictures are drawn.
SIDES = range(8, 25)
#: Seconds for an answer; what takes longer is lost.
ANSWER = 600
#: The share of requests after which a user leaves and a new one comes.
NEWCOMERS = 0.05
#: Requests after which the process counts as warm.
WARM = 20
#: What can become of a request.
RIGHT, MIXED_UP, LOST, REFUSED, FAILED, CANCELLED = OUTCOMES = (
    "right", "mixed up", "lost", "refused", "failed", "cancelled"
)  # fmt: skip


#: The app, which keeps files for a time that is over before the end.
SCRIPT = """
import app
from srgan import Upscaler

app.KEEP_FILES, app.CLEAN_EVERY = {keep}, {keep} / 6
app.launch(app.create_demo(Upscaler()))
"""


@dataclass
class Tally:
    """What became of the requests; several threads write to it.

    Attributes:
        outcomes: how many of each of OUTCOMES.
        seconds: from the question to its right answer.
        memory: resident memory of the server in bytes, after each request.
        errors: what the first few failures said.
    """

    outcomes: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, outcome: str, seconds: float, memory: int, error: str | None = None) -> None:
        self.outcomes[outcome] += 1
        self.memory.append(memory)
        if outcome == RIGHT:
            self.seconds.append(seconds)
        if error and len(self.errors) < 5:
            self.errors.append(error)


class Server:
    """The app, the folder of its uploads and results, and what the network should give."""

    def __init__(self, app: RunningApp, folder: Path):
        self.url = app.url
        self.files = folder / "gradio"
        self._process = app.process.pid
        self._upscaler = Upscaler("bundled")

    def expected(self, picture: Image.Image) -> str:
        return content_hash(self._upscaler.upscale(picture))

    def memory(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self._process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def counts(self) -> tuple[int, int, int]:
        """Files and folders it has made, its open descriptors and its threads."""
        process = Path(f"/proc/{self._process}")
        made = sum(len(folders) + len(files) for _, folders, files in os.walk(self.files))
        return made, len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


def content_hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


class User:
    """One visitor: a client that sends pictures and knows which answers are right."""

    def __init__(self, server: Server, tally: Tally, folder: Path, number: int, cancels: float):
        self.server, self.tally = server, tally
        self.cancels = cancels
        self.folder = folder / str(number)
        self.folder.mkdir()
        self.random = random.Random(number)
        self.arrive()

    def arrive(self) -> None:
        """Begins a session."""
        self.client = Client(
            self.server.url,
            verbose=False,
            download_files=self.folder,
            httpx_kwargs={"timeout": ANSWER},
        )

    def ask(self) -> None:
        """Sends a new picture and waits for its enlargement, or cancels."""
        pixels = np.random.default_rng(self.random.getrandbits(64)).integers(
            0, 256, (self.random.choice(SIDES), self.random.choice(SIDES), 3), np.uint8
        )
        picture = Image.fromarray(pixels)
        path = self.folder / f"{content_hash(picture)}.png"
        picture.save(path)
        start = time.monotonic()
        outcome, error, answer = CANCELLED, None, None
        try:
            job = self.client.submit(handle_file(path), api_name="/upscale")
            if self.random.random() < self.cancels:
                time.sleep(self.random.uniform(0, 2))
                job.cancel()
            else:
                answer = Path(job.result(timeout=ANSWER))
                outcome = None
        except NoAnswer:
            outcome = LOST
        except QueueError:
            outcome = REFUSED
        except (AppError, CancelledError, OSError, ValueError) as exc:
            outcome, error = FAILED, repr(exc)
        seconds = time.monotonic() - start
        if answer is not None:
            with Image.open(answer) as image:
                right = content_hash(image) == self.server.expected(picture)
            outcome = RIGHT if right else MIXED_UP
            answer.unlink()
        path.unlink()
        self.tally.add(outcome, seconds, self.server.memory(), error)
        if self.random.random() < NEWCOMERS:
            self.client.close()
            self.arrive()


def ask_in_turn(users: list[User], requests: int) -> None:
    """All users ask at once, until there have been so many requests in all."""
    left = iter(range(requests))  # shared: each number is taken once
    lock = threading.Lock()

    def work(user: User) -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            user.ask()

    with ThreadPoolExecutor(len(users)) as pool:
        list(pool.map(work, users))


def report(tally: Tally, wall: float) -> None:
    requests = sum(tally.outcomes.values())
    print(f"{requests} requests in {wall:.0f} s: {len(tally.seconds) / wall:.2f} answers/s")
    print(", ".join(f"{tally.outcomes[outcome]} {outcome}" for outcome in OUTCOMES))
    if tally.seconds:
        p50, p95, p99 = np.percentile(tally.seconds, [50, 95, 99])
        print(f"seconds to the answer: p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f}")
    if len(tally.memory) > WARM:
        first, last = tally.memory[WARM - 1] / 1e6, tally.memory[-1] / 1e6
        print(f"memory after {WARM} requests {first:.0f} MB, at the end {last:.0f} MB")
        shares = [tally.memory[(len(tally.memory) - 1) * i // 10] for i in range(11)]
        print("memory by tenths, MB:", *(f"{memory / 1e6:.0f}" for memory in shares))
    for error in tally.errors:
        print("error:", error)
    sys.stdout.flush()


def soak(users: list[User], server: Server, minutes: float) -> None:
    """All users ask for so many minutes; every minute a line tells how the server stands."""
    end = time.monotonic() + 60 * minutes
    print("| minute | requests | memory, MB | files and folders | open descriptors | threads |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")

    def work(user: User) -> None:
        while time.monotonic() < end:
            user.ask()

    tally = users[0].tally
    start = sum(tally.outcomes.values())
    with ThreadPoolExecutor(len(users)) as pool:
        working = [pool.submit(work, user) for user in users]
        for minute in range(math.ceil(minutes) + 1):
            requests = sum(tally.outcomes.values()) - start
            numbers = requests, server.memory() // 10**6, *server.counts()
            print("|", " | ".join(map(str, (minute, *numbers))), "|", flush=True)
            time.sleep(max(0, min(60, end - time.monotonic())))
        for one in working:
            one.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--cancels", type=float, default=0.1, help="share of the requests")
    parser.add_argument("--minutes", type=float, default=0, help="of soak after these requests")
    parser.add_argument("--keep", type=int, default=120, help="seconds that files are kept")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        tempfile.tempdir = name  # gradio_client leaves a folder there for each download
        app = stack.enter_context(running_app(folder, script=SCRIPT.format(keep=options.keep)))
        server, tally = Server(app, folder), Tally()
        users = [
            User(server, tally, folder, number, options.cancels) for number in range(options.users)
        ]
        start = time.monotonic()
        ask_in_turn(users, options.requests)
        report(tally, time.monotonic() - start)
        bad = tally.outcomes[MIXED_UP] + tally.outcomes[LOST] + tally.outcomes[FAILED]
        if options.minutes:
            tally = Tally()
            for user in users:
                user.tally = tally
            start = time.monotonic()
            soak(users, server, options.minutes)
            report(tally, time.monotonic() - start)
            bad += tally.outcomes[MIXED_UP] + tally.outcomes[LOST] + tally.outcomes[FAILED]
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
