"""The handlers as plain functions, and the real app from outside."""

import asyncio
import base64
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from app_process import free_port, running_app, start
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image
from starlette.datastructures import Headers
from starlette.middleware import Middleware

import app
import server
from srgan import (
    ImageError,
    SettingError,
    SRGANError,
    Upscaler,
    WeightsError,
    open_image,
    save_weights,
)
from srgan.image import (
    default_max_bytes,
    enlarge_bicubic,
    enlarge_nearest,
    save_image,
    to_tensor,
)
from srgan.metrics import psnr_y


def photo(path: Path, size=(24, 18), mode="RGB") -> str:
    """A photograph-like file of random but smooth content."""
    noise = np.random.default_rng(1).integers(
        0, 256, (6, 8, len(Image.new(mode, (1, 1)).getbands()))
    )
    image = Image.fromarray(noise.squeeze().astype(np.uint8), mode).resize(size, Image.BICUBIC)
    save_image(image, path)
    return str(path)


def same_pixels(a: Image.Image | str, b: Image.Image | str) -> bool:
    a, b = (open_image(image) if isinstance(image, str) else image for image in (a, b))
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


class CountingUpscaler(Upscaler):
    """Counts its runs; the first one waits in its middle for `go_on`."""

    def __init__(self, weights: Path, slow: bool = False):
        super().__init__(weights)
        self.runs = 0
        self.widths = []
        self.slow = slow
        self.started, self.go_on, self.broken_off = (threading.Event() for _ in range(3))

    def upscale(self, image, detail=None, progress=None, **options):
        self.runs += 1
        self.widths.append(image.width)
        if self.slow and self.runs == 1:
            self.started.set()
            try:
                while not self.go_on.wait(0.02):
                    progress(0.5)
            except BaseException:
                self.broken_off.set()
                raise
        return super().upscale(image, detail, progress, **options)


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture
def upscaler(tiny_weights) -> CountingUpscaler:
    return CountingUpscaler(tiny_weights)


@pytest.fixture
def handlers(upscaler) -> app.Handlers:
    return app.Handlers(upscaler)


def connect(url: str) -> Client:
    """A client; its own limit of 5 s is too little on a busy machine."""
    return Client(url, verbose=False, httpx_kwargs={"timeout": 60})


