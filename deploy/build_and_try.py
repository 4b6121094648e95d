r"""Builds the image and tries it, on a Debian machine without Docker and without a registry.

    apt-get install --no-install-recommends buildah debootstrap
    python3 deploy/build_and_try.py [options of `buildah bud`]

As root. The base image is made by debootstrap and given this machine's certificates and pip
configuration. The container is a read-only root with its own processes, an unprivileged user
without capabilities, and writable /tmp and /cache: what deploy/ asks of Docker and Kubernetes.
All is done in a temporary folder, which needs about 6 GB and is deleted at the end.

Where torch's own index can't be reached, and pip is configured to look at a folder of wheels:

    python3 deploy/build_and_try.py --volume /opt/wheels:/opt/wheels:ro \
        --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg TORCH=torch==2.13.0+cpu
"""

import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASE, IMAGE = "localhost/srgan-base", "localhost/srgan"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONFIGURATIONS = [Path("/etc/pip.conf"), Path("/root/.config/pip/pip.conf")]
#: Width and height of the image that is sent, and how much larger it has to come back.
SIDE, SCALE = 64, 4
#: Seconds that the app has to answer, and to end after SIGTERM.
START, STOP = 180, 90


class Buildah:
    """The buildah program with a storage of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.command = ["buildah", "--storage-driver", "vfs"]
        self.command += ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def _run(self, arguments: Sequence[str], stdout: int | None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.command, *arguments],
            check=True,
            stdout=stdout,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)},
        )

    def __call__(self, *arguments: str) -> str:
        """Runs a subcommand and returns its output; its messages pass through."""
        return self._run(arguments, subprocess.PIPE).stdout.strip()

    def make_base(self) -> None:
        """Debian with Python, and with what this machine's pip needs to reach its index."""
        container = self("from", "scratch")
        root = Path(self("mount", container))
        release = Path("/etc/os-release").read_text(encoding="utf-8")
        codename = dict(line.split("=", 1) for line in release.splitlines())["VERSION_CODENAME"]
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, codename, root], check=True)
        for file in (CERTIFICATES, *PIP_CONFIGURATIONS):
            if file.exists():
                copy = root / file.relative_to("/")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        shutil.rmtree(root / "var" / "cache" / "apt")
        shutil.rmtree(root / "var" / "lib" / "apt" / "lists")
        self("umount", container)
        self("commit", "--rm", "--quiet", container, BASE)

    def build(self, options: list[str]) -> None:
        command = ["bud", "--format", "docker", "--network", "host", "--build-arg", f"BASE={BASE}"]
        command += ["--file", str(REPOSITORY / "deploy" / "Dockerfile"), "--tag", IMAGE]
        self._run([*command, *options, str(REPOSITORY)], stdout=None)

    def configuration(self) -> dict:
        """What the image says of itself, in Docker's words."""
        return json.loads(self("inspect", "--type", "image", IMAGE))["Docker"]["config"]


