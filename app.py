"""The page, the API and the MCP tools.

    python app.py [--share] [--weights WEIGHTS]

serves on http://localhost:7860; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say otherwise.
SRGAN_CONCURRENCY says how many pictures are enlarged at a time, SRGAN_TEMP_BYTES how much room
uploads and results may take in GRADIO_TEMP_DIR; SRGAN_PRECISION is that of `srgan.Upscaler`.
"""

import argparse
import asyncio
import contextvars
import html
import importlib.util
import logging
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

# Read when Gradio is imported. Its temporary folder is shared by every Gradio program otherwise;
# and after each event it makes a table of so many past ones, which nobody looks at.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / "srgan"))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "10")
# Read when torch first computes. oneDNN keeps what it compiles for each shape, up to 2 MB, and
# 1024 of it by default; an image needs about 10, and every visitor brings other shapes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
try:
    import spaces  # before torch, which it has to patch on ZeroGPU
except ImportError:
    spaces = None

from srgan import SCALE, Cancelled, ImageError, SRGANError, Upscaler, open_image

#: Whether this Space is lent a GPU for each image, which another process then enlarges.
ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the SRGAN page and API.")
    parser.add_argument("--share", action="store_true", help="also give it a public link")
    parser.add_argument(
        "--weights",
        help="bundled, a weights folder or .safetensors file, or user/repo[@revision] on the Hub; "
        "the default is SRGAN_WEIGHTS, else bundled",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    # Until the server stands; as the first process of a container Python would ignore it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    load = partial(Upscaler, arguments.weights, fallback=True)
    if not ZERO_GPU:  # where torch is patched for this thread only
        # The Hub may keep the weights waiting, and Gradio takes seconds to import: both at once.
        import huggingface_hub.file_download  # noqa: F401  (not in two threads at a time)

        load = ThreadPoolExecutor(1).submit(load).result

import gradio as gr
from fastapi.responses import PlainTextResponse
from gradio.block_function import BlockFunction
from gradio.components import Component
from gradio.context import LocalContext
from gradio.data_classes import ImageData
from gradio.processing_utils import save_base64_to_cache
from gradio.queueing import Event
from gradio.utils import is_in_or_equal
from gradio_client.utils import is_file_obj, is_http_url_like, traverse
from PIL import Image
from starlette.middleware import Middleware

from server import KEEP_FILES, FairQueue, Files, Guard, no_files
from srgan.allocator import keep_freed_memory
from srgan.image import (
    OUTPUT_FORMATS,
    crop_to_scale,
    default_max_bytes,
    enlarge_bicubic,
    enlarge_nearest,
    notices,
    shrink,
    to_tensor,
)
from srgan.metrics import psnr_y, ssim_y
from srgan.settings import whole_number
from srgan.upscaler import Model
from srgan.weights import Weights

HERE = Path(__file__).resolve().parent
EXAMPLES = {
    "Cat": HERE / "examples" / "cat.png",
    "Coffee": HERE / "examples" / "coffee.png",
    "Portrait": HERE / "examples" / "astronaut.png",
    "Rocket": HERE / "examples" / "rocket.png",
}
ENLARGE, RESTORE = "enlarge", "restore"
CLEAN, PHOTO = get_args(Model)
MODELS = {CLEAN: "Clean", PHOTO: "Photo"}
#: Model -> what its results are called.
RESULTS = {CLEAN: f"srgan-x{SCALE}", PHOTO: f"srgan-photo-x{SCALE}"}
BICUBIC, PIXELS, ORIGINAL = "bicubic", "pixels", "original"
LEFT_CHOICES = [("Bicubic", BICUBIC), ("Original pixels", PIXELS)]
DOWNLOADS = {"png": "PNG", "webp": "WebP", "jpeg": "JPEG", "avif": "AVIF", "tiff": "TIFF"}
#: Shortest side of a photograph that is shrunk and restored; SSIM needs it.
RESTORE_LEAST = 32
#: Seconds between two looks for files that are too old.
CLEAN_EVERY = 600
PORT = 7860
#: What in Gradio's theme has too little contrast.
READABLE = {
    "body_text_color_subdued": "*neutral_500",
    "block_info_text_color": "*neutral_500",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_600",
}
#: Visitors whose state is remembered, 70 kB each; whoever was away for longest is forgotten.
SESSIONS = 300
#: Seconds that a running image is given to finish after SIGTERM.
GRACE = 60
#: Seconds at least between two moves of a progress bar, each of which costs the network time.
BAR_STEP = 0.2

_DELETED = f"has been deleted: after {KEEP_FILES // 3600} h, or earlier when room is short"
_RESULT_DELETED = f"This result {_DELETED}. Please drop the photo again."
_RESTARTING = "The server is being restarted. Please try again in a minute."

logger = logging.getLogger("app")
Report = Callable[[float], None]  # the share of the work that is done, in [0, 1]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One photograph on the page, and the PNG files that have been made of it.

    Attributes:
        photo: the uploaded file.
        name: its name without suffix, fit for file names and HTML.
        mode: ENLARGE or RESTORE.
        size: width and height of the photograph.
        lr_size: width and height of what is enlarged.
        alpha: whether there is transparency.
        notices: what was left out of the file.
        bicubic: the bicubic enlargement; its folder also takes the other left halves.
        model: for the enlargement by the network.
        detail: for it too, where the model is CLEAN.
        asked: when the visitor asked for all this, in seconds of the monotonic clock.
        srgan: the enlargement by the network, None until there is one.
        seconds: which the network took for it.
        remembered: whether that was for an earlier visitor; only examples are.
        scores: PSNR in dB and SSIM by name of the method, where there is an original.
    """

    photo: str
    name: str
    mode: str
    size: tuple[int, int]
    lr_size: tuple[int, int]
    alpha: bool
    notices: tuple[str, ...]
    bicubic: str
    model: Model
    detail: float
    asked: float
    srgan: str | None = None
    seconds: float = 0.0
    remembered: bool = False
    scores: dict[str, tuple[float, float]] | None = None


class Handlers:
    """What page and API do. No image outlives its call but in files, except enlarged examples.

    Args:
        upscaler: shared by all visitors.
    """

    def __init__(self, upscaler: Upscaler):
        self.upscaler = upscaler
        on_cpu = upscaler.device.type == "cpu"
        self.concurrency = whole_number("SRGAN_CONCURRENCY", 1 if on_cpu else 2)
        self.files = Files()
        self._network = _on_zero_gpu(upscaler) if ZERO_GPU else upscaler.upscale
        # Always the same threads, each of which torch gives memory and threads of its own, and with
        # more threads than processors OpenMP waits more slowly; and so many images at a time, also
        # while a stopped one winds up.
        self._workers = ThreadPoolExecutor(self.concurrency, thread_name_prefix="network")
        self._runs: set[Future] = set()  # that run or wait for a worker
        self._closed = threading.Event()
        self._examples: dict[tuple[str, str, Model], tuple[Image.Image, float]] = {}
        # Session -> its newest run's stop signal, which nothing but that run keeps alive.
        self._stops: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        # Session -> the run that its page has, which nothing but the page's state keeps alive.
        self._newest: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        # Session -> when its visitor last pressed Stop, of the last `SESSIONS` who did.
        self._stopped: dict[str | None, float] = {}

    # ---- API and MCP: the names, parameters and docstrings below are what clients see

    async def upscale(
        self,
        image: str,
        detail: float | None = None,
        output_format: str = "png",
        model: str = CLEAN,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        """Enlarge a photograph to four times its width and height with SRGAN, a neural network
        that adds believable detail. Colour profile, orientation, transparency and EXIF are kept.

        Args:
            image: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC; file or data URL, not an address.
            detail: From 0, faithful and smooth, to 1, textured; details then may be invented.
            output_format: File format of the result: png (exact), webp, jpeg, avif, tiff or bmp.
            model: clean for sharp originals, photo for JPEGs with blocks, noise or slight blur.

        Returns:
            The enlarged image file.
        """
        if output_format not in OUTPUT_FORMATS:
            raise gr.Error(
                f"The format {html.escape(output_format)!r} is not known. Choose one of "
                f"{', '.join(OUTPUT_FORMATS)}.",
                print_exception=False,
            )

        def work(report: Report) -> str:
            self.upscaler.check(detail, model)
            photo = open_image(_given(image), max_pixels=self.upscaler.max_pixels)
            sr = self._run_network(photo, detail, report, model)[0]
            name = f"{_stem(image)}-{RESULTS[model]}{OUTPUT_FORMATS[output_format]}"
            return self.files.save(sr, self.files.new_folder() / name)

        return await _in_background(work, progress)

    async def compare(
        self,
        image: str,
        left: str = BICUBIC,
        detail: float | None = None,
        model: str = CLEAN,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Enlarge a photograph four times without and with SRGAN, to see what the network adds.

        Args:
            image: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC; file or data URL, not an address.
            left: The first image: bicubic for plain interpolation, pixels for the bare pixels.
            detail: From 0, faithful and smooth, to 1, textured; details then may be invented.
            model: clean for sharp originals, photo for JPEGs with blocks, noise or slight blur.

        Returns:
            Two PNG images of one size, SRGAN second.
        """

        def work(report: Report) -> tuple[str, str]:
            self.upscaler.check(detail, model)
            photo = open_image(_given(image), max_pixels=self.upscaler.max_pixels)
            sr = self._run_network(photo, detail, report, model)[0]
            plain = enlarge_bicubic(photo) if left == BICUBIC else enlarge_nearest(photo)
            folder, name = self.files.new_folder(), _stem(image)
            return (
                self.files.save(plain, folder / f"{name}-{left}-x{SCALE}.png"),
                self.files.save(sr, folder / f"{name}-{RESULTS[model]}.png"),
            )

        return await _in_background(work, progress)

    def info(self) -> dict:
        """Tell which model runs here, where its weights came from, on what device, its limits.

        Returns:
            Models, source, revision, parameters, scale, device, limits and versions.
        """
        info = self.upscaler.info()
        if info["revision"] is None:  # of a path, only the last part is public
            info["source"] = Path(info["source"]).name
        return info

    # ---- the page

    def begin(
        self,
        photo: str | None,
        mode: str,
        left: str,
        detail: float,
        model: str = CLEAN,
        request: gr.Request | None = None,
    ) -> tuple:
        """Takes a photograph in and shows its bicubic enlargement; the network comes after."""
        asked = _asked_at()
        if photo is None:
            raise gr.Error("No photo arrived. Please choose it again.", print_exception=False)
        with _errors_as_gradio():
            lr, original = self._read(photo, mode)
            name = _stem(photo)
            bicubic = self.files.new_folder() / f"{name}-bicubic-x{SCALE}.png"
            source = lr if original is None else original
            run = Run(
                photo=photo,
                name=name,
                mode=mode,
                size=source.size,
                lr_size=lr.size,
                alpha="A" in lr.getbands() or "transparency" in lr.info,
                notices=tuple(notices(source)),
                bicubic=self.files.save(enlarge_bicubic(lr), bicubic),
                model=model,
                detail=detail,
                asked=asked,
            )
        return self._show_begun(run, left, request)

    def begin_example(
        self,
        mode: str,
        left: str,
        detail: float,
        model: str,
        event: gr.EventData,
        request: gr.Request | None = None,
    ) -> tuple:
        """`begin` with the example whose button was pressed."""
        return self.begin(str(EXAMPLES[event.target.value]), mode, left, detail, model, request)

    def begin_again(
        self,
        run: Run | None,
        mode: str,
        left: str,
        detail: float,
        model: str = CLEAN,
        request: gr.Request | None = None,
    ) -> tuple:
        """`begin` with the photograph that is there already, and with its bicubic enlargement."""
        if run is None:
            return (gr.skip(),) * 8
        if mode != run.mode or not Path(run.bicubic).exists():
            return self.begin(run.photo, mode, left, detail, model, request)
        with _errors_as_gradio():
            _given(run.photo)
        again = replace(
            run,
            model=model,
            detail=detail,
            asked=_asked_at(),
            srgan=None,
            seconds=0.0,
            remembered=False,
            scores=None,
        )
        return self._show_begun(again, left, request)

    async def enlarge(
        self,
        run: Run | None,
        request: gr.Request | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Run | dict:
        """Runs the network on a begun run, unless an event that waited before this one has."""
        if run is None or run.srgan is not None or self._is_late(run, request):
            return gr.skip()
        if run.asked < self._stopped.get(_session(request), -math.inf):
            return gr.skip()
        stop = self._take_over(request)

        def work(report: Report) -> Run:
            lr, original = self._read(run.photo, run.mode)
            sr, seconds, remembered = self._enlarge_once(run, lr, report)
            scores = None if original is None else self._score(lr, sr, original)
            path = self.files.new_folder() / f"{run.name}-{RESULTS[run.model]}.png"
            return replace(
                run,
                srgan=self.files.save(sr, path),
                seconds=seconds,
                remembered=remembered,
                scores=scores,
            )

        try:
            run = await _in_background(work, progress, stop)
        except _Stopped:
            return gr.skip()
        self._newest[_session(request)] = run
        return run

    def stop(self, request: gr.Request | None = None) -> None:
        """Stops what this visitor has running, within a tile, and what is about to."""
        session = _session(request)
        self._stopped.pop(session, None)
        self._stopped[session] = _asked_at()
        if len(self._stopped) > SESSIONS:
            del self._stopped[next(iter(self._stopped))]
        self._take_over(request)

    def present(self, run: Run | None, left: str) -> tuple:
        """What the page says and shows of a run, as far as it has come."""
        if run is None:
            return (gr.skip(),) * 4
        return (
            self.compare_halves(run, left),
            f'<p class="photo-line">{html.escape(Path(run.photo).name)}, {_size(run.size)}</p>',
            _describe(run, self.upscaler.info()),
            gr.Button(visible=True),
        )

    def compare_halves(self, run: Run | None, left: str) -> gr.ImageSlider | dict:
        """The slider: the chosen left half, and the best right half there is."""
        if run is None:
            return gr.skip()
        left = _possible_left(run.mode, left)
        with _errors_as_gradio():
            halves = self._left_half(run, left), run.srgan or run.bicubic
        classes = [f"left-{left}", "right-srgan" if run.srgan else "right-bicubic"]
        return gr.ImageSlider(value=halves, elem_classes=classes + ["alpha"] * run.alpha)

    def detail_slider(self, model: str) -> gr.Slider:
        """The slider, which can be moved where that makes a difference."""
        return gr.Slider(**_detail_options(self.upscaler.weights, model))

    def download(self, run: Run | None, output_format: str) -> gr.DownloadButton | dict:
        """The enlarged image in the chosen format; nothing is enlarged for it."""
        label = f"Download {DOWNLOADS[output_format]}"
        if run is None or run.srgan is None:
            return gr.DownloadButton(label, value=None, interactive=False)
        path = Path(run.srgan).with_suffix(OUTPUT_FORMATS[output_format])
        with _errors_as_gradio():
            if not path.exists():
                self.files.save(_reopen(run.srgan), path)
        return gr.DownloadButton(label, value=str(path), interactive=True)

    def _show_begun(self, run: Run, left: str, request: gr.Request | None) -> tuple:
        """What the page gets of a begun run, which takes over unless it is late."""
        if self._is_late(run, request):
            return (gr.skip(),) * 8
        self._newest[_session(request)] = run
        self._take_over(request)
        return (
            run,
            *self.present(run, left),
            None,  # the photo has been taken up
            _left_radio(run.mode, left),
            gr.DownloadButton(value=None, interactive=False),
        )

    # ---- from the server

    def warm_up(self) -> None:
        """Enlarges a little, so that the first visitor doesn't wait for what torch makes ready."""
        if not ZERO_GPU:  # whose seconds are counted
            with suppress(SRGANError):
                for model in self.upscaler.models:
                    image = Image.new("RGB", (64, 64))
                    self._run_network(image, None, lambda share: None, model)

    def finish(self, timeout: float) -> None:
        """Takes no more work, waits until what runs is done, at most `timeout` s, and stops it."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        wait(self._runs.copy(), timeout)
        self._closed.set()

    # ---- shared

    def _read(self, photo: str, mode: str) -> tuple[Image.Image, Image.Image | None]:
        """The image to enlarge and, where it was shrunk, the photograph itself."""
        limit, restore_limit = self.upscaler.max_pixels, self.upscaler.max_pixels * SCALE**2
        original = open_image(_given(photo), max_pixels=restore_limit)
        if mode == ENLARGE:
            if original.width * original.height > limit:
                raise ImageError(
                    f"The photo has {_size(original.size)} pixels; up "
                    f"to {limit / 1e6:.1f} million can be enlarged. Make it smaller, or choose "
                    f"“Shrink and restore”, which takes up to {restore_limit / 1e6:.1f} million."
                )
            return original, None
        if min(original.size) < RESTORE_LEAST:
            raise ImageError(
                f"The photo has {_size(original.size)} pixels; to be shrunk and restored it needs "
                f"at least {RESTORE_LEAST} a side. Choose “Enlarge ×{SCALE}” for small images."
            )
        return shrink(original), original

    def _enlarge_once(
        self, run: Run, lr: Image.Image, report: Report
    ) -> tuple[Image.Image, float, bool]:
        """`_run_network`, but an example is enlarged for the first only, by CLEAN if the detail is
        the default one.

        Returns:
            The enlarged image, the seconds it took, whether it was there already.
        """
        key = (run.photo, run.mode, run.model)
        usual = run.model == PHOTO or run.detail == self.upscaler.default_detail
        if key in self._examples and usual:
            return *self._examples[key], True
        sr, seconds = self._run_network(lr, run.detail, report, run.model)
        if Path(run.photo) in EXAMPLES.values() and usual:
            self._examples[key] = sr, seconds
        return sr, seconds, False

    def _run_network(
        self, image: Image.Image, detail: float | None, report: Report, model: Model
    ) -> tuple[Image.Image, float]:
        """The enlarged image and the seconds it took."""

        def report_while_open(share: float) -> None:
            if self._closed.is_set():
                raise SRGANError(_RESTARTING)
            report(share)

        def work() -> tuple[Image.Image, float]:
            report(0.0)
            started = time.perf_counter()
            sr = self._network(image, detail, report_while_open, model=model)
            return sr, time.perf_counter() - started

        try:
            return self._submit(work).result()
        except CancelledError:
            raise SRGANError(_RESTARTING) from None

    def _score(
        self, lr: Image.Image, sr: Image.Image, original: Image.Image
    ) -> dict[str, tuple[float, float]]:
        """PSNR and SSIM of bicubic and network, on a worker as long as there are some."""

        def work() -> dict[str, tuple[float, float]]:
            hr = to_tensor(crop_to_scale(original))
            results = {"Bicubic": to_tensor(enlarge_bicubic(lr)), "SRGAN": to_tensor(sr)}
            return {name: (psnr_y(image, hr), ssim_y(image, hr)) for name, image in results.items()}

        try:
            return self._submit(work).result()
        except (SRGANError, CancelledError):  # the server is closing
            return work()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        """Has a worker do something, in the context of the event that is being handled."""
        try:
            run = self._workers.submit(contextvars.copy_context().run, work)
        except RuntimeError as error:  # no more work is taken
            raise SRGANError(_RESTARTING) from error
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        return run

    def _left_half(self, run: Run, left: str) -> str:
        if not Path(run.bicubic).exists():
            raise ImageError(_RESULT_DELETED)
        if left == BICUBIC:
            return run.bicubic
        path = Path(run.bicubic).with_name(f"{run.name}-{left}-x{SCALE}.png")
        if not path.exists():
            lr, original = self._read(run.photo, run.mode)
            plain = enlarge_nearest(lr) if left == PIXELS else crop_to_scale(original)
            self.files.save(plain, path)
        return str(path)

    def _take_over(self, request: gr.Request | None) -> threading.Event:
        """Stops the visitor's older run and returns the stop signal of the new one.

        Gradio's own `cancels` forgets a run that was begun while an older one was winding up.
        """
        session = _session(request)
        stop = threading.Event()
        older = self._stops.get(session)
        self._stops[session] = stop
        if older is not None:
            older.set()
        return stop

    def _is_late(self, run: Run, request: gr.Request | None) -> bool:
        """Whether the visitor's page has gone on to what was asked for after this."""
        newest = self._newest.get(_session(request))
        return newest is not None and newest.asked > run.asked


class _Stopped(Cancelled):
    """The visitor stopped the run, began another or has left."""


async def _in_background(
    work: Callable[[Report], T], progress: gr.Progress, stop: threading.Event | None = None
) -> T:
    """Runs `work` in a thread of its own and moves the progress bar.

    It ends within a tile when `stop` is set, when Gradio cancels the event, or when whoever asked
    has closed the connection.

    Args:
        work: called with a function that it has to call with the share done, 0 when it starts.
        progress: the bar.
        stop: set from outside to stop.
    """
    stop = stop or threading.Event()
    started, moved = time.monotonic(), -math.inf

    def report(share: float) -> None:
        nonlocal started, moved
        if stop.is_set() or _asker_has_left():
            raise _Stopped("stopped")
        now = time.monotonic()
        if share == 0:
            started = now
        if share in (0, 1) or now - moved >= BAR_STEP:
            moved = now
            progress(share, desc=_time_left(share, now - started))

    try:
        with _errors_as_gradio():
            result = await asyncio.to_thread(work, report)
    except asyncio.CancelledError:
        stop.set()
        raise
    if stop.is_set():  # after the last report
        raise _Stopped("stopped")
    return result


def _session(request: gr.Request | None) -> str | None:
    return request.session_hash if request else None


def _event() -> Event | None:
    """The present event in Gradio's queue, which no public way leads to; None outside of one."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or event_id is None:
        return None
    return blocks._queue.event_ids_to_events.get(event_id)


def _asked_at() -> float:
    """When the present event came, in seconds of the monotonic clock; it may have waited since."""
    event = _event()
    return time.monotonic() if event is None else event.enqueue_time


def _asker_has_left() -> bool:
    """Whether the page or program that asked for the present event is gone.

    Gradio notices and marks the event, but doesn't tell a running function.
    """
    event = _event()
    return event is not None and not event.alive


@contextmanager
def _errors_as_gradio() -> Iterator[None]:
    """Shows what is wrong with an image; toasts render HTML, and texts may quote file names.

    The settings that some texts name in brackets are nothing that a visitor can change.
    """
    try:
        yield
    except _Stopped:
        raise
    except SRGANError as error:
        text = html.escape(re.sub(r" \(SRGAN_\w+\)", "", str(error)), quote=False)
        raise gr.Error(text, duration=None, print_exception=False) from error
    except OSError as error:
        raise gr.Error(no_files(error), duration=None) from error


def _on_zero_gpu(upscaler: Upscaler) -> Callable[..., Image.Image]:
    """`upscaler.upscale` in the process to which ZeroGPU lends a GPU, so without progress.

    Arguments and result are pickled; of exceptions only Gradio's own keep their text.
    """

    def upscale(image: Image.Image, detail: float | None, model: Model) -> Image.Image:
        with _errors_as_gradio():
            return upscaler.upscale(image, detail, model=model)

    lent = spaces.GPU(upscale, duration=_seconds_on_zero_gpu)
    return lambda image, detail, report, model: lent(image, detail, model)


def _seconds_on_zero_gpu(image: Image.Image, detail: float | None, model: Model) -> int:
    """What to ask for: a visitor's quota must cover it, though only what is used is taken off."""
    return math.ceil(10 + 10 * image.width * image.height / 1e6)


def _given(path: str | None) -> str:
    if path is None:
        raise ImageError("No image was given. Pass a file or a data URL.")
    if not Path(path).exists():
        raise ImageError(f"This photo {_DELETED}. Please send it again.")
    return path


def _stem(path: str) -> str:
    """The name of an uploaded file without suffix, fit for file names, URLs and HTML."""
    return re.sub(r"[^\w.-]+", "_", Path(path).stem).strip("._")[:80] or "image"


def _reopen(path: str) -> Image.Image:
    """A result of ours, which may be larger than what we take."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(_RESULT_DELETED) from None
    return open_image(data, max_pixels=sys.maxsize, max_bytes=len(data))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _time_left(share: float, elapsed: float) -> str:
    """What the progress bar says, from the speed of this very run."""
    if share in (0, 1):
        return "Enlarging" if share == 0 else "Finishing"
    seconds = elapsed * (1 - share) / share
    if seconds < 90:
        return f"Enlarging, about {max(1, round(seconds))} s left"
    return f"Enlarging, about {round(seconds / 60)} min left"


class Page:
    """The components, laid out and wired to the handlers. Build it inside a `gr.Blocks`."""

    def __init__(self, handlers: Handlers):
        self.handlers = handlers
        self.run = gr.State()
        gr.HTML(_header(handlers.upscaler.notices))
        with gr.Row(elem_id="stage"):  # photo, result, controls is the order on a phone
            with gr.Column(elem_id="photo-area"):
                self._lay_out_photo()
            with gr.Column(elem_id="result-area"):
                self._lay_out_result()
            with gr.Column(elem_id="controls"):
                self._lay_out_controls()
        with gr.Accordion("About", open=False, elem_id="about"):
            gr.HTML(_about(handlers.upscaler))
        self._wire()

    def _lay_out_photo(self) -> None:
        self.photo = _photo_input(
            label="Photo",
            show_label=False,
            elem_id="photo",
            sources=["upload"],
            buttons=[],
            placeholder="Drop, paste or choose a photo",
        )
        self.photo_line = gr.HTML(elem_id="photo-line")

    def _lay_out_result(self) -> None:
        self.slider = gr.ImageSlider(
            label="Comparison",
            show_label=False,
            elem_id="slider",
            elem_classes=["left-bicubic", "right-bicubic"],
            type="filepath",
            image_mode=None,
            format="png",
            interactive=False,
            max_height=1024,
            buttons=["fullscreen"],
        )
        self.status = gr.HTML(
            '<p class="facts">Drop a photo anywhere on this page, or try an example.</p>',
            elem_id="status",
        )
        with gr.Row(elem_id="result-bar"):
            self.left = gr.Radio(LEFT_CHOICES, value=BICUBIC, label="Left half", elem_id="left")
            with gr.Row(elem_id="take-away"):
                self.file_format = gr.Dropdown(
                    [(name, key) for key, name in DOWNLOADS.items()],
                    value="png",
                    label="File format",
                    elem_id="format",
                )
                self.download = gr.DownloadButton(
                    "Download PNG", interactive=False, variant="primary", elem_id="download"
                )

    def _lay_out_controls(self) -> None:
        upscaler = self.handlers.upscaler
        self.mode = gr.Radio(
            [(f"Enlarge ×{SCALE}", ENLARGE), ("Shrink and restore", RESTORE)],
            value=ENLARGE,
            label="What to do",
            info=f"Shrink and restore makes a large photo {SCALE} times smaller, enlarges it "
            "again and measures both ways against the original.",
            elem_id="mode",
        )
        self.model = gr.Radio(
            [(MODELS[model], model) for model in upscaler.models],
            value=CLEAN,
            label="Model",
            info=f"{MODELS[PHOTO]} also removes JPEG blocks, noise and slight blur.",
            visible=PHOTO in upscaler.models,
            elem_id="model",
        )
        self.detail = gr.Slider(
            0,
            1,
            value=upscaler.default_detail,
            step=0.05,
            label="Detail",
            buttons=[],
            elem_id="detail",
            **_detail_options(upscaler.weights, CLEAN),
        )
        with gr.Row(elem_id="run-buttons"):
            self.stop = gr.Button("Stop", elem_id="stop")
            self.again = gr.Button("Enlarge again", visible=False, elem_id="again")
        with gr.Row(elem_id="examples"):
            self.examples = [
                gr.Button(name, icon=path, elem_classes=["example"])
                for name, path in EXAMPLES.items()
            ]

    def _wire(self) -> None:
        """Every start is: the bicubic result, the network, what came of it.

        None of these events is part of the API. They may overlap, when a visitor is quicker than
        the network: whichever ends later shows the visitor's newest run, and of those that wait
        for the network the first enlarges it.
        """
        handlers = self.handlers
        hidden = {"api_visibility": "private", "show_progress": "hidden", "queue": True}
        at_once = {**hidden, "concurrency_id": "at once", "concurrency_limit": 3}
        # A photograph that is read may take 0.4 GB.
        reading = {**hidden, "concurrency_id": "reading", "concurrency_limit": 1}
        shown = [self.slider, self.photo_line, self.status, self.again]
        wanted = [self.mode, self.left, self.detail, self.model]
        begun = {
            "outputs": [self.run, *shown, self.photo, self.left, self.download],
            "trigger_mode": "multiple",
            **reading,
            "show_progress": "full",
            "show_progress_on": self.status,
        }
        starts = [
            self.photo.upload(handlers.begin, [self.photo, *wanted], **begun),
            gr.on(
                [button.click for button in self.examples],
                handlers.begin_example,
                wanted,
                **begun,
            ),
            gr.on(
                [self.mode.input, self.model.input, self.detail.release, self.again.click],
                handlers.begin_again,
                [self.run, *wanted],
                **begun,
            ),
        ]
        runs = []
        for start in starts:
            start.failure(lambda: None, None, self.photo, **at_once)
            runs.append(
                start.success(
                    handlers.enlarge,
                    self.run,
                    self.run,
                    trigger_mode="multiple",
                    concurrency_id="network",
                    concurrency_limit=handlers.concurrency,
                    show_progress_on=self.status,
                    api_visibility="private",
                )
            )
        # A stopped run and the newest one may end at nearly the same time: both are presented, and
        # in order, so that what stays is the newest.
        in_order = {
            "trigger_mode": "multiple",
            **hidden,
            "concurrency_id": "in order",
            "concurrency_limit": 1,
        }
        for finished in runs:
            finished.success(handlers.present, [self.run, self.left], shown, **in_order).then(
                handlers.download, [self.run, self.file_format], self.download, **in_order
            )
        self.stop.click(handlers.stop, cancels=runs, **at_once)
        self.model.input(handlers.detail_slider, self.model, self.detail, **at_once)
        self.left.input(
            handlers.compare_halves,
            [self.run, self.left],
            self.slider,
            trigger_mode="always_last",
            **reading,
        )
        self.file_format.input(
            handlers.download, [self.run, self.file_format], self.download, **at_once
        )


def _photo_input(**options) -> gr.Image:
    """A `gr.Image` whose handlers get the very file that came.

    Gradio would open it with Pillow first, whose complaints about a file it masks; our decoder
    takes more formats and says what is wrong. A handler may set its value only: for anything more
    Gradio builds the component anew, without this. A subclass would have Gradio write app.pyi.
    """
    component = gr.Image(type="filepath", image_mode=None, **options)

    def preprocess(payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        if (payload.url or "").startswith("data:"):
            return save_base64_to_cache(payload.url, component.GRADIO_CACHE)
        # Gradio's own check of the path passes over files that come without its `meta` mark.
        if not payload.path or not is_in_or_equal(payload.path, component.GRADIO_CACHE):
            raise gr.Error("The image has to be uploaded first.", print_exception=False)
        return payload.path

    component.preprocess = preprocess
    return component


def _left_radio(mode: str, left: str) -> gr.Radio:
    """The choices for the left half: the original is one where there is an original."""
    choices = LEFT_CHOICES + [("The original", ORIGINAL)] * (mode == RESTORE)
    return gr.Radio(choices=choices, value=_possible_left(mode, left))


def _possible_left(mode: str, left: str) -> str:
    """The chosen left half; bicubic in place of an original that there isn't."""
    return BICUBIC if left == ORIGINAL and mode == ENLARGE else left


def _detail_options(weights: Weights, model: str) -> dict:
    """What the slider says of detail, and whether it can be moved."""
    if model == PHOTO:
        return {
            "info": f"{MODELS[PHOTO]} has one look only. Detail changes what {MODELS[CLEAN]} does.",
            "interactive": False,
        }
    if not weights.adversarial or weights.srgan is weights.srresnet:
        return {"info": "These weights have one look only.", "interactive": False}
    info = "0 faithful … 1 textured. A change runs the network again."
    return {"info": info, "interactive": True}


def _wire_api(handlers: Handlers) -> None:
    """The three endpoints, which are the MCP tools too, on components that nobody sees."""
    with gr.Column(visible=False):
        image = _photo_input(label="Image")
        detail = gr.Slider(0, 1, value=handlers.upscaler.default_detail, label="Detail")
        left = gr.Dropdown([BICUBIC, PIXELS], value=BICUBIC, label="Left half")
        output_format = gr.Dropdown(list(OUTPUT_FORMATS), value="png", label="Output format")
        model = gr.Dropdown(list(handlers.upscaler.models), value=CLEAN, label="Model")
        enlarged = gr.File(label="Enlarged image")
        halves = gr.ImageSlider(
            label="Left half and SRGAN", type="filepath", image_mode=None, format="png"
        )
        information = gr.JSON(label="Model")
        trigger = gr.Button()
    network = {"concurrency_id": "network", "concurrency_limit": handlers.concurrency}
    trigger.click(
        handlers.upscale,
        [image, detail, output_format, model],
        enlarged,
        api_name="upscale",
        **network,
    )
    trigger.click(
        handlers.compare, [image, left, detail, model], halves, api_name="compare", **network
    )
    trigger.click(
        handlers.info, None, information, api_name="info", concurrency_limit=None, queue=True
    )


class Demo(gr.Blocks):
    """Blocks whose API also takes a `data` list that leaves out trailing defaults, and null for
    any of them; and which fetches nothing from addresses that visitors name."""

    def validate_inputs(self, block_fn: BlockFunction, inputs: list) -> None:
        if block_fn.api_visibility == "public":
            inputs.extend([None] * (len(block_fn.inputs) - len(inputs)))
            for i, component in enumerate(block_fn.inputs):
                inputs[i] = _argument(component, inputs[i])
        traverse(inputs, _refuse_address, is_file_obj)
        super().validate_inputs(block_fn, inputs)


def _argument(component: Component, value: object) -> object:
    """What an input of the API gets: its default in place of null, and nothing that can't be.

    Gradio would write what is out of bounds to the log, with a traceback.
    """
    if value is None:
        return component.value
    if isinstance(component, gr.Slider):
        least, most = component.minimum, component.maximum
        if type(value) not in (int, float) or not least <= value <= most:
            text = f"{component.label} has to be a number from {least} to {most}."
            raise gr.Error(text, print_exception=False)
    if isinstance(component, gr.Dropdown):
        choices = [choice for _, choice in component.choices]
        if value not in choices:
            text = f"{component.label} has to be one of {', '.join(choices)}."
            raise gr.Error(text, print_exception=False)
    return value


def _refuse_address(file: dict) -> None:
    if is_http_url_like(file["path"]):
        raise gr.Error(
            "Addresses are not fetched. Send the file itself, or a data URL.",
            print_exception=False,
        )


def create_demo(upscaler: Upscaler) -> Demo:
    """The page and the API around an upscaler, to be launched with `launch`."""
    with Demo(title=f"SRGAN ×{SCALE}", fill_width=True, analytics_enabled=False) as demo:
        demo.handlers = Handlers(upscaler)
        Page(demo.handlers)
        _wire_api(demo.handlers)
    demo.queue(api_open=False)
    demo._queue = FairQueue(demo)
    demo.handlers.files.know(demo)
    return demo


def _header(notices: list[str]) -> str:
    notes = "".join(f'<p class="notice" role="note">{html.escape(text)}</p>' for text in notices)
    return (
        f'<header class="title"><h1>SRGAN ×{SCALE}</h1>'
        f"<p>Four times larger, with believable detail.</p></header>{notes}"
    )


def _describe(run: Run, info: dict) -> str:
    """What has been done to the photograph, with this run's own numbers."""
    larger = _size((run.lr_size[0] * SCALE, run.lr_size[1] * SCALE))
    facts = [f"{_size(run.lr_size)} → {larger}"]
    if run.mode == RESTORE:
        facts = [f"{larger}, shrunk to {_size(run.lr_size)} and restored"]
    if run.srgan is None:
        facts.append("bicubic on both halves")
    else:
        earlier = " on an earlier visit" if run.remembered else ""
        facts.append(f"{run.seconds:.1f} s on {_device(info)}{earlier}")
        if run.model == CLEAN:
            facts.append(f"detail {run.detail:.2f}")
        facts.append(f"{RESULTS[run.model]}, {_source(info)}")
    text = f'<p class="facts">{" · ".join(html.escape(fact) for fact in facts)}</p>'
    text += "".join(f'<p class="facts">{html.escape(notice)}</p>' for notice in run.notices)
    if run.scores:
        scores = "; ".join(
            f"{name} {psnr:.2f} dB, SSIM {ssim:.4f}" for name, (psnr, ssim) in run.scores.items()
        )
        text += f'<p class="facts">Against the original: {scores}</p>'
    return text


def _device(info: dict) -> str:
    return "CPU" if info["device"] == "cpu" else f"GPU ({info['device']})"


def _source(info: dict) -> str:
    """Where the weights came from, in words; of a local path only the last part."""
    if info["source"] == "bundled":
        return "bundled weights"
    if info["revision"]:
        return f"weights {info['source']}@{info['revision'][:7]} from the Hub"
    return f"weights from {Path(info['source']).name}"


def _about(upscaler: Upscaler) -> str:
    info = upscaler.info()
    megapixels = upscaler.max_pixels / 1e6
    faults = "Blur, noise and JPEG artefacts are not removed; they are enlarged too."
    if PHOTO in upscaler.models:
        faults = (
            f"The model <em>{MODELS[PHOTO]}</em> is for photographs with JPEG blocks, noise or "
            "slight blur: it was trained to remove them."
        )
    return f"""
<h2>How it works</h2>
<p>Bicubic enlargement computes each new pixel from its neighbours; it can't add what is not
there. SRGAN (<a href="https://arxiv.org/abs/1609.04802">Ledig et al. 2017</a>) has learnt from
photographs what fine structure tends to look like, and fills it in. <em>Detail</em> blends
between two networks of the same shape: at 0 the one that was trained to be right on average
(SRResNet), at 1 the one that was trained until a second network could hardly tell its results
from photographs.</p>
<p>The network: a 9×9 convolution with 64 channels, 16 residual blocks of two 3×3 convolutions
each, two sub-pixel convolutions that double the size, a 9×9 convolution to RGB;
{info["parameters"]:,} parameters. It runs here on {html.escape(_device(info))} in
{info["precision"]}, with {html.escape(_source(info))}. Large photos are worked on in tiles; the
result is the same.</p>
<h2>Measured</h2>
{_evaluation_table(upscaler.weights.evaluation)}
<h2>What it cannot do</h2>
<ul>
<li>Fine detail is invented, plausibly, not recovered: do not read faces, number plates or
text from it, and do not use it as evidence.</li>
<li>It was trained on photographs reduced with bicubic interpolation. {faults}</li>
<li>Photos up to {megapixels:.1f} million pixels are enlarged, and up to
{megapixels * SCALE**2:.0f} million shrunk and restored. Uploads and results are deleted after
{KEEP_FILES // 60} minutes, or earlier when room is short.</li>
</ul>
<h2>From a program</h2>
<pre tabindex="0"><code>from gradio_client import Client, handle_file
client = Client("<span class="here">http://localhost:7860</span>")
path = client.predict(handle_file("photo.jpg"), api_name="/upscale")</code></pre>
<p><code>/upscale</code> gives the enlarged file, <code>/compare</code> the two halves,
<code>/info</code> what is running. The link at the foot of the page
shows more, for curl, JavaScript and MCP.</p>
"""


def _scores(metrics: dict[str, float]) -> str:
    if not {"psnr_y", "ssim_y"} <= metrics.keys():
        return "–"
    return f"{metrics['psnr_y']:.2f} dB / {metrics['ssim_y']:.4f}"


def _evaluation_table(evaluation: dict) -> str:
    """PSNR and SSIM as `train.evaluate` measured them, dataset by dataset."""
    if not evaluation:
        return "<p>These weights came without a measurement.</p>"
    names = {
        "bicubic": "Bicubic",
        "srresnet": "SRResNet (detail 0)",
        "srgan": "SRGAN (detail 1)",
        "photo": MODELS[PHOTO],
    }
    methods = [name for name in names if any(name in scores for scores in evaluation.values())]
    rows = ""
    for dataset, scores in evaluation.items():
        cells = "".join(f"<td>{_scores(scores.get(name, {}))}</td>" for name in methods)
        rows += f'<tr><th scope="row">{html.escape(dataset)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{names[name]}</th>' for name in methods)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr><th scope="col">PSNR / SSIM</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<p>On the Y channel, ×4, border of 4 pixels cut; higher is closer to the original. "
        "SRGAN trades these numbers for texture that looks right.</p>"
    )