def call_mcp_tool(url: str, name: str, arguments: dict, headers: dict | None = None) -> tuple:
    """The names of all tools, and what came of the call."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def call():
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/", headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            return tools, await session.call_tool(name, arguments)

    return asyncio.run(call())


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def photo_handlers(tiny_photo_weights) -> app.Handlers:
    """Of weights that have photo."""
    return app.Handlers(CountingUpscaler(tiny_photo_weights))


def visitor(name: str = "a visitor") -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


def begin(handlers: app.Handlers, path: str, mode=app.ENLARGE, left=app.BICUBIC) -> app.Run:
    return handlers.begin(path, mode, left, 0.75, app.CLEAN, visitor())[0]


def halves(slider: gr.ImageSlider) -> list[str]:
    return [half["path"] for half in slider.value]


def enlarge(
    handlers: app.Handlers, run: app.Run, detail: float = 0.75, model: str = app.CLEAN
) -> app.Run:
    if run is not None:
        run = replace(run, detail=detail, model=model)
    return asyncio.run(handlers.enlarge(run, visitor()))


# ---- API functions


def test_upscale_returns_what_the_library_returns(handlers, upscaler, tmp_path):
    path = photo(tmp_path / "cat.png")
    result = asyncio.run(handlers.upscale(path))
    assert Path(result).name == "cat-srgan-x4.png"
    assert same_pixels(result, upscaler.upscale(open_image(path)))


def test_bar_moves_at_once_at_both_ends_and_seldom_between(handlers, tmp_path, monkeypatch):
    path = photo(tmp_path / "cat.png")
    for step, between in ((0, True), (60, False)):
        monkeypatch.setattr(app, "BAR_STEP", step)
        shares = []
        asyncio.run(handlers.upscale(path, progress=lambda share, desc: shares.append(share)))  # noqa: B023
        assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
        assert any(0 < share < 1 for share in shares) == between


@pytest.mark.parametrize("output_format, suffix", app.OUTPUT_FORMATS.items())
def test_upscale_writes_every_format(handlers, tmp_path, output_format, suffix):
    result = asyncio.run(handlers.upscale(photo(tmp_path / "cat.png"), 0.5, output_format))
    assert result.endswith(f"cat-srgan-x4{suffix}")
    assert open_image(result).size == (96, 72)


def test_upscale_refuses_unknown_formats_before_it_works(handlers, upscaler, tmp_path):
    with pytest.raises(gr.Error, match="png, jpeg, webp"):
        asyncio.run(handlers.upscale(photo(tmp_path / "cat.png"), 0.5, "xcf"))
    assert upscaler.runs == 0


def test_api_has_the_models_of_the_weights(photo_handlers, tmp_path):
    upscaler, path = photo_handlers.upscaler, photo(tmp_path / "cat.png")
    expected = upscaler.upscale(open_image(path), model="photo")
    assert not same_pixels(expected, upscaler.upscale(open_image(path)))
    result = asyncio.run(photo_handlers.upscale(path, 0.25, "webp", "photo"))
    assert Path(result).name == "cat-srgan-photo-x4.webp"
    result = asyncio.run(photo_handlers.compare(path, model="photo"))[1]
    assert Path(result).name == "cat-srgan-photo-x4.png"
    assert same_pixels(result, expected)
    assert photo_handlers.info()["models"] == ["clean", "photo"]


@pytest.mark.parametrize("model", ["photo", "<b>", None])
def test_models_that_are_not_there_are_refused_before_any_work(handlers, tmp_path, model):
    path = photo(tmp_path / "cat.png")
    for function in (handlers.upscale, handlers.compare):
        with pytest.raises(gr.Error, match="model must be one that the weights have") as caught:
            asyncio.run(function(path, model=model))
        assert "<" not in caught.value.message
    assert handlers.upscaler.runs == 0


def test_upscale_says_what_is_wrong_with_a_file(handlers, tmp_path):
    (tmp_path / "cat.png").write_text("not an image")
    with pytest.raises(gr.Error, match="supported format") as caught:
        asyncio.run(handlers.upscale(str(tmp_path / "cat.png")))
    assert not caught.value.print_exception


def test_compare_puts_srgan_second(handlers, upscaler, tmp_path):
    path = photo(tmp_path / "cat.png")
    for left, enlarge_plainly in (("bicubic", enlarge_bicubic), ("pixels", enlarge_nearest)):
        first, second = asyncio.run(handlers.compare(path, left))
        assert same_pixels(first, enlarge_plainly(open_image(path)))
        assert same_pixels(second, upscaler.upscale(open_image(path)))


def test_every_result_lies_in_a_folder_of_its_own(handlers, tmp_path):
    path = photo(tmp_path / "cat.png")
    first, second = (Path(asyncio.run(handlers.upscale(path))) for _ in range(2))
    assert first.parent != second.parent
    assert len(first.parent.name) >= 32


@pytest.mark.parametrize(
    "name, stem",
    [
        ("cat.png", "cat"),
        ("/somewhere/Überraschung 1.jpeg", "Überraschung_1"),
        ("<img src=x onerror=alert(1)>.png", "img_src_x_onerror_alert_1"),
        ("../../etc/passwd", "passwd"),
        (".png", "png"),
        ("...", "image"),
        ("a" * 300 + ".png", "a" * 80),
        ("new\nline.png", "new_line"),
    ],
)
def test_names_of_results_are_harmless(name, stem):
    assert app._stem(name) == stem


# ---- the page's functions


def test_bicubic_stands_on_both_halves_before_the_network_has_run(handlers, upscaler, tmp_path):
    path = photo(tmp_path / "cat.png")
    run, slider, line, status, *_ = handlers.begin(path, app.ENLARGE, app.BICUBIC, 0.75)
    left, right = halves(slider)
    assert left == right
    assert same_pixels(left, enlarge_bicubic(open_image(path)))
    assert "24 × 18" in line and "24 × 18 → 96 × 72" in status
    assert run.srgan is None and upscaler.runs == 0


def test_the_network_adds_the_right_half(handlers, upscaler, tmp_path):
    run = enlarge(handlers, begin(handlers, photo(tmp_path / "cat.png")), detail=0.25)
    slider, _, status, _ = handlers.present(run, app.BICUBIC)
    left, right = halves(slider)
    assert same_pixels(left, run.bicubic)
    assert same_pixels(right, upscaler.upscale(open_image(run.photo), 0.25))
    assert "on CPU" in status and "detail 0.25" in status and "srgan-x4" in status


def test_the_model_photo_is_told_and_named(photo_handlers, tmp_path):
    run = begin(photo_handlers, photo(tmp_path / "cat.png"))
    run = enlarge(photo_handlers, run, model=app.PHOTO)
    _, _, status, _ = photo_handlers.present(run, app.BICUBIC)
    assert "srgan-photo-x4" in status and "detail" not in status
    assert (
        Path(photo_handlers.download(run, "webp").value["path"]).name == "cat-srgan-photo-x4.webp"
    )
    expected = photo_handlers.upscaler.upscale(open_image(run.photo), model="photo")
    assert same_pixels(run.srgan, expected)


def test_detail_can_be_chosen_where_it_makes_a_difference(photo_handlers, make_generator, tmp_path):
    assert photo_handlers.detail_slider(app.CLEAN).interactive
    assert not photo_handlers.detail_slider(app.PHOTO).interactive
    save_weights(tmp_path, make_generator(), make_generator(), adversarial=False)
    slider = app.Handlers(Upscaler(tmp_path)).detail_slider(app.CLEAN)
    assert not slider.interactive and "one look only" in slider.info


def test_left_half_and_format_do_not_run_the_network(handlers, upscaler, tmp_path):
    run = enlarge(handlers, begin(handlers, photo(tmp_path / "cat.png")))
    pixels = halves(handlers.compare_halves(run, app.PIXELS))[0]
    assert same_pixels(pixels, enlarge_nearest(open_image(run.photo)))
    for output_format in ("png", "webp", "jpeg", "tiff"):
        file = handlers.download(run, output_format).value["path"]
        assert Path(file).name == f"cat-srgan-x4{app.OUTPUT_FORMATS[output_format]}"
        assert open_image(file).size == (96, 72)
    assert upscaler.runs == 1


def test_download_waits_for_the_network(handlers, tmp_path):
    run, *_, download = handlers.begin(photo(tmp_path / "cat.png"), app.ENLARGE, app.BICUBIC, 0.75)
    for button in (download, handlers.download(run, "png")):
        assert button.value is None and not button.interactive


def test_bad_file_is_an_error_and_leaves_the_run_alone(tiny_weights, tmp_path):
    handlers = app.Handlers(CountingUpscaler(tiny_weights, slow=True))
    run = begin(handlers, photo(tmp_path / "cat.png"))
    (tmp_path / "bad.png").write_bytes(b"")
    results = []
    thread = threading.Thread(target=lambda: results.append(enlarge(handlers, run)))
    thread.start()
    assert handlers.upscaler.started.wait(10)
    with pytest.raises(gr.Error, match="empty"):
        begin(handlers, str(tmp_path / "bad.png"))
    handlers.upscaler.go_on.set()
    thread.join(30)
    assert results[0].srgan is not None


def test_errors_cannot_carry_html():
    with pytest.raises(gr.Error) as caught, app._errors_as_gradio():
        raise app.ImageError("<img src=x onerror=alert(1)>")
    assert "<" not in caught.value.message


def test_too_large_a_photo_is_told_of_the_other_mode(handlers, upscaler, tmp_path):
    upscaler.max_pixels = 1000
    path = photo(tmp_path / "cat.png", (64, 48))
    with pytest.raises(gr.Error, match=r"64 × 48 .*Shrink and restore"):
        begin(handlers, path)
    assert begin(handlers, path, app.RESTORE).lr_size == (16, 12)
    with pytest.raises(gr.Error, match=r"limit is 16,000\. Make"):
        begin(handlers, photo(tmp_path / "large.png", (200, 100)), app.RESTORE)


def test_restored_photo_is_measured_against_the_original(handlers, tmp_path):
    run = begin(handlers, photo(tmp_path / "cat.png", (67, 50)), app.RESTORE)
    assert (run.size, run.lr_size) == ((67, 50), (16, 12))
    run = enlarge(handlers, run)
    _, _, status, _ = handlers.present(run, app.BICUBIC)
    assert 10 < run.scores["Bicubic"][0] < 60 and 0 < run.scores["SRGAN"][1] <= 1
    assert f"SRGAN {run.scores['SRGAN'][0]:.2f} dB" in status
    original = halves(handlers.compare_halves(run, app.ORIGINAL))[0]
    assert same_pixels(original, open_image(run.photo).crop((0, 0, 64, 48)))


def test_too_small_a_photo_cannot_be_restored(handlers, tmp_path):
    with pytest.raises(gr.Error, match="at least 32"):
        begin(handlers, photo(tmp_path / "cat.png"), app.RESTORE)


def test_the_original_is_a_choice_only_where_there_is_one(handlers, tmp_path):
    path = photo(tmp_path / "cat.png", (64, 48))
    *_, left, _ = handlers.begin(path, app.RESTORE, app.ORIGINAL, 0.75)
    assert left.value == app.ORIGINAL and len(left.choices) == 3
    run, *_, left, _ = handlers.begin(path, app.ENLARGE, app.ORIGINAL, 0.75)
    assert left.value == app.BICUBIC and len(left.choices) == 2
    slider = handlers.compare_halves(run, app.ORIGINAL)  # chosen for the run before
    assert halves(slider)[0] == run.bicubic and "left-bicubic" in slider.elem_classes


def test_transparency_is_kept_and_marked(handlers, tmp_path):
    run = enlarge(handlers, begin(handlers, photo(tmp_path / "cat.png", mode="RGBA")))
    assert open_image(run.srgan).mode == "RGBA"
    assert "alpha" in handlers.compare_halves(run, app.BICUBIC).elem_classes


def test_stop_ends_the_run_within_a_tile(tiny_weights, tmp_path):
    handlers = app.Handlers(CountingUpscaler(tiny_weights, slow=True))
    run = begin(handlers, photo(tmp_path / "cat.png"))
    results = []
    thread = threading.Thread(target=lambda: results.append(enlarge(handlers, run)))
    thread.start()
    assert handlers.upscaler.started.wait(10)
    handlers.stop(visitor("another"))
    assert not handlers.upscaler.broken_off.wait(0.3)
    handlers.stop(visitor())
    assert handlers.upscaler.broken_off.wait(2)
    thread.join(10)
    assert results == [gr.skip()]
    run = begin(handlers, run.photo)
    assert enlarge(handlers, run).srgan is not None  # the worker is free again


def test_stop_also_stops_what_is_about_to_begin(handlers, tmp_path):
    run = begin(handlers, photo(tmp_path / "cat.png"))
    handlers.stop(visitor("another"))
    handlers.stop(visitor())
    assert enlarge(handlers, run) == gr.skip()
    again = handlers.begin_again(run, app.ENLARGE, app.BICUBIC, 0.75, app.CLEAN, visitor())[0]
    assert enlarge(handlers, again).srgan is not None
    for number in range(2 * app.SESSIONS):
        handlers.stop(visitor(f"{number}"))
    assert len(handlers._stopped) == app.SESSIONS


def test_the_network_always_runs_on_the_same_threads(tiny_weights, tmp_path, monkeypatch):
    """Whichever threads ask: each that torch computes in costs memory for good."""
    monkeypatch.setenv("SRGAN_CONCURRENCY", "2")
    threads = set()

    class Watched(Upscaler):
        def upscale(self, *arguments, **options):
            threads.add(threading.get_ident())
            return super().upscale(*arguments, **options)

    handlers = app.Handlers(Watched(tiny_weights))
    path = photo(tmp_path / "cat.png")
    handlers.warm_up()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: asyncio.run(handlers.upscale(path)), range(12)))
    assert len(threads) <= 2


@pytest.fixture
def one_runs(tiny_weights, tmp_path):
    """Handlers with a begun run that a worker is at, the future of its end, and a pool for more."""
    handlers = app.Handlers(CountingUpscaler(tiny_weights, slow=True))
    run = begin(handlers, photo(tmp_path / "cat.png"))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(enlarge, handlers, run)
        assert handlers.upscaler.started.wait(10)
        yield handlers, run, running, pool


def test_who_waits_when_the_server_closes_is_told_at_once(one_runs):
    handlers, run, running, pool = one_runs
    waiting = pool.submit(asyncio.run, handlers.upscale(run.photo))
    wait_until(lambda: len(handlers._runs) == 2)
    closing = pool.submit(handlers.finish, 60)
    for late in (waiting, pool.submit(asyncio.run, handlers.upscale(run.photo))):
        with pytest.raises(gr.Error, match="being restarted"):
            late.result(60)
    assert not closing.done() and not running.done()
    handlers.upscaler.go_on.set()
    assert running.result(60).srgan is not None
    wait_until(lambda: not handlers._runs)
    assert handlers.upscaler.runs == 1


def test_what_runs_for_too_long_is_ended_when_the_server_closes(one_runs):
    handlers, _, running, _ = one_runs
    handlers.finish(0.1)
    with pytest.raises(gr.Error, match="being restarted"):
        running.result(60)


def test_another_photo_takes_over(tiny_weights, tmp_path):
    handlers = app.Handlers(CountingUpscaler(tiny_weights, slow=True))
    run = begin(handlers, photo(tmp_path / "cat.png"))
    thread = threading.Thread(target=enlarge, args=(handlers, run))
    thread.start()
    assert handlers.upscaler.started.wait(10)
    begin(handlers, photo(tmp_path / "dog.png"))
    assert handlers.upscaler.broken_off.wait(2)
    thread.join(10)


def test_another_photo_takes_over_from_a_run_that_is_past_its_last_tile(
    handlers, tmp_path, monkeypatch
):
    run = begin(handlers, photo(tmp_path / "cat.png"))
    save, newer = handlers.files.save, []

    def save_and_drop_another(image, path):
        if not newer and "srgan" in path.name:
            newer.append(begin(handlers, photo(tmp_path / "dog.png")))
        return save(image, path)

    monkeypatch.setattr(handlers.files, "save", save_and_drop_another)
    assert enlarge(handlers, run) == gr.skip()
    assert enlarge(handlers, newer[0]).name == "dog"


def test_of_overlapping_starts_the_one_asked_for_last_stays(handlers, tmp_path, monkeypatch):
    slow, quick = (photo(tmp_path / f"{name}.png") for name in ("slow", "quick"))
    reading, go_on, read = threading.Event(), threading.Event(), handlers._read

    def read_slowly(path, mode):
        if path == slow:
            reading.set()
            assert go_on.wait(60)
        return read(path, mode)

    monkeypatch.setattr(handlers, "_read", read_slowly)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(handlers.begin, slow, app.ENLARGE, app.BICUBIC, 0.75, "clean", visitor())
        assert reading.wait(60)
        with pytest.raises(gr.Error):  # which takes nothing over
            begin(handlers, str(tmp_path / "missing.png"))
        run = enlarge(handlers, begin(handlers, quick))
        go_on.set()
        assert late.result(60) == (gr.skip(),) * 8
    assert run.name == "quick"
    assert begin(handlers, slow).name == "slow"


def test_of_runs_that_wait_only_the_newest_is_enlarged(handlers, upscaler, tmp_path):
    path = photo(tmp_path / "cat.png")
    details = (0.25, 0.5, 1.0)
    runs = [
        handlers.begin(path, app.ENLARGE, app.BICUBIC, detail, app.CLEAN, visitor())[0]
        for detail in details
    ]
    assert [run.detail for run in runs] == list(details)
    assert [asyncio.run(handlers.enlarge(run, visitor())) for run in runs[:2]] == [gr.skip()] * 2
    run = asyncio.run(handlers.enlarge(runs[2], visitor()))
    assert run.detail == 1.0 and run.srgan is not None
    assert asyncio.run(handlers.enlarge(run, visitor())) == gr.skip()  # it waited for the same
    assert upscaler.runs == 1


def test_the_same_photo_again_is_not_read_again(handlers, tmp_path, monkeypatch):
    def again(mode):
        return handlers.begin_again(run, mode, app.BICUBIC, 0.25, app.CLEAN, visitor())[0]

    run = enlarge(handlers, begin(handlers, photo(tmp_path / "cat.png", (40, 32))))
    with monkeypatch.context() as patch:
        patch.setattr(handlers, "_read", None)
        newer = again(app.ENLARGE)
        with pytest.raises(TypeError):
            again(app.RESTORE)
    assert newer == replace(
        begin(handlers, run.photo), **{"bicubic": run.bicubic, "detail": 0.25, "asked": newer.asked}
    )
    assert newer.asked > run.asked and enlarge(handlers, run) == gr.skip()
    Path(run.bicubic).unlink()
    assert Path(again(app.ENLARGE).bicubic).exists()
    Path(run.photo).unlink()
    with pytest.raises(gr.Error, match="This photo has been deleted"):
        again(app.ENLARGE)


def test_an_example_is_enlarged_once(handlers, upscaler):
    example = str(app.EXAMPLES["Rocket"])
    first = enlarge(handlers, begin(handlers, example))
    second = enlarge(handlers, begin(handlers, example))
    assert upscaler.runs == 1 and second.remembered
    assert first.srgan != second.srgan and same_pixels(first.srgan, second.srgan)
    enlarge(handlers, begin(handlers, example), detail=0.1)
    assert upscaler.runs == 2


def test_an_example_is_enlarged_once_by_each_model(photo_handlers):
    example = str(app.EXAMPLES["Rocket"])
    results = {}
    for model in (app.CLEAN, app.PHOTO):
        results[model] = enlarge(photo_handlers, begin(photo_handlers, example), model=model)
        assert not results[model].remembered
    assert not same_pixels(*(run.srgan for run in results.values()))
    again = enlarge(photo_handlers, begin(photo_handlers, example), 0.1, app.PHOTO)
    assert again.remembered and same_pixels(again.srgan, results[app.PHOTO].srgan)
    assert photo_handlers.upscaler.runs == 2


def test_a_photo_is_not_remembered(handlers, upscaler, tmp_path):
    path = photo(tmp_path / "cat.png")
    for _ in range(2):
        enlarge(handlers, begin(handlers, path))
    assert upscaler.runs == 2


def test_old_files_are_deleted(handlers, tmp_path):
    old, new = (begin(handlers, photo(tmp_path / "cat.png")) for _ in range(2))
    an_hour_ago = time.time() - 3600
    for path in (Path(old.bicubic), Path(old.bicubic).parent):
        os.utime(path, (an_hour_ago, an_hour_ago))
    handlers.files.delete(older_than=3000)
    assert not Path(old.bicubic).parent.exists() and Path(new.bicubic).exists()


def test_a_deleted_result_says_so(handlers, tmp_path):
    run = begin(handlers, photo(tmp_path / "cat.png"))
    Path(run.bicubic).unlink()
    with pytest.raises(gr.Error, match="has been deleted"):
        handlers.compare_halves(run, app.PIXELS)


def test_a_deleted_enlargement_says_so(handlers, tmp_path):
    run = enlarge(handlers, begin(handlers, photo(tmp_path / "cat.png")))
    Path(run.srgan).unlink()
    for output_format in ("png", "webp"):
        with pytest.raises(gr.Error, match="has been deleted"):
            handlers.download(run, output_format)


def test_a_folder_that_was_cleaned_away_is_made_again(handlers, tmp_path):
    shutil.rmtree(handlers.files.folder)
    assert Path(begin(handlers, photo(tmp_path / "cat.png")).bicubic).exists()
    shutil.rmtree(handlers.files.folder)
    handlers.files.delete(older_than=3000)
    assert handlers.files.folder.is_dir()


def test_results_count_for_the_room(tmp_path, monkeypatch):
    """However small each is; the oldest make way if they are old enough."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("SRGAN_TEMP_BYTES", str(3 * server.LEAST_SIZE))
    files = server.Files()
    tiny = Image.new("RGB", (1, 1))
    paths = [files.new_folder() / "tiny.png" for _ in range(4)]
    for path in paths[:3]:
        assert files.save(tiny, path) == str(path) and path.exists()
    with pytest.raises(SRGANError, match="no room"):
        files.save(tiny, paths[3])
    assert [path.exists() for path in paths] == [True, True, True, False]
    a_while_ago = time.time() - server.KEEP_LEAST - 1
    os.utime(paths[1], (a_while_ago, a_while_ago))
    path = files.new_folder() / "tiny.png"
    files.save(tiny, path)
    assert path.exists() and not paths[1].exists()


