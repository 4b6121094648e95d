"""What a stranger can't do to the server or to the other visitors."""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import httpx
import pytest
from app_process import ROOT, running_app
from PIL import Image

from server import KEEP_LEAST, MAX_BODY

#: Limits of the app under test, in bytes.
MAX_BYTES, TEMP_BYTES = 5_000_000, 20_000_000
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def served(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    limits = {"SRGAN_MAX_BYTES": str(MAX_BYTES), "SRGAN_TEMP_BYTES": str(TEMP_BYTES)}
    with running_app(folder, tiny_weights, environment=limits) as running:
        running.files = folder / "gradio"
        yield running


@pytest.fixture
def api(served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served.url}/gradio_api/", timeout=180) as client:
        yield client


def picture(path: Path) -> Path:
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(path)
    return path


def upload(api: httpx.Client, name: str, content: bytes) -> str:
    return api.post("upload", files={"files": (name, content)}).json()[0]


def call(api: httpx.Client, name: str, data: list) -> str:
    """The text of what comes of a call."""
    event = api.post(f"call/{name}", json={"data": data}).json()["event_id"]
    return api.get(f"call/{name}/{event}").text


def functions(served) -> dict[int, dict]:
    config = httpx.get(f"{served.url}/config", timeout=180).json()
    return {dependency["id"]: dependency for dependency in config["dependencies"]}


def join(api: httpx.Client, function: int, data: list, session: str) -> list[dict]:
    """Calls a function by its number, as the page does; returns all messages."""
    body = {"fn_index": function, "data": data, "session_hash": session}
    assert api.post("queue/join", json=body).status_code == 200
    messages = []
    with api.stream("GET", "queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                messages.append(json.loads(line.removeprefix("data:")))
    return messages


# ---- files of the server


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        str(ROOT / "app.py"),
        str(ROOT / "weights" / "config.json"),
        "app.py",
        "../../../../../../etc/passwd",
        "{files}",
        "{files}/",
        "{files}/../app.log",
        "{files}/../../../../../../../etc/passwd",
        "file:///etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_other_file_is_served(served, api, path):
    path = path.format(files=served.files)
    for form in (path, quote(path, safe=""), quote(quote(path, safe=""), safe="")):
        for route in ("file=", "file/", "stream/"):
            answer = api.get(f"{route}{form}")
            assert answer.status_code in (400, 403, 404, 405)
            assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(ROOT / "examples" / "cat.png"), "{files}/../cat.png", "app.py"]
)
def test_no_other_file_is_enlarged(served, api, path):
    picture(served.files.parent / "cat.png")
    path = path.format(files=served.files)
    for more in ({}, FILE, {"is_stream": True, **FILE}):
        image = {"path": path, **more}
        answer = call(api, "upscale", [image])
        assert "event: error" in answer and "event: complete" not in answer
    answer = call(api, "upscale", [None, {"path": path, **FILE}])
    assert "event: error" in answer


def test_folders_of_results_cannot_be_guessed_or_listed(served, api, tmp_path):
    uploaded = upload(api, "cat.png", picture(tmp_path / "cat.png").read_bytes())
    answer = call(api, "upscale", [{"path": uploaded, **FILE}])
    file = json.loads(answer.strip().splitlines()[-1].removeprefix("data: "))[0]
    folder = Path(file["path"]).parent
    assert api.get(f"file={file['path']}").status_code == 200
    assert len(folder.name) >= 32
    for listed in (folder, folder.parent, Path(uploaded).parent):
        assert api.get(f"file={listed}").status_code == 403


def test_an_uploads_address_is_not_its_plain_hash(api):
    content = os.urandom(100)
    assert hashlib.sha256(content).hexdigest() not in upload(api, "noise", content)


# ---- other servers


@pytest.fixture
def neighbour() -> Iterator[HTTPServer]:
    """A server on this machine that would send anyone on to another address of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/secret")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/cat.png",
        "HTTP://127.0.0.1:{port}/cat.png",
        "http://localhost:{port}/cat.png",
        "http://2130706433:{port}/cat.png",
        "http://[::ffff:127.0.0.1]:{port}/cat.png",
        "http://169.254.169.254/latest/meta-data/",
        "https://huggingface.co/cat.png",
    ],
)
def test_addresses_are_not_fetched(api, neighbour, address):
    address = address.format(port=neighbour.server_port)
    for image in ({"path": address, **FILE}, {"path": address}, {"url": address, **FILE}):
        assert "event: error" in call(api, "upscale", [image])
    # Gradio would fetch what stands in place of a number, too.
    assert "event: error" in call(api, "upscale", [None, {"path": address, **FILE}])
    for route in ("file=", "file/", "proxy="):
        assert api.get(f"{route}{address}").status_code in (400, 403, 404)
    assert neighbour.asked == []


def test_a_visitor_is_told_that_addresses_are_not_fetched(api):
    answer = call(api, "upscale", [{"path": "https://example.com/cat.png", **FILE}])
    assert "Addresses are not fetched" in answer


# ---- the queue and other visitors


def test_nothing_that_computes_runs_past_the_queue(served, api):
    for number, function in functions(served).items():
        if function["cancels"]:
            continue  # Stop
        for name in {function["api_name"], "predict", "upscale"}:
            for route in ("run", "api"):
                body = {"data": [], "fn_index": number, "session_hash": "a visitor"}
                assert api.post(f"{route}/{name}", json=body).status_code == 404


def test_the_api_is_three_functions(served, api):
    assert set(api.get("info").json()["named_endpoints"]) == {"/upscale", "/compare", "/info"}


def test_a_visitor_cannot_pretend_a_state(served, api):
    """The page's runs are kept by the server: what a client says of them is ignored."""
    enlarge = next(
        number for number, f in functions(served).items() if f["api_name"].startswith("enlarge")
    )
    forged = {"photo": str(ROOT / "examples" / "cat.png"), "name": "cat", "mode": "enlarge"}
    last = join(api, enlarge, [forged], "a forger")[-2]
    assert last["msg"] == "process_completed"
    assert "cat" not in json.dumps(last["output"].get("data"))


