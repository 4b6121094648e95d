"""The page in a real browser."""

import base64
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from app_process import running_app
from PIL import Image

from srgan import open_image
from srgan.image import enlarge_bicubic

sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

CHROMIUM = Path("/usr/bin/chromium")  # Debian's
#: Milliseconds for anything on the page to happen on a busy machine.
PATIENCE = 30_000
#: The app with a network that takes half a minute for images 40 or 42 pixels wide and minutes for
#: those of 41, which takes seconds to read those of 42, and with a short queue.
SCRIPT = """
import time, app, server
from srgan import Upscaler

class SometimesSlow(Upscaler):
    def upscale(self, image, detail=None, progress=None, **options):
        steps = {40: 300, 41: 3000, 42: 300}.get(image.width, 0)
        for i in range(steps):
            progress(i / steps)
            time.sleep(0.1)
        return super().upscale(image, detail, progress, **options)

class SometimesSlowToRead(app.Handlers):
    def _read(self, photo, mode):
        lr, original = super()._read(photo, mode)
        time.sleep(3 * (lr.width == 42))
        return lr, original

app.Handlers = SometimesSlowToRead
server.QUEUE_SIZE = 2
app.launch(app.create_demo(SometimesSlow()))
"""
#: Gives the page a file the way `event` says; arguments are the event, name, content and type.
HAND_OVER = """([event, name, content, type]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const target = document.querySelector("h1"), options = { bubbles: true, cancelable: true };
  if (event === "paste")
    target.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
  else
    for (const step of ["dragenter", "dragover", "drop"])
      target.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: data }));
}"""


@pytest.fixture(scope="module")
def url(tiny_weights, tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("page"), tiny_weights, SCRIPT) as app:
        yield app.url


@pytest.fixture(scope="module")
def url_with_photo(tiny_photo_weights, tmp_path_factory):
    """Of an app whose weights have the model photo."""
    with running_app(tmp_path_factory.mktemp("photo-page"), tiny_photo_weights) as app:
        yield app.url


