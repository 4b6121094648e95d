"""Large files over HTTP, resumed where an earlier attempt stopped."""

import http.client
import logging
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from train.parallel import progress
from train.sources import PrepareError

logger = logging.getLogger(__name__)


class _Incomplete(Exception):
    """The connection ended before the file did."""


def download(url: str, destination: Path, *, attempts: int = 6, pause: float = 2.0) -> None:
    """Fetches a large file, going on where an earlier attempt or run stopped.

    The bytes go to `destination`.part, which is renamed when its size is the one the server
    announced.

    Args:
        url: where it is.
        destination: where it shall be.
        attempts: without a byte gained in between, after which to give up.
        pause: seconds before the second attempt; doubled for each further one.

    Raises:
        PrepareError: it can't be had; the message says why.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    failures, most = 0, _size(part)
    logger.info("downloading %s to %s", url, destination)
    while True:
        try:
            _fetch(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise PrepareError(
                    f"{url}: the server says {error.code} {error.reason}; check the address "
                    f"(--mirflickr-url)"
                ) from error
            problem: Exception = error
        except (
            _Incomplete,
            urllib.error.URLError,
            http.client.HTTPException,
            ssl.SSLError,
            ConnectionError,
            TimeoutError,
        ) as error:
            problem = error
        failures = 1 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= attempts:
            raise PrepareError(
                f"{url}: {problem} ({failures} attempts); {_size(part)} bytes are kept in {part}, "
                f"the same command goes on from there"
            ) from problem
        wait = pause * 2 ** (failures - 1)
        logger.warning("%s: %s; trying again in %g s", url, problem, wait)
        time.sleep(wait)
    part.replace(destination)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path) -> None:
    """Appends what is missing to `part`; replaces it where the server can't send a part."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "srgan-x4 train.prepare"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: it is all there, or not this file.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):
            return
        part.unlink()
        raise _Incomplete(f"expected {total} bytes, got {have}; starting anew") from error
    with response:
        if response.status == 206:
            total = int(response.headers["Content-Range"].rpartition("/")[2])
        else:
            have = 0
            total = int(response.headers["Content-Length"] or 0)  # 0: not announced
        free = shutil.disk_usage(part.parent).free
        if total - have > free:
            raise PrepareError(
                f"{url} needs {total - have} bytes more in {part.parent}, {free} are free: make "
                f"room or choose another folder with --downloads"
            )
        with (
            open(part, "ab" if have else "wb") as file,
            progress(total or None, have, part.stem, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(2**18):
                file.write(block)
                bar.update(len(block))
    if total and _size(part) != total:
        got = _size(part)
        if got > total:
            part.unlink()
        raise _Incomplete(f"expected {total} bytes, got {got}")