def test_a_look_for_old_files_that_fails_does_not_end_the_server(monkeypatch, caplog):
    monkeypatch.setattr(app, "CLEAN_EVERY", 1)
    stopping, looks = threading.Event(), []

    def delete(older_than):
        looks.append(older_than)
        if len(looks) == 1:
            raise OSError("too many open files")
        stopping.set()

    app.keep_clean(SimpleNamespace(delete=delete), stopping)
    assert len(looks) == 2 and "too many open files" in caplog.text


def test_what_the_page_needs_is_not_deleted(upscaler, tmp_path, monkeypatch):
    """Also where the folder's name is relative, and where another process has the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "temporary")
    files = app.create_demo(upscaler).handlers.files
    icons = list(Path("temporary").rglob("*.png"))
    assert {path.name for path in icons} == {path.name for path in app.EXAMPLES.values()}
    files.delete(older_than=-60)
    files.delete_own()
    assert all(path.exists() for path in icons)
    assert not list(Path("temporary").glob("results-*"))


def test_a_deleted_photo_says_so(handlers, tmp_path):
    run = begin(handlers, photo(tmp_path / "cat.png"))
    Path(run.photo).unlink()
    with pytest.raises(gr.Error, match="has been deleted"):
        enlarge(handlers, run)


def test_nothing_happens_without_a_photo(handlers):
    assert handlers.begin_again(None, app.ENLARGE, app.BICUBIC, 0.75) == (gr.skip(),) * 8
    assert enlarge(handlers, None) == gr.skip()
    assert handlers.present(None, app.BICUBIC) == (gr.skip(),) * 4


def test_time_left_comes_from_the_speed_so_far():
    assert app._time_left(0, 0) == "Enlarging"
    assert app._time_left(0.25, 2) == "Enlarging, about 6 s left"
    assert app._time_left(1, 8) == "Finishing"
    assert app._time_left(0.1, 60) == "Enlarging, about 9 min left"


# ---- what is built and said


def test_api_is_three_functions_with_defaults(upscaler):
    endpoints = app.create_demo(upscaler).get_api_info()["named_endpoints"]
    defaults = {
        name: {
            parameter["parameter_name"]: parameter["parameter_default"]
            for parameter in endpoint["parameters"]
        }
        for name, endpoint in endpoints.items()
    }
    assert defaults == {
        "/upscale": {"image": None, "detail": 0.75, "output_format": "png", "model": "clean"},
        "/compare": {"image": None, "left": "bicubic", "detail": 0.75, "model": "clean"},
        "/info": {},
    }


def test_docstrings_tell_a_program_what_to_pass():
    for function in (app.Handlers.upscale, app.Handlers.compare, app.Handlers.info):
        description, parameters, _ = gr.utils.get_function_description(function)
        assert description.endswith(".")
        for name in set(inspect.signature(function).parameters) - {"self", "progress"}:
            assert parameters[name], f"{function.__name__}: {name}"


def test_notices_are_shown_and_harmless():
    assert "<b>" not in app._header(["<b>bold</b>"])
    assert "only SRResNet" in app._header(["only SRResNet"])


def test_about_shows_the_measured_table(upscaler):
    assert "without a measurement" in app._about(upscaler)
    scores = {
        "bicubic": {"psnr_y": 28.43, "ssim_y": 0.8109},
        "srgan": {"psnr_y": 29.4},
    }
    table = app._evaluation_table({"Set5": scores})
    assert "<td>28.43 dB / 0.8109</td><td>–</td>" in table and "SRResNet" not in table


def test_about_says_what_becomes_of_blur_and_noise(upscaler, photo_handlers):
    assert "are enlarged too" in app._about(upscaler)
    about = app._about(photo_handlers.upscaler)
    assert "are enlarged too" not in about and "trained to remove them" in about


def test_examples_are_small_licensed_pictures():
    licences = (app.HERE / "examples" / "README.md").read_text()
    for path in app.EXAMPLES.values():
        assert f"`{path.name}`" in licences
        assert max(Image.open(path).size) <= 200


def test_bundled_weights_enlarge_an_example(tmp_path):
    handlers = app.Handlers(Upscaler("bundled"))
    example = open_image(app.EXAMPLES["Coffee"])
    piece = example.crop((60, 40, 124, 88))
    save_image(piece, tmp_path / "cup.png")
    result = open_image(asyncio.run(handlers.upscale(str(tmp_path / "cup.png"))))
    # Another picture than bicubic's, but clearly the same thing.
    assert 20 < psnr_y(to_tensor(result), to_tensor(enlarge_bicubic(piece))) < 50


class LentGPU:
    """What ZeroGPU's `spaces.GPU` does to a function: all that goes in or out is pickled, and of
    exceptions only `gr.Error` survives as such."""

    def __init__(self):
        self.seconds = []

    def GPU(self, task, duration):
        def lent(*args):
            self.seconds.append(duration(*args))
            try:
                return pickle.loads(pickle.dumps(task(*pickle.loads(pickle.dumps(args)))))
            except gr.Error as error:
                raise pickle.loads(pickle.dumps(error)) from None
            except Exception as error:
                raise gr.Error(type(error).__name__) from None

        return lent


@pytest.fixture
def lent_gpu(monkeypatch) -> LentGPU:
    lent = LentGPU()
    monkeypatch.setattr(app, "ZERO_GPU", True)
    monkeypatch.setattr(app, "spaces", lent)
    return lent


def test_zero_gpu_gives_the_same_pixels(lent_gpu, upscaler, tmp_path):
    handlers = app.Handlers(upscaler)
    path = photo(tmp_path / "cat.png")
    result = asyncio.run(handlers.upscale(path, 0.25))
    assert same_pixels(result, upscaler.upscale(open_image(path), 0.25))
    assert lent_gpu.seconds == [11]


def test_zero_gpu_has_the_models_too(lent_gpu, tiny_photo_weights, tmp_path):
    upscaler = Upscaler(tiny_photo_weights)
    handlers = app.Handlers(upscaler)
    path = photo(tmp_path / "cat.png")
    result = asyncio.run(handlers.upscale(path, model="photo"))
    assert same_pixels(result, upscaler.upscale(open_image(path), model="photo"))


def test_zero_gpu_is_asked_for_longer_the_more_pixels_there_are(lent_gpu):
    small, large = Image.new("1", (1000, 1000)), Image.new("1", (2000, 1000))
    seconds = [app._seconds_on_zero_gpu(image, 1.0, app.CLEAN) for image in (small, large)]
    assert seconds[1] - seconds[0] == 10


def test_zero_gpu_passes_on_what_is_wrong(lent_gpu, upscaler, tmp_path, monkeypatch):
    def upscale(image, detail=None, progress=None, **options):
        raise ImageError("Not enough memory on cuda.")

    monkeypatch.setattr(upscaler, "upscale", upscale)
    handlers = app.Handlers(upscaler)
    with pytest.raises(gr.Error, match="Not enough memory on cuda"):
        asyncio.run(handlers.upscale(photo(tmp_path / "cat.png")))


def test_warm_up_runs_the_network_but_not_on_seconds_that_are_counted(lent_gpu, tiny_weights):
    upscaler = CountingUpscaler(tiny_weights)
    app.Handlers(upscaler).warm_up()
    assert upscaler.runs == 0 and not lent_gpu.seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "ZERO_GPU", False)
        handlers = app.Handlers(upscaler)
        handlers.warm_up()
        assert upscaler.runs == 1
        handlers.finish(1)
        handlers.warm_up()  # too late, and nobody waits
        assert upscaler.runs == 1


def test_warm_up_runs_every_model(photo_handlers):
    photo_handlers.warm_up()
    assert photo_handlers.upscaler.runs == 2
    assert {model for model, _ in photo_handlers.upscaler._networks} == {"clean", "photo"}


@pytest.mark.parametrize(
    "error", [WeightsError("weights/srgan-x4.safetensors is damaged."), SettingError("no int8")]
)
def test_an_upscaler_that_can_not_be_is_one_line(error):
    def load():
        raise error

    with pytest.raises(SystemExit) as caught:
        app.main(load, share=False)
    assert caught.value.code == f"app.py: {error}"


@pytest.mark.parametrize("lent, thread", [("true", "MainThread"), ("", "ThreadPoolExecutor")])
def test_zero_gpu_has_the_upscaler_made_where_torch_was_patched(tmp_path, lent, thread):
    (tmp_path / "spaces.py").touch()
    script = """
