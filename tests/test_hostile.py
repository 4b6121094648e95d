"""Files as nobody should send them: a right picture or an error, in bounded time and memory."""

import io
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from srgan import __main__
from srgan.bombs import refuse_bombs
from srgan.errors import ImageError
from srgan.image import (
    OUTPUT_FORMATS,
    enlarge_bicubic,
    map_pixels,
    notices,
    open_image,
    save_image,
    shrink,
)
from tests.benchmarks import hostile
from tests.fuzz.fuzz_image import CORPUS, try_image
from tests.hostile_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    HostileFile,
    adobe_ycck,
    after_start,
    avif_grid,
    encoded,
    flip,
    grey_tiff,
    photo,
    png,
    png_chunk,
    resized_container,
    valid_files,
)

ROOT = Path(__file__).resolve().parent.parent
FILES = valid_files()
repeatable = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
names = st.sampled_from(sorted(FILES))
sides = st.integers(1100, 2**32 - 1)  # a HEIC's may be 63 pixels of padding too large
positions = st.floats(0, 1, exclude_max=True)  # as a share of the file


def at(position: float, data: bytes) -> int:
    return int(position * len(data))


# ------------------------------------------------------------------------------ mutated files


@repeatable
@given(names, positions)
def test_any_truncation_is_a_picture_or_an_error(name, cut):
    try_image(FILES[name][: at(cut, FILES[name])])


@repeatable
@given(names, st.lists(positions, min_size=1, max_size=8))
def test_any_flipped_bits_are_a_picture_or_an_error(name, places):
    data = FILES[name]
    try_image(flip(data, [int(8 * len(data) * place) for place in places]))


@repeatable
@given(names, names, positions, positions, st.binary(max_size=12))
def test_any_splice_is_a_picture_or_an_error(first, second, end, start, between):
    a, b = FILES[first], FILES[second]
    try_image(a[: at(end, a)] + between + b[at(start, b) :])


@repeatable
@given(names, positions, st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 127, 128, 255]))
def test_any_number_replaced_by_an_extreme_is_a_picture_or_an_error(name, place, size, byte):
    data = FILES[name]
    start = at(place, data)
    try_image(data[:start] + bytes([byte]) * size + data[start + size :])


@repeatable
@given(sides, sides, st.sampled_from(["PNG", "AVIF", "HEIF"]))
def test_any_declared_size_over_the_limit_is_refused(width, height, format):
    if format == "PNG":
        data = png(width, height, 8, 0, b"\0\1\2")
    else:
        declared = (64, 64) if format == "HEIF" else (12, 9)
        data = resized_container(FILES[format.lower()], declared, (width, height))
    with pytest.raises(ImageError) as caught:
        open_image(data, max_pixels=999 * 999)
    assert str(caught.value).endswith(".")


@repeatable
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "AVIF", "HEIC", "BMP"]),
    st.one_of(st.binary(max_size=400), names.map(FILES.__getitem__)),
    st.lists(positions, max_size=8),
)
def test_search_for_bombs_raises_nothing_but_image_errors(kind, data, places):
    data = flip(data, [int(8 * len(data) * place) for place in places if data])
    try:
        refuse_bombs(kind, data, 2**20)
    except ImageError as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_corpus_of_the_fuzzing_is_replayed(path):
    assert try_image(path.read_bytes())


def test_corpus_is_small():
    sizes = [path.stat().st_size for path in CORPUS.iterdir()]
    assert len(sizes) >= len(FILES)
    assert sum(sizes) < 100_000


# --------------------------------------------------------------------- any mode, size, content