class Container:
    """The image's program, started as Docker would with --read-only --cap-drop ALL."""

    def __init__(self, root: Path, configuration: dict, log: Path):
        self.port = _free_port()
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # as every engine does
        user, group = configuration["User"].split(":")
        self._as_user = [
            *("setpriv", "--no-new-privs"),
            *("chroot", f"--userspec={int(user)}:{int(group)}", "--groups=", root),
            *("env", "-i", *configuration["Env"], f"GRADIO_SERVER_PORT={self.port}"),
            *("sh", "-c", f'cd {configuration["WorkingDir"]} && exec "$@"', "sh"),
        ]
        mounts = f"""
            mount --bind {root} {root}
            mount -o remount,bind,ro {root}
            mount --rbind /dev {root}/dev
            mount -t proc proc {root}/proc
            mount -t tmpfs -o mode=1777 tmpfs {root}/tmp
            mount -t tmpfs -o uid={user},gid={group} tmpfs {root}/cache
            exec "$@"
        """
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        program = [*self._as_user, *configuration["Entrypoint"], *configuration["Cmd"]]
        with open(log, "w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [*unshare, "sh", "-ec", mounts, "sh", *program],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _main(self) -> Path:
        """The program's folder in /proc; inside the container it is process 1."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}")
        return Path("/proc") / (task / "children").read_text().strip()

    def check_health(self, command: list[str]) -> bool:
        """Whether the image's own health check finds it healthy."""
        done = subprocess.run([*self._as_user, *command], stderr=subprocess.DEVNULL)
        return done.returncode == 0

    def status(self) -> dict[str, str]:
        lines = (self._main / "status").read_text().splitlines()
        return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        os.kill(int(self._main.name), signal.SIGTERM)
        return self.process.wait(STOP)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _png(side: int) -> bytes:
    """A grey square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * side) * side)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _fetch(url: str, payload: dict | None = None) -> bytes:
    request = urllib.request.Request(
        url,
        data=None if payload is None else json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def upscale(url: str, png: bytes) -> bytes:
    """The enlarged file that /upscale answers with."""
    image = {"url": "data:image/png;base64," + base64.b64encode(png).decode()}
    call = f"{url}/gradio_api/call/upscale"
    event = json.loads(_fetch(call, {"data": [image]}))["event_id"]
    events = _fetch(f"{call}/{event}").decode()
    if "event: complete" not in events:
        sys.exit(f"error: /upscale answered\n{events}")
    return _fetch(json.loads(events.rsplit("data: ", 1)[1])[0]["url"])


def try_out(root: Path, configuration: dict, log: Path) -> None:
    """Starts the container, asks it for one image and ends it.

    Raises:
        SystemExit: it does not do what it should.
    """
    began = time.monotonic()
    container = Container(root, configuration, log)
    try:
        kind, *command = configuration["Healthcheck"]["Test"]
        check(kind == "CMD", "the health check needs no shell")
        while not container.check_health(command):
            if container.process.poll() is not None or time.monotonic() - began > START:
                sys.exit(f"error: it does not start\n{log.read_text()}")
            time.sleep(0.5)
        print(f"healthy after        {time.monotonic() - began:6.1f} s")
        check(_fetch(f"{container.url}/healthz") == b"ok", "/healthz answers ok")
        status = container.status()
        check(
            status["Uid"].split() == [configuration["User"].split(":")[0]] * 4, "user is not root"
        )
        check(int(status["CapEff"], 16) == 0, "it has no capabilities")
        check(status["NSpid"].split()[-1] == "1", "Python itself is process 1")
        began = time.monotonic()
        width, height = struct.unpack(">II", upscale(container.url, _png(SIDE))[16:24])
        print(f"{SIDE}×{SIDE} enlarged in    {time.monotonic() - began:6.1f} s")
        check((width, height) == (SIDE * SCALE, SIDE * SCALE), "/upscale answers four times larger")
        peak = int(container.status()["VmHWM"].split()[0]) / 1024
        print(f"peak memory          {peak:6.0f} MiB")
        check(container.terminate() == 0, "SIGTERM ends it with exit code 0")
        check("Read-only file system" not in log.read_text(), "it writes to /tmp and /cache only")
    finally:
        container.process.kill()
        container.process.wait()


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"error: not so: {what}")
    print(f"ok: {what}")


def megabytes(folder: Path) -> float:
    """What a folder takes on the disk."""
    done = subprocess.run(["du", "-sm", folder], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[0])


def main() -> None:
    if "-h" in sys.argv or "--help" in sys.argv:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="srgan-image-") as work:
        folder = Path(work)
        buildah = Buildah(folder)
        buildah.make_base()
        began = time.monotonic()
        buildah.build(sys.argv[1:])
        print(f"built in             {time.monotonic() - began:6.1f} s")
        root = Path(buildah("mount", buildah("from", IMAGE)))
        for name, part in {"image": "", "packages": "venv", "program": "app"}.items():
            print(f"size of {name:12} {megabytes(root / part):6.0f} MiB")
        try_out(root, buildah.configuration(), folder / "app.log")


if __name__ == "__main__":
    main()
