import base64
import io
import json
import re
import subprocess
import sys
import weakref
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train import explore, figures, measure
from train.explore import ExploreConfig
from train.prepare import PrepareConfig, prepare
from train.sources import PrepareError

ROOT = Path(__file__).parent.parent
FIGURES = {
    "sizes.png",
    "common-sizes.png",
    "aspect-ratios.png",
    "sharpness.png",
    "photos.png",
    "hr.png",
    "lr.png",
    "softest.png",
    "sharpest.png",
}


def photo(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six photos of 96 × 64, three of 64 × 64, and a damaged one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(9):
        photo(seed, 96 if seed < 6 else 64, 64).save(folder / f"{seed}.png")
    (folder / "damaged.jpg").write_bytes(b"nothing")
    return folder


def run(dataset: Path, out: Path, **options) -> str:
    """The text of the page."""
    return explore.explore(
        ExploreConfig(dataset=dataset, out=out, workers=1, **options)
    ).read_text()


class Page(HTMLParser):
    """Collects what a page refers to, and the cells of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.lasttag in ("td", "th") and data.strip():
            self.rows[-1].append(data)


def prepared(photos: Path, out: Path, **options) -> Path:
    options = {"min_side": 32, "workers": 1, "validation": 0.5} | options
    prepare(PrepareConfig(paths=(str(photos), str(out)), **options))
    return out


def test_page_of_a_prepared_dataset_has_its_counts_and_sizes(photos, tmp_path):
    dataset = prepared(photos, tmp_path / "dataset")
    counts = json.loads((dataset / "manifest.json").read_text())["counts"]
    rows = Page(run(dataset, tmp_path / "report")).rows
    assert ["photos", "9", "100.0 %"] in rows
    assert ["for training", str(counts["train"]), f"{counts['train'] / 0.09:.1f} %"] in rows
    assert ["left out: unreadable", "1"] in rows
    assert ["96 × 64", "6", "66.7 %"] in rows and ["64 × 64", "3", "33.3 %"] in rows
    assert ["3:2 landscape", "6", "66.7 %"] in rows and ["1:1", "3", "33.3 %"] in rows
    assert ["original width, pixels", "64", "64", "96", "96", "96"] in rows


def test_sizes_are_those_before_resizing(photos, tmp_path):
    rows = Page(run(prepared(photos, tmp_path / "dataset", size=32), tmp_path / "report")).rows
    assert ["96 × 64", "6", "66.7 %"] in rows


def measured(dataset: Path, scratch: Path, workers: int = 1) -> tuple[list[tuple], list[str]]:
    opened = measure.open_dataset(dataset, scratch, 10**6)
    measures, failures = measure.measure_all(opened, workers)
    return [(m.width, m.height, m.laplacian, m.fine) for m in measures], failures


def test_folder_and_archive_can_be_looked_at_unprepared(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as target:
        for path in photos.iterdir():
            target.write(path, path.name)
    of_folder = measured(photos, tmp_path / "scratch")
    assert of_folder == measured(tmp_path / "photos.zip", tmp_path / "scratch")
    assert len(of_folder[0]) == 9 and of_folder[1] == ["unreadable"]


def test_number_of_workers_changes_nothing(photos, tmp_path):
    assert measured(photos, tmp_path, workers=1) == measured(photos, tmp_path, workers=2)


def test_page_needs_no_other_file(photos, tmp_path):
    text = run(photos, tmp_path / "report")
    page = Page(text)
    assert page.images == len(FIGURES) == len(page.references)
    assert all(value.startswith("data:image/png;base64,") for value in page.references)
    assert "http" not in text and "url(" not in text and "@import" not in text
    files = {path.read_bytes() for path in (tmp_path / "report").glob("*.png")}
    assert files == {base64.b64decode(value.partition(",")[2]) for value in page.references}


def test_figures_are_images_with_something_on_them(photos, tmp_path):
    run(photos, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == FIGURES | {"index.html"}
    for name in FIGURES:
        image = Image.open(tmp_path / "report" / name)
        assert image.format == "PNG"
        assert min(image.size) >= 200 and np.asarray(image.convert("L")).std() > 5


def test_figures_hold_one_whole_photo_at_a_time(tmp_path, monkeypatch):
    for seed in range(9):
        photo(seed, 400, 300).save(tmp_path / f"{seed}.png")
    opened = measure.open_dataset(tmp_path, tmp_path, 10**6)
    measures, _ = measure.measure_all(opened, 1)
    whole, most = [], 0

    def open_counted(self) -> Image.Image:
        nonlocal most
        most = max(most, sum(image() is not None for image in whole))
        image = photo(0, 400, 300)
        whole.append(weakref.ref(image))
        return image

    monkeypatch.setattr(measure.FilePhoto, "open", open_counted)
    pages = {figure.file: figure for figure in figures.make_figures(measures, grid=6)}
    assert most == 1
    sheet = Image.open(io.BytesIO(pages["photos.png"].png))
    assert sheet.getpixel((128, 30)) == (255, 255, 255)  # in full: 256 × 192
    assert sheet.getpixel((128, 34)) != (255, 255, 255)


def test_names_are_escaped():
    table = explore.Table("<b>", ("&",), [("<i>",)])
    text = explore.make_page("a <b> & c", [table], [])
    assert "Dataset a &lt;b&gt; &amp; c" in text
    assert "<b>" not in text and "<i>" not in text


def test_one_flat_photo_is_enough(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "photos/grey.png")
    rows = Page(run(tmp_path / "photos", tmp_path / "report")).rows
    assert ["variance of the Laplacian, levels²", *["0"] * 5] in rows


def test_folder_without_photos_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(PrepareError, match="no image files in"):
        run(tmp_path / "photos", tmp_path / "report")
    (tmp_path / "photos/a.jpg").write_bytes(b"nothing")
    with pytest.raises(PrepareError, match="none of the 1 files in photos is a photo"):
        run(tmp_path / "photos", tmp_path / "report")


def test_unfinished_dataset_is_an_error(tmp_path):
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(PrepareError, match=r"unfinished: give its train\.prepare command again"):
        run(tmp_path, tmp_path / "report")


def test_command_prints_the_tables_and_fails_with_one_line(photos, tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "train.explore", *map(str, arguments), "--workers", "1"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    done = command(photos, tmp_path / "report", "--grid", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  96 × 64 +6 +66\.7 %$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith(f"{tmp_path / 'report/index.html'}\n")
    failed = command(tmp_path / "missing", tmp_path / "report")
    assert failed.returncode == 1
    assert failed.stderr == f"error: {tmp_path / 'missing'} does not exist\n"


# ------------------------------------------------------------------------------ measures


def wave(cycles_a_pixel: float) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    return (128 + 50 * np.sin(2 * np.pi * cycles_a_pixel * (x + y / 4))).astype(np.float32)


def test_fine_energy_is_what_lies_above_the_low_res_nyquist_frequency():
    assert measure.fine_energy(wave(0.08)) < 0.01
    assert measure.fine_energy(wave(0.2)) > 0.99
    both = measure.fine_energy(wave(0.08) + wave(0.2))
    assert both == pytest.approx(0.5, abs=0.02)
    assert measure.fine_energy(np.full((64, 64), 7, np.float32)) == 0


def test_laplacian_variance_is_that_of_the_four_neighbour_kernel():
    luma = np.zeros((5, 5), np.float32)
    luma[2, 2] = 1
    expected = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).var()
    assert measure.laplacian_variance(luma) == pytest.approx(expected)
    ramp = np.add.outer(np.arange(9.0), np.arange(9.0))
    assert measure.laplacian_variance(ramp) == 0


def test_measures_grow_with_sharpness(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sharp = Image.fromarray(noise)
    for name, image in {"a": sharp, "b": sharp.resize((16, 16)).resize((64, 64))}.items():
        image.save(tmp_path / f"{name}.png")
    ((*_, sharp_laplacian, sharp_fine), (*_, laplacian, fine)), failures = measured(
        tmp_path, tmp_path
    )
    assert not failures
    assert sharp_laplacian > 10 * laplacian and sharp_fine > 0.8 > 0.3 > fine


@pytest.mark.parametrize(
    "size, shape",
    [
        ((500, 333), "3:2 landscape"),
        ((375, 500), "4:3 portrait"),
        ((500, 500), "1:1"),
        ((505, 500), "1:1"),
        ((1280, 720), "16:9 landscape"),
        ((500, 200), "other landscape"),
    ],
)
def test_aspect_ratios_have_their_names(size, shape):
    assert measure.shape_of(*size) == shape


def test_low_res_crop_shows_the_same_place():
    image = photo(1, 502, 375)
    crop = measure.centre(image)
    left, top = (502 - 256) // 2 // 4 * 4, (375 - 256) // 2 // 4 * 4
    assert crop.tobytes() == image.crop((left, top, left + 256, top + 256)).tobytes()
    whole = image.crop((0, 0, 500, 372)).resize((125, 93), Image.Resampling.BICUBIC)
    expected = whole.crop((left // 4, top // 4, left // 4 + 64, top // 4 + 64))
    low = measure.low_res(crop)
    inner = (2, 2, 62, 62)  # the kernel sees beyond the crop at its border
    assert low.size == (64, 64)
    assert low.crop(inner).tobytes() == expected.crop(inner).tobytes()


def test_grid_shows_every_image_with_its_pixels():
    images = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(7)]
    sheet = Image.open(io.BytesIO(figures.draw_grid(images)))
    assert sheet.size == (6 * 264 - 8, 2 * 264 - 8)
    centres = [
        sheet.getpixel((264 * (number % 6) + 128, 264 * (number // 6) + 128)) for number in range(7)
    ]
    assert centres == [(number, 0, 0) for number in range(7)]
