"""What stands between the page and the public: a fair queue, bounded files, a guard.

Gradio's server is made for one's own page among friends. Here visitors share it with whoever finds
its address.
"""

import asyncio
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import gradio as gr
from fastapi import HTTPException, Request
from fastapi.responses import PlainTextResponse
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.route_utils import FnIndexInferError, get_fn
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srgan.errors import SRGANError
from srgan.image import default_max_bytes, save_image
from srgan.settings import whole_number

#: Seconds that uploads and results are kept.
KEEP_FILES = 3600
#: Places in each line of the queue, and how many of all of them one visitor may hold; whoever
#: comes after that is told to come back.
QUEUE_SIZE, QUEUE_SHARE = 32, 16
#: Seconds between two looks for events to begin, and for progress to tell.
LOOK_EVERY = 0.01, 0.1
#: Bytes for uploads and results, at most half of what is free.
TEMP_BYTES = 2_000_000_000
#: Seconds in which a file is not deleted, however short the room is.
KEEP_LEAST = 600
#: Bytes of a request that is not an upload, an image as data URL say.
MAX_BODY = 10_000_000
#: Bytes of an upload beside the file, and of what comes between two looks at the room.
FORM_BYTES, ROOM_STEP = 100_000, 4_000_000
#: Bytes that a file counts at least: there must not be too many of them either.
LEAST_SIZE = 2**16
#: What Gradio offers below /gradio_api/ and this page doesn't need: it fetches other servers'
#: files, writes to the disk without bound, or starts programs.
NOT_SERVED = (
    "proxy=", "file=http:", "file=https:", "file/http:", "file/https:", "deep_link",
    "component_server", "process_recording", "vibe-", "undo-vibe",
)  # fmt: skip
#: The page may be embedded elsewhere, as in a Space: so nothing about frames.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

logger = logging.getLogger("server")


def no_files(error: OSError) -> str:
    """What a visitor is told when the disk is full or broken: no path."""
    return f"The server could not keep its files: {error.strerror}. Please try again later."


class FairQueue(Queue):
    """Gradio's queue with bounded lines, in which no visitor keeps the others waiting.

    Who waits for several things gets them in turn with the other visitors (start-time fair
    queueing, Goyal et al. 1996), and a place is never lost to someone who comes later and again.

    Args:
        demo: whose events it takes.
    """

    def __init__(self, demo: gr.Blocks):
        super().__init__(
            live_updates=True,
            concurrency_count=demo.max_threads,
            update_intervals=1,
            max_size=None,
            blocks=demo,
            default_concurrency_limit=1,
        )
        # Gradio looks for events every millisecond and for progress every ten, and every look takes
        # time from a thread that computes, for which the others then wait.
        self.sleep_when_free, self.progress_update_sleep_when_free = LOOK_EVERY
        self._turns: defaultdict[str, int] = defaultdict(int)  # of what each line started last

    async def push(
        self, body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, Any, str]:
        visitor = visitor_of(request, body.session_hash)
        lines = self.event_queue_per_concurrency_id
        try:
            line = lines.get(get_fn(self.blocks, None, body).concurrency_id)
        except (KeyError, FnIndexInferError):
            return False, "There is no such function.", "error"
        if line is not None and len(line.queue) >= QUEUE_SIZE:
            text = f"The server is busy: {QUEUE_SIZE} are waiting. Please try again in a minute."
            return False, text, "queue_full"
        waiting = [event for line in lines.values() for event in line.queue]
        if sum(event.visitor == visitor for event in waiting) >= QUEUE_SHARE:
            text = f"You have {QUEUE_SHARE} requests waiting. Please wait until some are done."
            raise HTTPException(429, text)
        self._forget_sessions()
        success, event_id, state = await super().push(body, request, username)
        if success:
            self._line_up(self.event_ids_to_events[event_id], visitor)
        return success, event_id, state

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        found = super().get_events()
        if found is not None:
            events, _, line = found
            self._turns[line] = events[0].turn
        return found

    def _line_up(self, event: Event, visitor: str) -> None:
        """Moves the event that came last to its place, and tells those behind it of theirs."""
        waiting = self.event_queue_per_concurrency_id[event.concurrency_id].queue
        own = [other.turn for other in waiting[:-1] if other.visitor == visitor]
        event.visitor, event.turn = visitor, 1 + max([self._turns[event.concurrency_id], *own])
        waiting.sort(key=lambda other: other.turn)
        self.broadcast_estimations(event.concurrency_id, waiting.index(event))

    def _forget_sessions(self) -> None:
        """Gradio keeps the names of events, read or not, of all sessions there ever were."""
        if len(self.pending_event_ids_session) > 2 * self.pending_messages_per_session.max_size:
            for session in set(self.pending_event_ids_session) - set(
                self.pending_messages_per_session
            ):
                del self.pending_event_ids_session[session]


def visitor_of(request: Request, session: str | None) -> str:
    """Whom an event counts for: the public address; where a proxy hides it, the session."""
    address = request.client.host if request.client else ""
    return _public_network(address) or session or address


def _public_network(address: str) -> str | None:
    """What one household has of public addresses; None if the address isn't public."""
    with suppress(ValueError):
        public = ip_address(address)
        public = getattr(public, "ipv4_mapped", None) or public
        if public.is_global:  # of IPv6 a household has 2^64
            return str(ip_network((public, 64 if public.version == 6 else 32), strict=False))
    return None


class File(NamedTuple):
    """A file of a visitor: when it was written, in seconds, and for how many bytes it counts."""

    written: float
    size: int
    path: str