def launch(demo: Demo, share: bool | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C; then lets the running image finish.

    Raises:
        OSError: the port is in use.
    """
    keep_freed_memory()
    Image.MAX_IMAGE_PIXELS = None  # of results too; `open_image` has limits of its own
    files = demo.handlers.files
    stopping = threading.Event()

    def stop_serving(number, frame):
        signal.signal(number, signal.SIG_DFL)  # asked twice: at once
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_serving)
    port = os.environ.get("GRADIO_SERVER_PORT")
    app, _, _ = demo.launch(
        server_port=int(port) if port else PORT,
        share=share,
        prevent_thread_lock=True,
        max_file_size=default_max_bytes(),
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard, files=files)]},
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=importlib.util.find_spec("mcp") is not None,
        footer_links=["api"],
        theme=gr.themes.Default(
            primary_hue="teal",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ).set(**READABLE),
        css_paths=HERE / "page.css",
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    app.add_api_route("/healthz", lambda: PlainTextResponse("ok"))
    threading.Thread(target=demo.handlers.warm_up, daemon=True).start()
    keep_clean(files, stopping)
    logger.info("stopping")
    demo.handlers.finish(GRACE)
    time.sleep(1)  # for the result to be fetched
    demo.close()
    files.delete_own()


def keep_clean(files: Files, stopping: threading.Event) -> None:
    """Deletes old files, every `CLEAN_EVERY` seconds, until it is to stop."""
    while True:
        try:
            files.delete(older_than=KEEP_FILES)
        except OSError as error:  # too many open files, say
            logger.warning("old files could not be deleted: %s", error)
        for _ in range(CLEAN_EVERY):  # on Windows Ctrl-C has to wait for the end of a wait
            if stopping.wait(1):
                return


def main(load: Callable[[], Upscaler], share: bool) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        upscaler = load()
    except SRGANError as error:
        sys.exit(f"app.py: {error}")
    try:
        launch(create_demo(upscaler), share=share or None)
    except (SRGANError, OSError) as error:
        sys.exit(f"app.py: {error}")


if __name__ == "__main__":
    main(load, arguments.share)