@st.composite
def images(draw) -> Image.Image:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    modes = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
    mode = draw(st.sampled_from([*modes, "I", "F", "I;16", "I;16B", "La", "RGBa"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 65536, (height, width), np.int32))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    image = Image.new(mode, (width, height))
    image.frombytes(rng.bytes(len(image.tobytes())))
    if mode in ("P", "PA"):
        image.putpalette(rng.bytes(768))
    if mode in ("P", "L", "RGB") and draw(st.booleans()):
        image.info["transparency"] = (1, 2, 3) if mode == "RGB" else draw(st.integers(0, 255))
    return image


@repeatable
@given(images(), st.sampled_from(sorted(OUTPUT_FORMATS)))
def test_any_image_goes_through_everything_and_back(image, format):
    large = enlarge_bicubic(image)
    assert large.size == (4 * image.width, 4 * image.height)
    same = map_pixels(image, lambda pixels: pixels.clone())
    assert (same.size, same.mode) == (image.size, large.mode)
    assert shrink(large).size == image.size
    save_image(same, file := io.BytesIO(), format)
    again = open_image(file.getvalue())
    assert again.size == image.size
    if format in ("png", "tiff"):
        assert again.mode == same.mode
        assert again.tobytes() == same.tobytes()


# ------------------------------------------------------------------------- the right picture


def difference(image: Image.Image, expected: Image.Image) -> float:
    same = map_pixels(image, lambda pixels: pixels.clone())
    return np.abs(np.asarray(same, int) - np.asarray(expected.convert(same.mode), int)).mean()


def test_ycck_of_photoshop_has_the_colours_of_its_cmyk():
    image = open_image(adobe_ycck())
    assert image.mode == "CMYK"
    assert np.abs(np.asarray(image, int) - np.asarray(photo(mode="CMYK"), int)).mean() < 6


@pytest.mark.parametrize("profile", [ADOBE_RGB, DISPLAY_P3])
def test_profiles_of_wide_colour_spaces_are_kept_with_their_numbers(profile):
    image = open_image(encoded(photo(), "PNG", icc_profile=profile))
    assert notices(image) == []
    large = enlarge_bicubic(image)
    assert large.info["icc_profile"] == profile
    assert difference(image, photo()) == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_polyglot_is_its_picture(format):
    data = encoded(photo(), format)
    plain = open_image(data)
    assert open_image(data + b"PK\x03\x04<script>%PDF-1.4\n%%EOF").tobytes() == plain.tobytes()


@pytest.mark.parametrize("key", ["transparency", "dpi", "icc_profile", "exif", "xmp"])
def test_text_of_a_png_is_not_taken_for_metadata(key):
    text = png_chunk(b"tEXt", key.encode() + b"\x0072")
    image = open_image(png(4, 1, 8, 2, b"\0" + bytes(range(12)), text))
    assert set(image.info) <= {"srgan_notices"}
    assert map_pixels(image, lambda pixels: pixels.clone()).mode == "RGB"


def test_uncompressed_ycbcr_of_tiff_is_refused_rather_than_read_wrongly():
    data = encoded(photo(mode="YCbCr"), "TIFF") + bytes(5000)
    with pytest.raises(ImageError, match=r"uncompressed YCbCr.*save it as RGB"):
        open_image(data)


def test_avif_coded_larger_than_declared_is_refused():
    data = encoded(Image.new("RGB", (2048, 2048), "teal"), "AVIF")
    small = resized_container(data, (2048, 2048), (64, 64))
    with pytest.raises(ImageError, match=r"holds pictures of 4,194,304 pixels .* 500,000"):
        open_image(small, max_pixels=500_000)
    assert open_image(small, max_pixels=2**22).size == (64, 64)


def test_animated_avif_coded_larger_than_declared_is_refused():
    frames = {"save_all": True, "append_images": [Image.new("RGB", (1024, 1024))]}
    data = encoded(Image.new("RGB", (1024, 1024), "teal"), "AVIF", **frames)
    with pytest.raises(ImageError, match="holds pictures of 2,097,152 pixels"):
        open_image(resized_container(data, (1024, 1024), (64, 64)), max_pixels=2**16)


def test_tiles_of_an_avif_count_together():
    assert open_image(avif_grid(512)).getpixel((5, 5))[0] < 40
    with pytest.raises(ImageError, match="holds pictures of 16,777,216 pixels"):
        open_image(avif_grid(64), max_pixels=2**18)


def test_metadata_of_usual_size_passes():
    exif = Image.Exif()
    for tag in range(0x9C9B, 0x9CA0):
        exif[tag] = b"x" * 10_000
    data = encoded(photo(), "JPEG", exif=exif, icc_profile=ADOBE_RGB * 200)
    data = after_start(data, *[(0xFE, b"a comment")] * 50)
    assert open_image(data).info["exif"]


def test_strips_of_single_rows_pass():
    rows = 4000
    first = 8 + 2 + 12 * 9 + 4 + 8 * rows
    offsets = [first + row for row in range(rows)]
    data = grey_tiff(1, rows, bytes(rows), t273=offsets, t278=1, t279=[1] * rows)
    assert open_image(data).size == (1, rows)


# -------------------------------------------------------------------------- in a child process


def test_everything_hostile_ends_right_in_bounded_time_and_memory():
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.hostile"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("\n") == 2 + len(hostile.KINDS)


def test_hangs_crashes_memory_and_wrong_results_are_noticed(monkeypatch):
    def misbehave(data: bytes) -> hostile.Outcome:
        if data == b"hang":
            signal.pause()
        elif data == b"crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif data == b"memory":
            mmap.mmap(-1, 100_000_000).write(bytes(100_000_000))  # not what malloc has kept
        return hostile.Outcome("picture", "")

    monkeypatch.setattr(hostile, "_try", misbehave)
    monkeypatch.setattr(hostile, "SILENCE", 2)
    files = [
        HostileFile("", "", data, "error" if data == b"wrong" else None)
        for data in (b"fine", b"hang", b"fine", b"crash", b"memory", b"wrong", b"fine")
    ]
    outcomes = [hostile.judge(*pair) for pair in zip(files, hostile.try_files(files), strict=True)]
    assert [outcome.reason for outcome in outcomes] == [
        "", "nothing after 2 s", "", "the process ended with -9",
        outcomes[4].reason, "picture instead of error: ", "",
    ]  # fmt: skip
    assert outcomes[4].result == "unhandled" and outcomes[4].reason.endswith(" MB")


# --------------------------------------------------------------------------------- file names

ODD_NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "two\nlines.png",
    "..png",
    "a..png",
    "-rf.png",
    "日本語 ελ.png",
    "e\u0301.png",
    "\u202egnp.png",
    "x" * 251 + ".png",
    os.fsdecode(b"not utf-8 \xff.png"),
]


@pytest.fixture
def small_weights(tiny_weights, monkeypatch):
    monkeypatch.setenv("SRGAN_WEIGHTS", str(tiny_weights))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the program's to set


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_are_names(tmp_path, name, small_weights, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    photo(8, 6).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(folder / name)
    assert __main__.main([str(folder), str(tmp_path / "out")]) == 0
    [path] = (tmp_path / "out").iterdir()
    assert open_image(path).size == (32, 24)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["two\nlines.png", "x" * 300 + ".png", "../../gone.png"])
def test_bad_file_of_an_odd_name_is_one_line(tmp_path, name, small_weights, capsys):
    if len(name) < 255 and "/" not in name:
        (tmp_path / name).write_bytes(b"no image")
    assert __main__.main([str(tmp_path / name), str(tmp_path / "out.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
