"""Two replicas behind a reverse proxy that keeps every visitor at one of them, by a cookie."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from app_process import RunningApp, free_port, running_app
from gradio_client import Client, handle_file
from gradio_client.client import Job
from PIL import Image, ImageChops

from srgan import Upscaler

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
#: Visitors of each replica, at least.
EACH = 3
#: Sides of a photo that is done at once, and of one that takes longer than a replica has to live.
SMALL, LARGE = 24, 512
#: Seconds for an answer on a busy machine.
ANSWER = 60
#: What an Ingress with cookie affinity does: a visitor without the cookie is given one, and the
#: cookie decides on the replica as long as that one is there.
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    log_format replicas '$route $upstream_addr $status $request';
    access_log {folder}/access.log replicas;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    map $cookie_replica $route {{ "" $request_id; default $cookie_replica; }}
    map $cookie_replica $new_cookie {{ "" "replica=$request_id; Path=/; HttpOnly"; default ""; }}
    upstream replicas {{
        hash $route consistent;
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        add_header Set-Cookie $new_cookie always;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


@dataclass
class Replicas:
    """Apps behind a proxy at `url`."""

    url: str
    apps: dict[str, RunningApp]  # by host and port
    log: Path

    def requests(self) -> list[tuple[str, str, str]]:
        """Route, replica and path of every request that the proxy has answered.

        Of several replicas that were tried, the last is the one that answered.
        """
        lines = (line.split(" ") for line in self.log.read_text().splitlines())
        return [(route, *tried[-1:], path) for route, *tried, _, _, path, _ in lines]

    def replica_of(self, session: Client) -> str:
        """The one replica that has answered a session so far."""
        route = session.cookies["replica"]
        (replica,) = {replica for asked, replica, _ in self.requests() if asked == route}
        return replica


@contextmanager
def proxy(folder: Path, servers: list[str]) -> Iterator[str]:
    """nginx without privileges, all of whose files lie in the folder."""
    port = free_port()
    servers = "\n".join(f"server {server};" for server in servers)
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, servers=servers))
    command = [NGINX, "-e", folder / "error.log", "-p", folder, "-c", configuration]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def replicas(tmp_path) -> Iterator[Replicas]:
    folders = [tmp_path / name for name in ("first", "second", "proxy")]
    for folder in folders:
        folder.mkdir()
    *homes, folder = folders
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            apps = list(pool.map(lambda home: stack.enter_context(running_app(home)), homes))
        servers = [app.url.removeprefix("http://") for app in apps]
        url = stack.enter_context(proxy(folder, servers))
        yield Replicas(url, dict(zip(servers, apps, strict=True)), folder / "access.log")


class Visitor:
    """A session that sends photos of a colour of its own."""

    def __init__(self, url: str, folder: Path, number: int):
        self.session = Client(
            url, verbose=False, download_files=folder, httpx_kwargs={"timeout": ANSWER}
        )
        self.colour = (41 * number % 256, 255 - 41 * number % 256, 128)
        self.folder = folder / str(number)
        self.folder.mkdir()

    def ask(self, side: int = SMALL) -> Job:
        photo = self.folder / f"{side}.png"
        Image.new("RGB", (side, side), self.colour).save(photo)
        return self.session.submit(handle_file(photo), api_name="/upscale")

    def is_answered_by(self, job: Job) -> bool:
        """Whether the job ends with this visitor's own photo, enlarged."""
        expected = Upscaler().upscale(Image.new("RGB", (SMALL, SMALL), self.colour))
        with Image.open(job.result(timeout=ANSWER)) as large:
            if large.size != expected.size:
                return False
            # The two may have convolved in different ways, whose results can differ in a rounding.
            difference = ImageChops.difference(large, expected)
            return max(most for _, most in difference.getextrema()) <= 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_sessions_keep_their_replica_and_outlive_the_other(replicas, tmp_path):
    visitors = {replica: [] for replica in replicas.apps}
    number = 0
    while not all(len(some) >= EACH for some in visitors.values()):
        visitor = Visitor(replicas.url, tmp_path, number)
        visitors[replicas.replica_of(visitor.session)].append(visitor)
        number += 1
    (doomed, unlucky), (living, lucky) = visitors.items()
    everyone = unlucky + lucky

    for _ in range(2):
        jobs = [visitor.ask() for visitor in everyone]
        assert all(map(Visitor.is_answered_by, everyone, jobs))
    for replica, some in visitors.items():
        assert {replicas.replica_of(visitor.session) for visitor in some} == {replica}

    def joined() -> int:
        return sum(path.endswith("/queue/join") for _, _, path in replicas.requests())

    before = joined()
    unlucky_jobs = [visitor.ask(LARGE) for visitor in unlucky]
    wait_until(lambda: joined() == before + len(unlucky))
    lucky_jobs = [visitor.ask() for visitor in lucky]
    wait_until(lambda: joined() == before + len(everyone))
    replicas.apps[doomed].process.kill()

    assert all(map(Visitor.is_answered_by, lucky, lucky_jobs))
    assert all(job.exception(timeout=ANSWER) for job in unlucky_jobs)

    newcomers = [Visitor(replicas.url, tmp_path, number + new) for new in range(EACH)]
    jobs = [visitor.ask() for visitor in unlucky + newcomers]
    assert all(map(Visitor.is_answered_by, unlucky + newcomers, jobs))
    for visitor in lucky + newcomers:
        assert replicas.replica_of(visitor.session) == living