def test_functions_that_do_not_exist_are_an_error(served, api):
    for body in ({"fn_index": 999}, {"fn_index": None}, {}):
        answer = api.post("queue/join", json={"data": [], "session_hash": "lost", **body})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "deep_link?session_hash=a"),
        ("POST", "component_server"),
        ("POST", "process_recording"),
        ("POST", "vibe-edit"),
        ("GET", "runs"),
        ("GET", "../monitoring"),
        ("GET", "../monitoring/summary"),
    ],
)
def test_what_the_page_does_not_need_is_closed(api, method, path):
    assert api.request(method, path, json={} if method == "POST" else None).status_code in (
        403,
        404,
    )


# ---- what comes back


def test_texts_about_files_carry_no_html(api):
    name = "<img src=x onerror=alert(1)>"
    answer = call(api, "upscale", [{"path": upload(api, name, b"no image"), **FILE}])
    assert "event: error" in answer and "<" not in answer


def test_uploaded_pages_are_not_shown_as_such(api):
    script = b"<script>alert(1)</script>"
    for name in ("page.html", "drawing.svg", "page.xhtml", "cat.png.htm"):
        answer = api.get(f"file={upload(api, name, script)}")
        assert answer.status_code == 200
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"


def test_every_answer_has_its_headers(served, api, tmp_path):
    file = upload(api, "cat.png", picture(tmp_path / "cat.png").read_bytes())
    answers = [httpx.get(served.url), httpx.get(f"{served.url}/config"), api.get("proxy=x")]
    answers += [api.get("info"), api.get(f"file={file}"), api.get("file=/etc/passwd")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
    assert answers[4].headers["cache-control"].startswith("private")


def test_other_pages_cannot_use_a_server_at_home(served):
    """One that runs on the visitor's own machine."""
    for origin, allowed in (("https://example.com", False), (served.url, True)):
        answer = httpx.get(f"{served.url}/config", headers={"Origin": origin})
        assert ("access-control-allow-origin" in answer.headers) == allowed


def test_analytics_are_off(served):
    assert httpx.get(f"{served.url}/config", timeout=180).json()["analytics_enabled"] is False


# ---- sizes


def test_large_requests_are_refused(served, api):
    def chunks(size: int) -> Iterator[bytes]:
        start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        yield start
        for _ in range(size // 100_000):
            yield bytes(100_000)
        yield b"\r\n--x--\r\n"

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    in_chunks = api.post("upload", content=chunks(2 * MAX_BYTES), headers=form)
    files = [("files", (f"{i}.png", bytes(MAX_BYTES // 2))) for i in range(3)]
    together = api.post("upload", files=files)
    data_url = "data:image/png;base64," + base64.b64encode(bytes(MAX_BODY)).decode()
    image = {"url": data_url, **FILE}
    in_json = api.post("call/upscale", json={"data": [image]})
    assert [a.status_code for a in (in_chunks, together, in_json)] == [413] * 3
    assert httpx.get(f"{served.url}/healthz").text == "ok"


def test_room_for_files_is_bounded(served, api):
    """The last test of this app. When there is no room, old files make room, new ones don't."""

    def used() -> int:
        return sum(path.stat().st_size for path in served.files.rglob("*") if path.is_file())

    def send() -> int:
        content = os.urandom(MAX_BYTES - 1000)
        return api.post("upload", files={"files": ("noise", content)}).status_code

    sent = [send() for _ in range(6)]
    assert sent[0] == 200 and sent[-1] == 507
    assert "no room" in api.post("upload", files={"files": ("noise", b"1")}).text
    image = {"url": "data:image/png;base64," + base64.b64encode(bytes(10)).decode(), **FILE}
    large = {"url": "data:image/png;base64," + base64.b64encode(bytes(200_000)).decode(), **FILE}
    assert api.post("call/upscale", json={"data": [large]}).status_code == 507
    assert used() <= TEMP_BYTES + MAX_BYTES
    assert "event: error" in call(api, "upscale", [image])
    a_while_ago = time.time() - KEEP_LEAST - 100
    for path in served.files.rglob("*"):
        if path.is_file():
            os.utime(path, (a_while_ago, a_while_ago))
    assert [send() for _ in range(2)] == [200, 200]
    assert used() <= TEMP_BYTES + MAX_BYTES