import runpy, threading, srgan

def Upscaler(*arguments, **options):
    raise srgan.WeightsError(threading.current_thread().name)

srgan.Upscaler = Upscaler
runpy.run_path("app.py", run_name="__main__")
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(app.__file__).parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SPACES_ZERO_GPU": lent},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"app.py: {thread}")


# ---- a running app that is slow on purpose


@pytest.fixture
def slow_app(tiny_weights):
    """An app in this process; its first run lasts until it is stopped or let go."""
    upscaler = CountingUpscaler(tiny_weights, slow=True)
    demo = app.create_demo(upscaler)
    _, url, _ = demo.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
    yield SimpleNamespace(upscaler=upscaler, url=url.rstrip("/"))
    upscaler.go_on.set()
    demo.close(verbose=False)


def test_a_cancelled_job_frees_the_worker(slow_app, tmp_path):
    client = connect(slow_app.url)
    path = photo(tmp_path / "cat.png")
    job = client.submit(handle_file(path), api_name="/upscale")
    assert slow_app.upscaler.started.wait(20)
    job.cancel()
    assert slow_app.upscaler.broken_off.wait(5)
    assert open_image(client.predict(handle_file(path), api_name="/upscale")).size == (96, 72)


def test_a_closed_connection_frees_the_worker(slow_app, tmp_path):
    api = f"{slow_app.url}/gradio_api"
    event = _call(api, photo(tmp_path / "cat.png"))
    with httpx.stream("GET", f"{api}/call/upscale/{event}", timeout=60):
        assert slow_app.upscaler.started.wait(20)
    assert slow_app.upscaler.broken_off.wait(20)