@pytest.fixture(scope="module")
def browser():
    """A browser window whose pages share their cache."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        ).new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(browser, url):
    with visit(browser, url) as page:
        yield page


@pytest.fixture
def page_with_photo(browser, url_with_photo):
    with visit(browser, url_with_photo) as page:
        yield page


@contextmanager
def visit(browser, url):
    """The page, which must ask nobody but its server and raise no error in the browser."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    strangers, errors = [], []
    page.on(
        "request",
        lambda sent: sent.url.startswith(("data:", "blob:", url)) or strangers.append(sent.url),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#photo input[type=file]", state="attached")
    yield page
    page.close()
    assert (strangers, errors) == ([], [])


@pytest.fixture
def cat(tmp_path) -> Path:
    return picture(tmp_path / "cat.png")


def picture(path: Path, size=(24, 18), mode="RGB") -> Path:
    gradient = Image.linear_gradient("L").resize(size).convert(mode)
    if mode == "RGBA":
        gradient.putalpha(Image.radial_gradient("L").resize(size))
    gradient.save(path)
    return path


def open_another(page):
    """Another visitor's page, in a browser window of its own."""
    another = page.context.browser.new_context().new_page()
    another.set_default_timeout(PATIENCE)
    another.goto(page.url)
    another.wait_for_selector("#photo input[type=file]", state="attached")
    return another


def choose(page, path: Path) -> None:
    page.set_input_files("#photo input[type=file]", path)


def hand_over(page, event: str, name: str, path: Path, mime_type: str) -> None:
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(HAND_OVER, [event, name, content, mime_type])


def wait_for_srgan(page, name: str = "cat", result: str = "srgan-x4") -> None:
    page.wait_for_selector(f'#slider.right-srgan img[src$="/{name}-{result}.png"]')
    page.wait_for_selector("#download:enabled")
    page.wait_for_selector("body:not(.running)")  # comes last


def halves(page) -> list[bytes]:
    """The two files behind the slider, left first."""
    sources = page.eval_on_selector_all("#slider img", "images => images.map((i) => i.src)")
    return [httpx.get(source).content for source in sources]


def captions(page) -> list[str]:
    return page.eval_on_selector(
        "#slider .slider-wrap",
        "wrap => ['::before', '::after'].map((p) => getComputedStyle(wrap, p).content)",
    )


def test_a_chosen_photo_comes_back_four_times_as_large_twice(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    left, right = halves(page)
    for half in (left, right):
        assert half.startswith(b"\x89PNG\r\n\x1a\n")
        assert Image.open(BytesIO(half)).size == (96, 72)
    assert open_image(left).tobytes() == enlarge_bicubic(open_image(cat)).tobytes()
    assert left != right
    assert captions(page) == ['"Bicubic"', '"SRGAN"']
    status = page.inner_text("#status")
    assert "24 × 18 → 96 × 72" in status and "s on CPU" in status
    assert page.inner_text("#photo-line") == "cat.png, 24 × 18"


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_may_land_anywhere(page, cat, event):
    hand_over(page, event, "cat.png", cat, "image/png")
    wait_for_srgan(page)


def test_what_is_dropped_without_a_file_is_let_go(page):
    page.evaluate(
        """() => {
          const event = new Event("drop", { bubbles: true, cancelable: true });
          event.dataTransfer = { types: ["Files"], files: [] };
          document.body.dispatchEvent(event);
        }"""
    )


def test_heic_works_where_the_browser_knows_nothing_of_it(page, cat, tmp_path):
    import pillow_heif

    pillow_heif.from_pillow(open_image(cat)).save(tmp_path / "photo.heic")
    hand_over(page, "drop", "photo.heic", tmp_path / "photo.heic", "")
    wait_for_srgan(page, "photo")
    assert Image.open(BytesIO(halves(page)[0])).size == (96, 72)


def test_download_is_the_right_half_named_after_the_upload(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    for label, suffix, start in (("PNG", "png", b"\x89PNG"), ("WebP", "webp", b"RIFF")):
        page.click("#format input")
        page.click(f'[role=option]:has-text("{label}")')
        page.wait_for_selector(f'#download:enabled:has-text("Download {label}")')
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == f"cat-srgan-x4.{suffix}"
        assert Path(download.value.path()).read_bytes().startswith(start)
    assert "srgan" in page.get_attribute("#slider img >> nth=1", "src")


def test_the_left_half_changes_alone(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    before = halves(page)
    page.click('#left label:has-text("Original pixels")')
    page.wait_for_selector("#slider.left-pixels")
    after = halves(page)
    assert captions(page) == ['"Original pixels"', '"SRGAN"']
    assert before[0] != after[0] and before[1] == after[1]


def test_a_bad_file_is_explained_and_the_last_result_stands(page, cat, tmp_path):
    choose(page, cat)
    wait_for_srgan(page)
    before = halves(page)
    bad = tmp_path / "<img src=x onerror=document.title='!'>.png"
    bad.write_text("not an image")
    choose(page, bad)
    text = page.wait_for_selector('[data-testid="toast-text"]').inner_text()
    assert "isn't an image of a supported format" in text
    assert page.query_selector("[role=button] button") is None  # not to be told apart by ear
    assert halves(page) == before
    page.click('[data-testid="toast-close"]')
    choose(page, picture(tmp_path / "<img src=x onerror=document.title='!'> dog.png"))
    wait_for_srgan(page, "img_src_x_onerror_document.title_dog")
    assert page.title() == "SRGAN ×4"


def test_errors_go_when_something_else_is_tried(page, cat, tmp_path):
    errors = page.locator('[data-testid="toast-text"]')
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    choose(page, picture(tmp_path / "slow.png", (40, 30)))
    page.wait_for_selector('#status :text("s left")')
    for name, reason in (("text", "supported format"), ("empty", "empty")):
        choose(page, tmp_path / f"{name}.png")
        page.wait_for_selector(f'[data-testid="toast-text"]:has-text("{reason}")')
        page.wait_for_function(
            """() => document.querySelectorAll('[data-testid="toast-text"]').length === 1"""
        )
    page.click("#stop")
    page.wait_for_selector("body:not(.running)")
    assert errors.count() == 1
    page.click(".example >> nth=0")
    wait_for_srgan(page)
    assert errors.count() == 0


def test_stop_leaves_the_bicubic_result(page, tmp_path):
    choose(page, picture(tmp_path / "slow.png", (40, 30)))
    page.wait_for_selector('#status :text("s left")')
    assert captions(page) == ['"Bicubic"', '"Bicubic for now"']
    first = page.eval_on_selector("#status .progress-bar", "bar => bar.offsetWidth")
    page.wait_for_function(
        "first => document.querySelector('#status .progress-bar').offsetWidth > first", arg=first
    )
    page.click("#stop")
    page.wait_for_selector("body:not(.running)", timeout=5000)
    left, right = halves(page)
    assert left == right
    assert "bicubic on both halves" in page.inner_text("#status")
    page.wait_for_selector("#stop", state="hidden", timeout=5000)  # buttons fade
    page.wait_for_selector("#again", state="visible", timeout=5000)


def test_stop_also_stops_what_is_about_to_begin(page, tmp_path):
    choose(page, picture(tmp_path / "slow.png", (42, 30)))
    page.click("#stop")
    page.wait_for_selector('#slider img[src$="/slow-bicubic-x4.png"]')
    page.wait_for_timeout(2000)
    assert page.locator("body.running").count() == 0
    assert "bicubic on both halves" in page.inner_text("#status")
    page.click("#again")
    page.wait_for_selector('#status :text("s left")')


def test_another_photo_may_come_during_a_run(page, cat, tmp_path):
    choose(page, picture(tmp_path / "slow.png", (40, 30)))
    page.wait_for_selector('#status :text("s left")')
    choose(page, cat)
    wait_for_srgan(page)
    page.wait_for_selector("body:not(.running)")
    assert page.inner_text("#photo-line").startswith("cat.png")


def test_a_busy_server_says_so_and_closed_pages_make_room(page, cat, tmp_path):
    slow = picture(tmp_path / "slow.png", (41, 30))
    others = [open_another(page) for _ in range(3)]
    for place, other in enumerate(others):
        choose(other, slow)
        text = f"queue: {place}/{place}" if place else "min left"
        other.wait_for_selector(f'#status :text("{text}")')
    choose(page, cat)
    text = page.wait_for_selector('[data-testid="toast-text"]').inner_text()
    assert "busy. Please try again" in text
    left, right = halves(page)
    assert left == right
    for other in others:
        other.context.close()
    page.click("#again")
    wait_for_srgan(page)


def test_shrink_and_restore_measures_both(page, tmp_path):
    choose(page, picture(tmp_path / "cat.png", (96, 80)))
    wait_for_srgan(page)
    page.click('#mode label:has-text("Shrink and restore")')
    status = page.wait_for_selector('#status :text("Against the original")').inner_text()
    assert status.count("dB") == 2 and status.count("SSIM") == 2
    page.click('#left label:has-text("The original")')
    page.wait_for_selector("#slider.left-original")
    assert open_image(halves(page)[0]).tobytes() == open_image(tmp_path / "cat.png").tobytes()


def test_a_change_of_model_runs_the_network_again(page_with_photo, cat):
    page = page_with_photo
    choose(page, cat)
    wait_for_srgan(page)
    clean = halves(page)
    page.click('#model label:has-text("Photo")')
    wait_for_srgan(page, result="srgan-photo-x4")
    photo = halves(page)
    assert clean[0] == photo[0] and clean[1] != photo[1]
    page.wait_for_selector('#status :text("srgan-photo-x4")')
    page.wait_for_selector("#detail input[type=range]:disabled")
    assert "has one look only" in page.inner_text("#detail")
    with page.expect_download() as download:
        page.click("#download:enabled")
    assert download.value.suggested_filename == "cat-srgan-photo-x4.png"
    page.click('#model label:has-text("Clean")')
    wait_for_srgan(page)
    page.wait_for_selector("#detail input[type=range]:enabled")
    page.wait_for_selector('#status :text("detail 0.75")')
    assert "A change runs the network again" in page.inner_text("#detail")
    assert halves(page) == clean
    page.locator("#detail input[type=range]").press("ArrowLeft")
    page.wait_for_selector('#status :text("detail 0.70")')


def test_the_model_stays_for_the_next_photo(page_with_photo, tmp_path):
    page = page_with_photo
    page.click('#model label:has-text("Photo")')
    choose(page, picture(tmp_path / "dog.png"))
    wait_for_srgan(page, "dog", "srgan-photo-x4")


def test_without_photo_there_is_no_choice_of_model(page):
    assert page.locator("#model").count() == 0 or not page.is_visible("#model")
    assert page.is_visible("#mode")


def test_an_example_takes_one_click(page):
    page.click(".example >> nth=0")
    wait_for_srgan(page, "cat")


def test_transparency_stands_on_a_checkered_ground(page, tmp_path):
    choose(page, picture(tmp_path / "cat.png", mode="RGBA"))
    wait_for_srgan(page)
    ground = page.eval_on_selector("#slider img >> nth=1", "i => getComputedStyle(i).background")
    assert "conic-gradient" in ground
    assert Image.open(BytesIO(halves(page)[1])).mode == "RGBA"


def test_the_keyboard_moves_handle_and_detail(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    handle = page.locator("#slider [role=slider]")
    before = handle.bounding_box()["x"]
    handle.press("ArrowLeft")
    assert handle.bounding_box()["x"] < before
    assert handle.get_attribute("aria-valuenow") == "48"
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    width = page.locator("#slider img >> nth=0").bounding_box()["width"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + width / 4, y, steps=3)
    page.mouse.up()
    assert handle.get_attribute("aria-valuenow") == "73"
    for _ in range(3):
        handle.press("ArrowRight")
    assert handle.get_attribute("aria-valuenow") == "79"
    page.locator("#detail input[type=range]").press("ArrowLeft")
    page.wait_for_selector('#status :text("detail 0.70")')


def test_the_focus_stays_on_the_button_that_is_there(page, tmp_path):
    choose(page, picture(tmp_path / "slow.png", (40, 30)))
    page.wait_for_selector('#status :text("s left")')
    for old, new in (("stop", "again"), ("again", "stop")):
        page.press(f"#{old}", "Enter")
        page.wait_for_selector(f"#{old}", state="hidden")
        page.wait_for_timeout(500)
        assert page.evaluate("document.activeElement.id") == new


def test_the_list_of_formats_closes_when_it_is_left(page):
    page.focus("#format input")
    page.wait_for_selector("#format [role=option]")
    page.keyboard.press("Tab")
    page.wait_for_selector("#format [role=option]", state="detached")


def test_the_focus_is_seen(page):
    for place in ("#mode input:checked", "#left input:checked", "#detail input[type=range]"):
        page.keyboard.press("Shift")  # so that the keyboard counts as used
        page.focus(place)
        outline = page.eval_on_selector(
            place,
            """(input) => [input, input.closest("label")].map((element) =>
                 element && getComputedStyle(element).outlineStyle)""",
        )
        assert "solid" in outline


def test_the_detail_is_taken_when_it_is_another_one(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    asked = []
    page.on("request", lambda sent: "/queue/join" in sent.url and asked.append(sent.url))
    box = page.locator("#detail input[type=number]")
    slider = page.locator("#detail input[type=range]")
    box.focus()
    for key in ("Tab", "Shift", "Shift+Tab", "Enter"):
        page.keyboard.press(key)
    box.fill("")
    box.press("Enter")
    slider.press("Shift")
    slider.click(position={"x": 0.75 * slider.bounding_box()["width"], "y": 5})
    page.wait_for_timeout(500)
    assert asked == [] and box.input_value() == "0.75"
    box.fill("0.3")
    box.press("Enter")
    page.wait_for_selector('#status :text("detail 0.30")')
    box.fill("7")
    box.press("Tab")
    page.wait_for_selector('#status :text("detail 1.00")')
    assert box.input_value() == slider.input_value() == "1"
    assert page.locator('[data-testid="toast-text"]').count() == 0
    slider.press("ArrowLeft")
    page.wait_for_selector('#status :text("detail 0.95")')


def test_the_tab_key_reaches_everything(page, cat):
    choose(page, cat)
    wait_for_srgan(page)
    parts = [
        "photo",
        "slider",
        "left",
        "format",
        "download",
        "mode",
        "detail",
        "again",
        "examples",
        "about",
    ]
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached |= set(
            page.evaluate(
                "parts => parts.filter((id) => document.activeElement.closest('#' + id))", parts
            )
        )
    assert reached == set(parts)


def test_everything_to_operate_has_a_name(page):
    nameless = page.eval_on_selector_all(
        "button:visible, input:visible, [role=slider]",
        """elements => elements.filter((e) => !(e.innerText?.trim() || e.ariaLabel
             || e.labels?.[0]?.innerText.trim() || e.closest("label")?.innerText.trim()))
             .map((e) => e.outerHTML)""",
    )
    assert nameless == []


def test_a_panorama_has_room_to_be_zoomed_into(page, tmp_path):
    choose(page, picture(tmp_path / "pano.png", (800, 2)))
    page.wait_for_selector('#slider img[src*="/pano-"]')
    for half in page.locator("#slider img").all():
        assert half.bounding_box()["height"] >= 160
        assert half.evaluate("image => getComputedStyle(image).objectFit") == "contain"
    assert len({half.bounding_box()["height"] for half in page.locator("#slider img").all()}) == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page, cat, width):
    page.set_viewport_size({"width": width, "height": 844})
    choose(page, cat)
    wait_for_srgan(page)
    page.click("#about button")
    page.wait_for_selector("#about :text('What it cannot do')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = [page.locator(place).bounding_box()["y"] for place in ("#photo", "#slider", "#mode")]
    if width < 800:
        assert tops == sorted(tops)
    assert page.is_visible("footer :text('API')")


def findings(page) -> list[str]:
    """What axe-core says against the page as it stands: the rule, and where."""
    page.wait_for_function(
        """() => document.getAnimations().every((a) =>
             a.playState !== "running" || a.effect.getTiming().iterations === Infinity)"""
    )
    found = Axe().run(page, options={"resultTypes": ["violations", "passes"]}).response
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}  # it has looked
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_in_any_state(page, cat, tmp_path, scheme, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.wait_for_selector("#photo input[type=file]", state="attached")
    assert page.locator("body.dark").count() == (scheme == "dark")
    found = {"empty": findings(page)}
    choose(page, cat)
    wait_for_srgan(page)
    found["result"] = findings(page)
    (tmp_path / "bad.png").write_text("not an image")
    choose(page, tmp_path / "bad.png")
    page.wait_for_selector('[data-testid="toast-text"]')
    found["error"] = findings(page)
    page.click('[data-testid="toast-close"]')
    choose(page, picture(tmp_path / "large.png", (96, 80)))
    wait_for_srgan(page, "large")
    page.click('#mode label:has-text("Shrink and restore")')
    page.wait_for_selector('#status :text("Against the original")')
    page.wait_for_selector("#download:enabled")
    found["shrink and restore"] = findings(page)
    page.click("#about button")
    page.wait_for_selector("#about :text('What it cannot do')")
    found["about"] = findings(page)
    assert {state: of for state, of in found.items() if of} == {}
