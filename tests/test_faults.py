"""The app while things go wrong around it."""

import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from app_process import ROOT, free_port, running_app, start
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from srgan import Upscaler, open_image

#: Seconds for anything to happen on a busy machine.
PATIENCE = 180
#: The app with a network that breaks on images 40 pixels wide, and takes half a minute for those
#: that are 41; it is given a second after SIGTERM. Pillow's own limit is met by every picture.
SCRIPT = """
import time, app
from PIL import Image
from srgan import Upscaler

class Faulty(Upscaler):
    def upscale(self, image, detail=None, progress=None, **options):
        print("enlarging", image.width, flush=True)
        if image.width == 40:
            raise KeyError("/a/path/of/the/server")
        for _ in range(300 if image.width == 41 else 0):
            progress(0.5)
            time.sleep(0.1)
        return super().upscale(image, detail, progress, **options)

app.GRACE = 1
Image.MAX_IMAGE_PIXELS = 100
app.launch(app.create_demo(Faulty()))
"""


def picture(path: Path, width: int = 24) -> Path:
    Image.linear_gradient("L").resize((width, 18)).convert("RGB").save(path)
    return path


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connect(url: str, **options) -> Client:
    return Client(url, verbose=False, httpx_kwargs={"timeout": PATIENCE}, **options)


def is_answered(client: Client, photo: Path, weights: Path) -> bool:
    result = open_image(client.predict(handle_file(photo), api_name="/upscale"))
    return result.tobytes() == Upscaler(weights).upscale(open_image(photo)).tobytes()


@pytest.fixture(scope="module")
def served(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with running_app(folder, tiny_weights, SCRIPT) as app:
        app.log = folder / "app.log"
        yield app


@pytest.fixture
def client(served):
    return connect(served.url)


def test_a_handler_that_raises_takes_nobody_with_it(served, client, tiny_weights, tmp_path):
    bad, good = picture(tmp_path / "bad.png", 40), picture(tmp_path / "good.png")
    jobs = [
        client.submit(handle_file(photo), api_name="/upscale") for photo in (bad, good, bad, good)
    ]
    for job in jobs[::2]:
        with pytest.raises(AppError) as caught:
            job.result(PATIENCE)
        assert "/a/path" not in str(caught.value)
    for job in jobs[1::2]:
        assert open_image(job.result(PATIENCE)).size == (96, 72)
    assert served.log.read_text().count("KeyError: '/a/path/of/the/server'") == 2


def test_a_full_disk_is_said_and_passes(served, client, tiny_weights, tmp_path):
    """The system refuses to write files of more than 2 kB, as it does where a disk is full."""
    photo, large = picture(tmp_path / "cat.png"), tmp_path / "noise.png"
    Image.frombytes("RGB", (100, 100), os.urandom(30000)).save(large)
    _, unlimited = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
    server = httpx.Client(base_url=f"{served.url}/gradio_api/", timeout=PATIENCE)
    with open(large, "rb") as file:
        uploaded = server.post("upload", files={"files": file}).json()[0]
    log_size = served.log.stat().st_size
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (log_size + 2000, unlimited))
    try:
        with open(large, "rb") as file:
            answer = server.post("upload", files={"files": file})
        assert answer.status_code == 507 and "could not keep" in answer.text
        image = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
        event = server.post("call/upscale", json={"data": [image]}).json()["event_id"]
        answer = server.get(f"call/upscale/{event}").text
        assert "event: error" in answer and "Can't write the image" in answer
    finally:
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert is_answered(client, photo, tiny_weights)


def test_sigterm_ends_what_takes_too_long_and_tells_all(served, client, tmp_path):
    """The last test of this app."""
    slow, waiting = picture(tmp_path / "slow.png", 41), picture(tmp_path / "waiting.png")
    jobs = [client.submit(handle_file(slow), api_name="/upscale")]
    wait_until(lambda: "enlarging 41" in served.log.read_text())
    others = [connect(served.url) for _ in range(2)]
    jobs += [one.submit(handle_file(waiting), api_name="/upscale") for one in others]
    wait_until(lambda: all(job.status().rank is not None for job in jobs[1:]))
    assert served.terminate() == 0
    for job in jobs:
        assert job.exception(PATIENCE) is not None
    assert "enlarging 24" not in served.log.read_text().rpartition("enlarging 41")[2]


def test_after_sigkill_the_same_command_serves_again(tiny_weights, tmp_path):
    photo, port = picture(tmp_path / "dog.png"), free_port()
    with running_app(tmp_path, tiny_weights, port=port) as app:
        client = connect(app.url, download_files=tmp_path / "downloads")
        assert is_answered(client, photo, tiny_weights)
        app.process.kill()
        app.process.wait()
    left = [path for path in (tmp_path / "gradio").rglob("dog*") if path.is_file()]
    assert len(left) == 2  # upload and result
    two_hours_ago = time.time() - 7200
    for path in left:
        os.utime(path, (two_hours_ago, two_hours_ago))
    with running_app(tmp_path, tiny_weights, port=port) as app:
        client = connect(app.url, download_files=tmp_path / "downloads")
        assert not any(path.exists() for path in left)
        assert is_answered(client, photo, tiny_weights)


def test_a_damaged_bundled_file_is_one_line(tmp_path):
    copy = tmp_path / "copy"
    for name in ("srgan", "weights", "examples"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("app.py", "server.py", "page.css", "page.js"):
        shutil.copy(ROOT / name, copy)
    with open(copy / "weights" / "srgan-x4.safetensors", "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    process = start(["app.py"], free_port(), tmp_path, {"SRGAN_WEIGHTS": "bundled"}, copy)
    assert process.wait(PATIENCE) != 0
    log = (tmp_path / "app.log").read_text()
    assert "Traceback" not in log
    assert "srgan-x4.safetensors is damaged" in log.splitlines()[-1]