def _call(api: str, path: str) -> str:
    with open(path, "rb") as file:
        uploaded = httpx.post(f"{api}/upload", files={"files": file}, timeout=60).json()[0]
    image = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    return httpx.post(f"{api}/call/upscale", json={"data": [image]}, timeout=60).json()["event_id"]


# ---- the queue of that app


def join(app, width: int, session: str, folder: Path) -> httpx.Response:
    """Asks for an enlargement of a photo so wide, as a page with this session does."""
    api = httpx.Client(base_url=f"{app.url}/gradio_api/", timeout=60)
    with open(photo(folder / f"{width}.png", (width, 18)), "rb") as file:
        uploaded = api.post("upload", files={"files": file}).json()[0]
    image = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": function(app, "upscale"), "data": [image, 0.5, "png"]}
    return api.post("queue/join", json={**body, "session_hash": session})


def function(app, name: str) -> int:
    """The number by which the page calls a function."""
    functions = httpx.get(f"{app.url}/config", timeout=60).json()["dependencies"]
    (number,) = (function["id"] for function in functions if function["api_name"] == name)
    return number


def test_visitors_take_turns(slow_app, tmp_path):
    join(slow_app, 20, "first", tmp_path)
    assert slow_app.upscaler.started.wait(60)
    for width, session in enumerate(["first"] * 4 + ["second"] * 2 + ["third"], 21):
        join(slow_app, width, session, tmp_path)
    slow_app.upscaler.go_on.set()
    wait_until(lambda: len(slow_app.upscaler.widths) == 8)
    assert slow_app.upscaler.widths == [20, 21, 25, 27, 22, 26, 23, 24]