class Files:
    """The folder of uploads and results: files are deleted after an hour, and take bounded room.

    Gradio's own `delete_cache` doesn't know of images that came inside a request, nor of files
    that it was handed together with other properties of a component, and ends for good when an
    upload comes just while it looks.
    """

    #: Uploads by their hash, half uploaded ones, results.
    NAMES = re.compile(r"[0-9a-f]{64}|tmp\w+|results-\w+")

    def __init__(self):
        self.folder = Path(os.path.abspath(get_upload_folder()))  # as Gradio remembers its files
        self.folder.mkdir(parents=True, exist_ok=True)
        self._results = Path(tempfile.mkdtemp(prefix="results-", dir=self.folder))
        self._most = whole_number(
            "SRGAN_TEMP_BYTES", min(TEMP_BYTES, shutil.disk_usage(self.folder).free // 2)
        )
        self._lock = threading.Lock()  # of `make_room`
        self._uploads: list[set[str]] = []  # as Gradio remembers them
        self._kept: set[str] = set()

    def know(self, demo: gr.Blocks) -> None:
        """Keeps what the page itself needs, and learns which uploads are this process's."""
        self._uploads = demo.temp_file_sets
        self._kept = set().union(*self._uploads)

    def new_folder(self) -> Path:
        """A folder for one result: in Gradio's cache, so that it is served, under a name that
        can't be guessed.

        Raises:
            SRGANError: there is no room.
        """
        self.make_room(0)
        folder = self._results / secrets.token_urlsafe(24)
        folder.mkdir(parents=True)
        return folder

    def save(self, image: Image.Image, path: Path) -> str:
        """Writes a result into its folder, and returns where.

        Raises:
            SRGANError: it can't be written, or there is no room.
        """
        save_image(image, path)
        try:
            self.make_room(0)
        except SRGANError:
            self._delete(str(path))
            raise
        return str(path)

    def make_room(self, needed: int) -> None:
        """Deletes the oldest files until there is room for so many bytes.

        Raises:
            SRGANError: all files are so new that someone may be waiting for them.
        """
        with self._lock:
            files = sorted(self._list())
            excess = sum(file.size for file in files) + needed - self._most
            for file in files:
                if excess <= 0 or file.written > time.time() - KEEP_LEAST:
                    break
                if self._delete(file.path):
                    excess -= file.size
        if excess > 0:
            raise SRGANError("The server has no room for files now. Please try again in a while.")

    def delete(self, older_than: float) -> None:
        """Deletes files that are older than so many seconds, of earlier processes too."""
        limit = time.time() - older_than
        for file in self._list():
            if file.written < limit:
                self._delete(file.path)
        for name in self._names():
            for folder, _, _ in os.walk(self.folder / name, topdown=False):
                with suppress(OSError):  # there is something in it
                    if os.stat(folder).st_mtime < limit:
                        os.rmdir(folder)

    def delete_own(self) -> None:
        """Deletes all that this process was sent and has made; what the page itself needs is that
        of other processes too."""
        for path in set().union(*self._uploads) - self._kept:
            self._delete(path)
        shutil.rmtree(self._results, ignore_errors=True)

    def _names(self) -> list[str]:
        """What lies in the folder, which is made anew if someone has cleaned it away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return list(filter(self.NAMES.fullmatch, os.listdir(self.folder)))

    def _list(self) -> Iterator[File]:
        for name in self._names():
            found = [str(self.folder / name)]
            for folder, _, names in os.walk(found[0]):
                found += [os.path.join(folder, name) for name in names]
            for path in found:
                with suppress(OSError):  # deleted meanwhile
                    status = os.stat(path)
                    if S_ISREG(status.st_mode) and path not in self._kept:
                        yield File(status.st_mtime, max(status.st_size, LEAST_SIZE), path)

    def _delete(self, path: str) -> bool:
        """Whether it is gone."""
        for some in self._uploads:
            some.discard(path)
        try:
            os.unlink(path)
        except OSError:
            return not os.path.lexists(path)
        if os.path.dirname(path) != str(self.folder):
            with suppress(OSError):  # there is something else in it
                os.rmdir(os.path.dirname(path))
        return True


class Guard:
    """Stands before Gradio: refuses what the page does not need, bounds what comes, adds headers.

    Args:
        app: Gradio's server.
        files: where its uploads go.
    """

    def __init__(self, app: ASGIApp, files: Files):
        self.app = app
        self.files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].partition("/gradio_api/")[2]
        answered = False

        async def answer(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if path.startswith("file"):
                    headers.setdefault("Cache-Control", f"private, max-age={KEEP_FILES}")
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            await PlainTextResponse(reason, status)(scope, receive, answer)

        if path.lower().startswith(NOT_SERVED):
            await refuse(404, "Not served here.")
            return
        if path.startswith("mcp") and scope["client"] and _public_network(scope["client"][0]):
            # For MCP tools Gradio calls itself and passes headers on: it is the asker that counts,
            # whatever the header said.
            MutableHeaders(scope=scope)["X-Forwarded-For"] = scope["client"][0]
        uploading = path.startswith("upload")
        try:
            await self.app(scope, self._bounded(receive, uploading), answer)
        except OSError as error:  # a full disk, mostly
            if answered or not uploading:
                raise
            logger.error("upload: %s", error)
            await refuse(507, no_files(error))

    def _bounded(self, receive: Receive, uploading: bool) -> Receive:
        """What receives a request's body, and ends a request that grows too large."""
        limit = default_max_bytes() + FORM_BYTES if uploading else MAX_BODY
        received, room = 0, 0 if uploading else FORM_BYTES  # an image as data URL is kept too

        async def bounded() -> Message:
            nonlocal received, room
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"The limit is {limit:,} bytes.")
            if received > room:
                room += ROOM_STEP
                try:
                    await asyncio.to_thread(self.files.make_room, ROOM_STEP)
                except SRGANError as error:
                    raise HTTPException(507, str(error)) from error
            return message

        return bounded