def test_whoever_waits_is_told_the_place(slow_app, tmp_path):
    path = photo(tmp_path / "cat.png")
    busy, client = (connect(slow_app.url) for _ in range(2))
    busy.submit(handle_file(path), api_name="/upscale")
    assert slow_app.upscaler.started.wait(60)
    jobs = []
    for asker, places in ((busy, [0]), (busy, [0, 1]), (client, [0, 2, 1])):
        jobs.append(asker.submit(handle_file(path), api_name="/upscale"))
        wait_until(lambda places=places: [job.status().rank for job in jobs] == places)
    slow_app.upscaler.go_on.set()
    for job in jobs:
        assert open_image(job.result(60)).size == (96, 72)


def test_a_full_line_is_busy_and_stop_still_works(slow_app, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "QUEUE_SIZE", 3)
    join(slow_app, 20, "first", tmp_path)
    assert slow_app.upscaler.started.wait(60)
    for number in range(3):
        assert join(slow_app, 24, f"visitor {number}", tmp_path).status_code == 200
    refused = join(slow_app, 24, "one too many", tmp_path)
    assert refused.status_code == 503 and "busy: 3 are waiting" in refused.text
    with pytest.raises(QueueError):
        connect(slow_app.url).predict(handle_file(photo(tmp_path / "cat.png")), api_name="/upscale")
    body = {"fn_index": function(slow_app, "stop"), "data": [], "session_hash": "first"}
    stopped = httpx.post(f"{slow_app.url}/gradio_api/queue/join", json=body, timeout=60)
    assert stopped.status_code == 200


def test_one_visitor_cannot_hold_all_places(slow_app, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "QUEUE_SHARE", 2)
    join(slow_app, 20, "greedy", tmp_path)
    assert slow_app.upscaler.started.wait(60)
    answers = [join(slow_app, 24, "greedy", tmp_path) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "You have 2 requests waiting" in answers[-1].text
    assert join(slow_app, 24, "modest", tmp_path).status_code == 200


@pytest.mark.parametrize(
    "address, visitor",
    [
        ("8.8.8.8", "8.8.8.8/32"),
        ("2a00:1450:4001:82a::200e", "2a00:1450:4001:82a::/64"),
        ("::ffff:8.8.8.8", "8.8.8.8/32"),
        ("::ffff:10.0.0.7", "session"),
        ("127.0.0.1", "session"),
        ("10.0.0.7", "session"),
        ("fd00::1", "session"),
        ("testclient", "session"),
    ],
)
def test_a_visitor_is_an_address_or_behind_a_proxy_a_session(address, visitor):
    request = SimpleNamespace(client=SimpleNamespace(host=address))
    assert server.visitor_of(request, "session") == visitor
    assert server.visitor_of(SimpleNamespace(client=None), "session") == "session"


def test_mcp_callers_are_visitors_of_their_own(upscaler, monkeypatch):
    """Though Gradio calls itself for them, from one address and in one session."""
    pytest.importorskip("mcp")
    visitors, visitor_of = [], server.visitor_of

    def noting(request, session):
        visitors.append(visitor_of(request, session))
        return visitors[-1]

    monkeypatch.setattr(server, "visitor_of", noting)
    demo = app.create_demo(upscaler)
    guard = Middleware(server.Guard, files=demo.handlers.files)
    _, url, _ = demo.launch(
        server_port=free_port(),
        prevent_thread_lock=True,
        quiet=True,
        mcp_server=True,
        app_kwargs={"middleware": [guard]},
    )
    for address in ("8.8.8.8", "1.1.1.1", "2.2.2.2, 8.8.8.8"):  # as a proxy here says it
        answer = call_mcp_tool(url, "info", {}, {"X-Forwarded-For": address})[1]
        assert not answer.isError
    demo.close(verbose=False)
    assert visitors == ["8.8.8.8/32", "1.1.1.1/32", "8.8.8.8/32"]


@pytest.mark.parametrize(
    "client, said, passed_on",
    [
        ("8.8.8.8", None, "8.8.8.8"),
        ("8.8.8.8", "1.1.1.1", "8.8.8.8"),
        ("2a00:1450::1", "1.1.1.1", "2a00:1450::1"),
        ("10.0.0.7", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.7", None, None),
    ],
)
def test_a_public_mcp_caller_cannot_pretend_an_address(client, said, passed_on):
    passed = []

    async def gradio(scope, receive, send):
        passed.append(Headers(scope=scope).get("x-forwarded-for"))

    headers = [(b"x-forwarded-for", said.encode())] * 2 if said else []
    scope = {"type": "http", "path": "/gradio_api/mcp/", "headers": headers, "client": (client, 1)}
    asyncio.run(server.Guard(gradio, server.Files())(scope, None, None))
    assert passed == [passed_on]


def test_sessions_of_long_ago_are_forgotten(upscaler):
    queue = app.create_demo(upscaler)._queue
    for number in range(10_000):
        queue.pending_event_ids_session[f"{number}"] = {"unread"}
        queue.pending_messages_per_session[f"{number}"] = None
        queue._forget_sessions()
    assert len(queue.pending_event_ids_session) <= 2 * 2000 + 1
    assert "9999" in queue.pending_event_ids_session


def test_several_pictures_at_a_time_where_that_is_asked_for(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SRGAN_CONCURRENCY", "2")
    upscaler = CountingUpscaler(tiny_weights, slow=True)
    demo = app.create_demo(upscaler)
    _, url, _ = demo.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
    client, path = connect(url), photo(tmp_path / "cat.png")
    first = client.submit(handle_file(path), api_name="/upscale")
    assert upscaler.started.wait(60)
    assert open_image(client.predict(handle_file(path), api_name="/upscale")).size == (96, 72)
    assert not first.done()
    upscaler.go_on.set()
    assert open_image(first.result(60)).size == (96, 72)
    demo.close(verbose=False)


def test_settings_that_are_no_numbers_are_one_sentence(upscaler, monkeypatch):
    monkeypatch.setenv("SRGAN_CONCURRENCY", "many")
    with pytest.raises(SRGANError, match="SRGAN_CONCURRENCY must be a whole number above 0"):
        app.Handlers(upscaler)


# ---- the real app


@pytest.fixture(scope="module")
def served(tiny_weights, tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app"), tiny_weights) as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    return connect(served.url)


@pytest.fixture(scope="module")
def served_with_photo(tiny_photo_weights, tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("photo-app"), tiny_photo_weights) as running:
        yield running


def rest(served, name: str, data: list) -> tuple[str, object]:
    """Calls as curl does; returns the last event and its data."""
    api = f"{served.url}/gradio_api"
    event = httpx.post(f"{api}/call/{name}", json={"data": data}, timeout=60).json()["event_id"]
    lines = httpx.get(f"{api}/call/{name}/{event}", timeout=60).text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def test_client_gets_the_librarys_pixels(client, tiny_weights, tmp_path):
    path = photo(tmp_path / "cat.png", (50, 40))
    result = client.predict(handle_file(path), api_name="/upscale")
    assert Path(result).name == "cat-srgan-x4.png"
    assert same_pixels(result, Upscaler(tiny_weights).upscale(open_image(path)))


def test_client_gets_both_halves(client, tmp_path):
    path = photo(tmp_path / "cat.png")
    first, second = client.predict(handle_file(path), left="pixels", api_name="/compare")
    assert same_pixels(first, enlarge_nearest(open_image(path)))
    assert open_image(second).size == (96, 72)


def test_client_chooses_the_model(served_with_photo, tiny_photo_weights, tmp_path):
    client = Client(served_with_photo.url, verbose=False)
    path = photo(tmp_path / "cat.png")
    result = client.predict(handle_file(path), model="photo", api_name="/upscale")
    assert Path(result).name == "cat-srgan-photo-x4.png"
    expected = Upscaler(tiny_photo_weights).upscale(open_image(path), model="photo")
    assert same_pixels(result, expected)
    assert client.predict(api_name="/info")["models"] == ["clean", "photo"]


def test_client_is_told_which_models_there_are(served, client, tmp_path):
    image = handle_file(photo(tmp_path / "cat.png"))
    with pytest.raises(AppError, match="clean"):
        client.predict(image, model="photo", api_name="/upscale")
    event, error = rest(served, "compare", [None, "bicubic", 0.5, ["clean"]])
    assert event == "error" and "Model has to be one of clean." in error["error"]


@pytest.mark.parametrize("suffix", ["heic", "tiff", "avif"])
def test_client_may_send_what_browsers_cannot_show(client, tmp_path, suffix):
    image = open_image(photo(tmp_path / "cat.png"))
    if suffix == "heic":
        import pillow_heif

        pillow_heif.from_pillow(image).save(tmp_path / "cat.heic")
    else:
        save_image(image, tmp_path / f"cat.{suffix}")
    result = client.predict(handle_file(tmp_path / f"cat.{suffix}"), api_name="/upscale")
    assert open_image(result).size == (96, 72)


def test_client_is_told_what_is_wrong(client, tmp_path):
    (tmp_path / "cat.png").write_text("not an image")
    with pytest.raises(AppError, match="supported format"):
        client.predict(handle_file(tmp_path / "cat.png"), api_name="/upscale")
    with pytest.raises(AppError, match="Detail has to be a number from 0 to 1"):
        client.predict(handle_file(photo(tmp_path / "b.png")), detail=1.5, api_name="/upscale")


def test_info_is_the_upscalers(client, tiny_weights):
    expected = {**Upscaler(tiny_weights).info(), "source": tiny_weights.name}
    assert client.predict(api_name="/info") == json.loads(json.dumps(expected))


def test_rest_call_may_leave_out_defaults(served, tmp_path):
    api = f"{served.url}/gradio_api"
    event = _call(api, photo(tmp_path / "cat.png"))
    answer = httpx.get(f"{api}/call/upscale/{event}", timeout=60).text
    file = json.loads(answer.strip().splitlines()[-1].removeprefix("data: "))[0]
    assert file["url"].endswith("/cat-srgan-x4.png")
    assert httpx.get(file["url"], timeout=60).content.startswith(b"\x89PNG")


def test_null_means_the_default(served, tmp_path):
    content = base64.b64encode(Path(photo(tmp_path / "cat.png")).read_bytes()).decode()
    image = {"url": f"data:image/png;base64,{content}", "meta": {"_type": "gradio.FileData"}}
    files = []
    for rest_of_data in ([], [None, None, None]):
        event, (file,) = rest(served, "upscale", [image, *rest_of_data])
        assert event == "complete" and file["url"].endswith(".png")
        files.append(httpx.get(file["url"], timeout=60).content)
    assert files[0] == files[1]
    event, ((left, _),) = rest(served, "compare", [image, None, None, None])
    assert event == "complete" and left["url"].endswith("-bicubic-x4.png")


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("upscale", ["0.5"], "Detail has to be a number"),
        ("upscale", [True], "Detail has to be a number"),
        ("upscale", [-0.1], "Detail has to be a number from 0 to 1."),
        ("upscale", [0.5, ["png"]], "Output format has to be one of png"),
        ("upscale", [0.5, 1], "Output format has to be one of png"),
        ("upscale", [0.5, "xcf"], "Output format has to be one of png"),
        ("compare", [["bicubic"]], "Left half has to be one of bicubic, pixels"),
    ],
)
def test_values_that_cannot_be_are_named(served, name, data, reason):
    event, error = rest(served, name, [None, *data])
    assert event == "error" and reason in error["error"]


def test_rest_call_may_carry_the_image(served, tmp_path):
    content = base64.b64encode(Path(photo(tmp_path / "cat.png")).read_bytes()).decode()
    image = {"url": f"data:image/png;base64,{content}", "meta": {"_type": "gradio.FileData"}}
    event, (file,) = rest(served, "upscale", [image])
    assert event == "complete" and file["url"].endswith(".png")


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_files_of_the_server_cannot_be_read(served, meta):
    example = {"path": str(app.EXAMPLES["Cat"]), **meta}
    event, _ = rest(served, "upscale", [example])
    assert event == "error"


@pytest.mark.parametrize(
    "component, value",
    [(gr.Slider(0, 1), 7), (gr.Slider(0, 1), float("nan")), (gr.Dropdown(["png"]), "xcf")],
)
def test_values_that_cannot_be_are_no_traceback(component, value):
    with pytest.raises(gr.Error) as caught:
        app._argument(component, value)
    assert not caught.value.print_exception


def test_missing_image_is_said(served):
    event, error = rest(served, "upscale", [None])
    assert event == "error" and "No image" in error["error"]


def test_oversized_upload_is_refused(served):
    files = {"files": ("big.png", b"\0" * (default_max_bytes() + 1))}
    answer = httpx.post(f"{served.url}/gradio_api/upload", files=files, timeout=60)
    assert answer.status_code == 413


def test_functions_are_mcp_tools(served, tmp_path):
    pytest.importorskip("mcp")
    content = base64.b64encode(Path(photo(tmp_path / "cat.png")).read_bytes()).decode()
    image = {"image": f"data:image/png;base64,{content}"}
    tools, result = call_mcp_tool(f"{served.url}/", "upscale", image)
    assert tools == ["upscale", "compare", "info"]
    assert not result.isError


def test_port_in_use_is_one_line(served, tiny_weights, tmp_path):
    port = int(served.url.rpartition(":")[2])
    process = start(["app.py"], port, tmp_path, {"SRGAN_WEIGHTS": str(tiny_weights)})
    assert process.wait(120) != 0
    log = (tmp_path / "app.log").read_text()
    assert "Traceback" not in log and str(port) in log.splitlines()[-1]


def test_sigterm_before_the_server_stands_is_obeyed(tiny_weights, tmp_path):
    process = start(["app.py"], free_port(), tmp_path, {"SRGAN_WEIGHTS": str(tiny_weights)})
    while "srgan.upscaler: weights" not in (tmp_path / "app.log").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 0


def test_sigterm_lets_the_running_image_finish(tiny_weights, tmp_path):
    script = """
import threading, time, app
from srgan import Upscaler

class Slow(Upscaler):
    def upscale(self, image, detail=None, progress=None, **options):
        if image.width == 24:  # the visitor's, not the warm-up
            print("running", flush=True)
            time.sleep(2)
        return super().upscale(image, detail, progress, **options)

app.launch(app.create_demo(Slow()))
"""
    with running_app(tmp_path, tiny_weights, script) as running:
        client = connect(running.url)
        job = client.submit(handle_file(photo(tmp_path / "cat.png")), api_name="/upscale")
        while "running" not in (tmp_path / "app.log").read_text():
            time.sleep(0.05)
        assert running.terminate() == 0
        assert open_image(job.result(10)).size == (96, 72)
    assert list((tmp_path / "gradio").glob("results-*/*")) == []
