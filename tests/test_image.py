"""srgan.image: every promised kind of file in and out, hostile files, what happens to pixels."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from srgan.errors import ImageError, SettingError
from srgan.image import (
    OUTPUT_FORMATS,
    check_size,
    crop_to_scale,
    default_max_bytes,
    default_max_pixels,
    enlarge_bicubic,
    enlarge_nearest,
    map_pixels,
    notices,
    open_image,
    save_image,
    shrink,
    to_tensor,
)
from tests.hostile_files import READABLE, SRGB, encoded, noise, photo, png, png_chunk, profile

BASE, IFD = ExifTags.Base, ExifTags.IFD
#: A valid grey profile.
GREY = profile(
    b"GRAY",
    {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 563) + b"\0\0",
    },
)


def identity(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.clone()


def repeat(pixels: torch.Tensor) -> torch.Tensor:
    """Stands for a network: ×4, and sharp."""
    return pixels.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def assert_same_pixels(image: Image.Image, expected: Image.Image) -> None:
    assert image.mode == expected.mode
    assert np.array_equal(np.asarray(image), np.asarray(expected))


# --------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("format", READABLE)
def test_every_promised_format_opens(format):
    image = open_image(encoded(photo(), format))
    assert image.size == (40, 24)
    difference = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(photo(), int))
    assert difference.mean() < 8
    assert notices(image) == []


@pytest.mark.parametrize("format", ["EPS", "PPM", "ICO", "PCX", "TGA", "PDF", "JPEG2000", "DDS"])
def test_other_formats_of_pillow_are_refused(format):
    with pytest.raises(ImageError, match=r"supported format; JPEG, PNG.* and HEIC are"):
        open_image(encoded(photo(), format))


@pytest.mark.parametrize(
    "data", [b"hello", b"8BPS" + bytes(60), b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(99)]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError, match="supported format"):
        open_image(data)


def test_a_video_is_not_taken_for_heic():
    with pytest.raises(ImageError, match="supported format"):
        open_image(b"\0\0\0\x18ftypisom" + bytes(100))


def test_empty_file_is_refused():
    with pytest.raises(ImageError, match="empty"):
        open_image(b"")


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(photo(), "PNG"))
    assert_same_pixels(open_image(path), photo())


def test_paths_bytes_and_streams_are_the_same(tmp_path):
    data = encoded(photo(), "PNG")
    path = tmp_path / "α β\n.png"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data), open(path, "rb")):  # noqa: SIM115
        assert_same_pixels(open_image(source), photo())


@pytest.mark.parametrize("name", ["missing.png", ".", "a\0b", "x" * 300])
def test_unreadable_path_is_an_image_error(tmp_path, name):
    with pytest.raises(ImageError, match="Can't read"):
        open_image(os.path.join(tmp_path, name))


def test_too_little_memory_is_said(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    image, data = photo(), encoded(photo(), "PNG")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match="Not enough memory to write the image as png"):
        save_image(image, io.BytesIO(), "png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(ImageError, match="Not enough memory to read this PNG file"):
        open_image(data)


def test_result_does_not_hold_on_to_the_file():
    image = open_image(encoded(photo(), "PNG"))
    assert type(image) is Image.Image


@pytest.mark.parametrize("format", READABLE)
def test_truncated_files_are_refused_as_cut_short(format):
    data = encoded(Image.fromarray(noise(60, 60, 3)), format)
    for tenth in range(1, 10):
        with pytest.raises(ImageError, match=r"cut short|supported format"):
            open_image(data[: max(1, len(data) * tenth // 10)])


def test_truncation_is_named_with_the_kind_of_file():
    data = encoded(photo(), "JPEG")
    with pytest.raises(ImageError, match=r"This JPEG file is damaged or cut short; .* again"):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_is_used_and_said(format):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    image = open_image(encoded(first, format, save_all=True, append_images=[second]))
    assert image.convert("RGB").getpixel((4, 4))[0] > 200
    [notice] = notices(image)
    several = (
        "several pictures: only the first one"
        if format == "TIFF"
        else "animated: only the first frame"
    )
    assert several in notice


def test_sixteen_bit_colour_says_that_it_is_reduced():
    image = open_image(png(2, 1, 16, 2, b"\0" + bytes(range(12))))
    assert image.mode == "RGB"
    assert "8 bits" in notices(image)[0]


def test_no_warning_of_pillow_gets_out():
    broken_exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 20
    data = encoded(photo(), "JPEG", exif=broken_exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(data)


# ---------------------------------------------------------------------------------- limits


def test_pixel_limit_is_exact_and_named():
    data = encoded(Image.new("L", (30, 20)), "PNG")
    assert open_image(data, max_pixels=600).size == (30, 20)
    with pytest.raises(
        ImageError, match=r"30 × 20 is 600 pixels and the limit is 599 \(SRGAN_MAX_PIXELS\)\. Make"
    ):
        open_image(data, max_pixels=599)


@pytest.mark.parametrize("format", READABLE)
def test_pixel_limit_holds_for_every_format(format):
    with pytest.raises(ImageError, match="the limit is 959"):
        open_image(encoded(photo(), format), max_pixels=40 * 24 - 1)


def test_byte_limit_is_exact_and_named(tmp_path):
    data = encoded(photo(), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    for source in (data, io.BytesIO(data), tmp_path / "x.png"):
        open_image(source, max_bytes=len(data))
    for source in (data, io.BytesIO(data), tmp_path / "x.png"):
        with pytest.raises(ImageError, match=r"limit of 0\.000\d+ MB"):
            open_image(source, max_bytes=len(data) - 1)


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("SRGAN_MAX_PIXELS", raising=False)
    monkeypatch.delenv("SRGAN_MAX_BYTES", raising=False)
    assert (default_max_pixels(), default_max_bytes()) == (2**21, 50_000_000)
    monkeypatch.setenv("SRGAN_MAX_PIXELS", "100")
    monkeypatch.setenv("SRGAN_MAX_BYTES", "50")
    with pytest.raises(ImageError, match="limit is 100"):
        check_size(Image.new("L", (101, 1)))
    with pytest.raises(ImageError, match="SRGAN_MAX_BYTES"):
        open_image(encoded(photo(), "PNG"))


@pytest.mark.parametrize("value", ["many", "-1", "0", "1.5"])
def test_senseless_limit_in_the_environment_is_named(monkeypatch, value):
    monkeypatch.setenv("SRGAN_MAX_PIXELS", value)
    with pytest.raises(SettingError, match=f"SRGAN_MAX_PIXELS must be .* got '{value}'"):
        default_max_pixels()


@pytest.mark.parametrize("side", [1449, 10_000, 15_000, 2**31 - 1])
def test_png_bomb_is_refused_by_its_header(side):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    with warnings.catch_warnings(), pytest.raises(ImageError, match=r"too large.*limit"):
        warnings.simplefilter("error")
        open_image(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(9))))


def test_webp_bomb_is_refused_by_its_header():
    frames = [photo(8, 8), photo(9, 9).crop((0, 0, 8, 8))]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = b"\xfe\xff\x00" * 2  # the canvas
    with pytest.raises(ImageError, match="too large"):
        open_image(bytes(data))


def test_heic_is_judged_by_what_is_decoded_not_by_its_crop():
    data = encoded(photo(), "HEIF")
    assert open_image(data, max_pixels=40 * 24).size == (40, 24)
    size = struct.pack(">II", 64, 64)
    assert size in data
    with pytest.raises(ImageError, match="too large"):
        open_image(data.replace(size, struct.pack(">II", 30_000, 30_000)))


def test_tiff_with_giant_tiles_is_refused_before_they_are_allocated():
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 325: 100}
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes(100)
    with pytest.raises(ImageError, match="40000 × 40000"):
        open_image(data)


def test_jpeg_of_endless_scans_is_refused():
    data = encoded(photo(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    open_image(data[:-2] + 10 * scan + data[-2:])
    with pytest.raises(ImageError, match="scans"):
        open_image(data[:-2] + 1000 * scan + data[-2:])


def test_image_without_pixels_is_refused():
    for size in ((0, 0), (0, 5), (5, 0)):
        for function in (check_size, to_tensor, enlarge_bicubic, enlarge_nearest):
            with pytest.raises(ImageError, match="empty"):
                function(Image.new("RGB", size))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_odd_sizes_are_enlarged_exactly_four_times(size, mode):
    image = Image.new(mode, size)
    expected = (4 * size[0], 4 * size[1])
    assert map_pixels(image, repeat).size == expected
    assert enlarge_bicubic(image).size == expected
    assert enlarge_nearest(image).size == expected


# -------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(format, orientation):
    exif = Image.Exif()
    exif[BASE.Orientation] = orientation
    stored = photo(40, 24)
    expected = stored.copy()
    expected.getexif()[BASE.Orientation] = orientation
    expected = ImageOps.exif_transpose(expected)
    image = open_image(encoded(stored, format, exif=exif))
    assert image.size == expected.size
    difference = np.abs(np.asarray(image, int) - np.asarray(expected, int))
    assert difference.mean() < 8
    again = open_image(encoded(image, "PNG", exif=image.info.get("exif", b"")))
    assert again.size == expected.size


def test_orientation_of_heic_is_applied_once():
    exif = Image.Exif()
    exif[BASE.Orientation] = 6
    image = open_image(encoded(photo(40, 24), "HEIF", exif=exif.tobytes()))
    assert image.size == (24, 40)
    assert BASE.Orientation not in image.getexif()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_orientation_in_xmp_is_applied_and_not_kept(format):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    options = {"xmp": xmp}
    if format == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    image = open_image(encoded(photo(40, 24), format, **options))
    assert image.size == (24, 40)
    saved = io.BytesIO()
    save_image(image, saved, "png")
    assert b"Orientation" not in saved.getvalue()


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_senseless_orientation_is_ignored(value):
    exif = Image.Exif()
    exif[BASE.Orientation] = value
    assert open_image(encoded(photo(40, 24), "JPEG", exif=exif)).size == (40, 24)


def photographer_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[BASE.Make] = "Maker"
    exif[BASE.Model] = "Model 1"
    exif[BASE.DateTime] = "2020:01:02 03:04:05"
    exif[BASE.Copyright] = "© Someone"
    exif[BASE.Orientation] = 8
    exif[BASE.ImageWidth] = 40
    exif[IFD.Exif] = {
        BASE.DateTimeOriginal: "2020:01:02 03:04:05",
        BASE.ExposureTime: 0.005,
        BASE.ExifImageWidth: 40,
        BASE.ExifImageHeight: 24,
        BASE.MakerNote: b"private",
    }
    exif[IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (1.0, 2.0, 3.0),
    }
    return exif


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("target", ["png", "jpeg", "webp", "tiff", "avif"])
def test_what_exif_says_of_the_photograph_reaches_the_result(source, target):
    exif = photographer_exif()
    image = open_image(encoded(photo(), source, exif=exif.tobytes()))
    file = io.BytesIO()
    save_image(map_pixels(image, repeat), file, target)
    kept = Image.open(file).getexif()
    assert kept[BASE.Model] == "Model 1"
    assert kept[BASE.DateTime] == "2020:01:02 03:04:05"
    assert "Someone" in kept[BASE.Copyright]
    assert kept.get_ifd(IFD.Exif)[BASE.DateTimeOriginal] == "2020:01:02 03:04:05"
    assert float(kept.get_ifd(IFD.Exif)[BASE.ExposureTime]) == pytest.approx(0.005)
    assert kept.get_ifd(IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (1.0, 2.0, 3.0)
    assert kept.get(BASE.Orientation, 1) == 1
    if target != "tiff":
        assert BASE.ImageWidth not in kept
    for dropped in (BASE.ExifImageWidth, BASE.ExifImageHeight, BASE.MakerNote):
        assert dropped not in kept.get_ifd(IFD.Exif)


def test_thumbnail_is_dropped():
    thumbnail = encoded(photo(8, 8), "JPEG")
    ifd0 = struct.pack("<H", 1) + struct.pack("<HHI4s", BASE.Model, 2, 3, b"ab\0\0")
    ifd1 = struct.pack("<H", 2) + struct.pack("<HHII", 513, 4, 1, 56)
    ifd1 += struct.pack("<HHII", 514, 4, 1, len(thumbnail)) + bytes(4)
    exif = b"II*\0\x08\0\0\0" + ifd0 + struct.pack("<I", 26) + ifd1 + thumbnail
    source = encoded(photo(), "JPEG", exif=b"Exif\0\0" + exif)
    assert Image.open(io.BytesIO(source)).getexif().get_ifd(IFD.IFD1)[514] == len(thumbnail)
    image = open_image(source)
    assert image.getexif()[BASE.Model] == "ab"
    assert image.getexif().get_ifd(IFD.IFD1) == {}
    assert thumbnail[:10] not in image.info["exif"]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\x01"]
)
def test_broken_exif_is_dropped(format, exif):
    image = open_image(encoded(photo(), format, exif=b"Exif\0\0" + exif))
    assert image.size == (40, 24)
    assert "exif" not in image.info


def test_broken_exif_is_said():
    image = open_image(encoded(photo(), "JPEG", exif=b"Exif\0\0junk and more"))
    assert notices(image) == ["The EXIF data is damaged and was left out."]


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("target", ["png", "jpeg", "webp", "tiff", "avif"])
def test_icc_profile_is_kept_byte_for_byte(source, target):
    image = open_image(encoded(photo(), source, icc_profile=SRGB))
    for result in (map_pixels(image, repeat), enlarge_bicubic(image), shrink(image)):
        file = io.BytesIO()
        save_image(result, file, target)
        assert Image.open(file).info["icc_profile"] == SRGB


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profile_stays_with_grey(mode):
    grey = Image.new(mode, (8, 8))
    image = open_image(encoded(grey, "PNG", icc_profile=GREY))
    file = io.BytesIO()
    save_image(map_pixels(image, repeat), file, "png")
    assert Image.open(file).info["icc_profile"] == GREY
    save_image(map_pixels(image, repeat), file := io.BytesIO(), "webp")  # which is always RGB
    assert "icc_profile" not in Image.open(file).info


@pytest.mark.parametrize("mode, profile", [("L", SRGB), ("RGB", GREY), ("RGB", b"not a profile")])
def test_profile_that_does_not_fit_is_dropped_and_said(mode, profile):
    image = open_image(encoded(photo(mode=mode), "PNG", icc_profile=profile))
    assert "icc_profile" not in image.info
    assert "profile" in notices(image)[0]


def test_profile_that_does_not_fit_is_never_written():
    image = photo(mode="L")
    image.info["icc_profile"] = SRGB
    for format in ("png", "jpeg", "tiff", "avif"):
        file = io.BytesIO()
        save_image(image, file, format)
        assert "icc_profile" not in Image.open(file).info
        assert SRGB not in file.getvalue()


def test_dpi_is_kept_unless_it_is_nonsense():
    assert map_pixels(open_image(encoded(photo(), "PNG", dpi=(300, 300))), repeat).info["dpi"] == (
        pytest.approx((300, 300), abs=0.1)
    )
    for dpi in ((0, 0), (float("nan"), 1), ("a", "b"), (1e9, 1e9), 72, None):
        image = photo()
        image.info["dpi"] = dpi
        assert "dpi" not in enlarge_bicubic(image).info


# ----------------------------------------------------------------------------------- modes

RESULT_MODES = {
    "1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB",
    "LAB": "RGB", "CMYK": "RGB", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA",
    "RGBa": "RGBA", "I": "I;16", "F": "I;16", "I;16": "I;16", "I;16B": "I;16", "I;16L": "I;16",
}  # fmt: skip


@pytest.mark.parametrize("mode", RESULT_MODES)
def test_every_mode_goes_through_everything(mode):
    image = Image.new(mode, (8, 12))
    expected = RESULT_MODES[mode]
    assert map_pixels(image, repeat).mode == expected
    assert enlarge_bicubic(image).mode == expected
    assert enlarge_nearest(image).mode == expected
    assert shrink(image).size == (2, 3)
    assert to_tensor(image).shape == (1, 3, 12, 8)
    for format in OUTPUT_FORMATS:
        save_image(image, file := io.BytesIO(), format)
        assert Image.open(file).size == (8, 12)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_identity_changes_no_level(mode):
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    array = noise(30, 40, *channels)
    if mode.endswith("A"):
        array[..., -1] |= 16  # below, hidden colours are replaced
    image = Image.fromarray(array)
    assert_same_pixels(map_pixels(image, identity), image)


def test_function_gets_rgb_between_0_and_1():
    seen = []
    for image in (photo(), photo(mode="L"), Image.fromarray(noise(24, 40, dtype=np.uint16))):
        map_pixels(image, lambda pixels: seen.append(pixels) or pixels.clone())
    for pixels in seen:
        assert pixels.shape == (1, 3, 24, 40)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0 and 0.9 < pixels.max() <= 1
    assert torch.equal(seen[1][:, 0], seen[1][:, 2])


def test_result_is_clamped_and_rounded():
    levels = torch.tensor([-3.0, 0.4, 0.6, 254.4, 254.6, 400.0]) / 255
    result = map_pixels(Image.new("RGB", (6, 1)), lambda _: levels.expand(1, 3, 1, 6).clone())
    assert np.asarray(result)[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_result_may_have_any_layout_and_type(dtype, memory):
    image = Image.fromarray(noise(5, 7, 3) // 128 * 255)
    result = map_pixels(image, lambda pixels: pixels.to(dtype).contiguous(memory_format=memory))
    assert_same_pixels(result, image)


def test_sixteen_bit_grey_keeps_its_precision():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for image in (
        Image.fromarray(ramp),
        Image.frombytes("I;16B", (256, 256), ramp.astype(">u2").tobytes()),
        Image.fromarray(ramp.astype(np.int32)),
        Image.fromarray(ramp / np.float32(65535)),
        open_image(encoded(Image.fromarray(ramp), "PNG")),
        open_image(encoded(Image.fromarray(ramp), "TIFF")),
    ):
        result = map_pixels(image, identity)
        assert result.mode == "I;16"
        assert np.array_equal(np.asarray(result), ramp)
        save_image(result, file := io.BytesIO(), "png")
        assert np.array_equal(np.asarray(Image.open(file)), ramp)


def test_sixteen_bit_bicubic_is_smooth_and_in_range():
    ramp = np.linspace(1000, 60000, 64 * 8).reshape(8, 64).astype(np.uint16)
    exact = Image.fromarray(ramp.astype(np.float32)).resize((256, 32), Image.Resampling.BICUBIC)
    result = np.asarray(enlarge_bicubic(Image.fromarray(ramp)), float)
    assert np.abs(result - np.asarray(exact)).max() <= 0.5
    extremes = enlarge_bicubic(Image.fromarray(noise(9, 9, dtype=np.uint16) // 32768 * 65535))
    assert np.asarray(extremes).dtype == np.uint16


def test_sixteen_bit_grey_is_scaled_not_clipped_to_eight():
    image = Image.fromarray(np.array([[0, 128, 129, 32896, 65535]], dtype=np.uint16))
    for format in ("jpeg", "bmp"):
        save_image(image.resize((40, 8), Image.Resampling.NEAREST), file := io.BytesIO(), format)
        assert np.abs(np.asarray(Image.open(file))[4, 4::8] - [0.0, 0, 1, 128, 255]).max() <= 2


@pytest.mark.parametrize(
    "array",
    [[[-1, 5]], [[0, 65536]], [[0.0, 1.5]], [[-0.1, 0.5]], [[np.nan, 0.5]], [[np.inf, 0.5]]],
)
def test_values_out_of_range_are_refused_with_the_range(array):
    dtype = np.float32 if isinstance(array[0][1], float) else np.int32
    with pytest.raises(ImageError, match=r"go from .* expected 0 to (1|65535)"):
        map_pixels(Image.fromarray(np.array(array, dtype=dtype)), identity)


def test_one_bit_becomes_grey():
    image = Image.fromarray(noise(8, 8) > 127)
    assert image.mode == "1"
    assert np.array_equal(np.asarray(map_pixels(image, identity)), np.asarray(image) * 255)


def cmyk_profile() -> bytes:
    """A printer whose four inks are green, white, white and black; a table of 2⁴ Lab colours."""
    green, white, black = (200, 40, 200), (255, 128, 128), (0, 128, 128)
    table = b"".join(
        bytes(black if k else green if c else white)
        for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)
    )  # fmt: skip
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0\x04\x03\x02\0" + matrix + bytes(range(256)) * 4 + table
    lut += bytes(range(256)) * 3
    header = bytearray(SRGB[:128])
    header[0:4] = struct.pack(">I", 128 + 4 + 12 + len(lut))
    header[8:24] = b"\x02\0\0\0prtrCMYKLab "
    return bytes(header) + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


def test_cmyk_goes_through_its_profile():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for format in ("JPEG", "TIFF"):
        image = open_image(encoded(cyan, format, icc_profile=cmyk_profile()))
        assert image.mode == "CMYK"
        assert notices(image) == ["The file is CMYK: its colours are converted to sRGB."]
        red, green, blue = map_pixels(image, identity).getpixel((4, 4))
        assert red < 50 and green > 200 and blue < 100
        assert "icc_profile" not in map_pixels(image, identity).info


def test_cmyk_without_a_profile_of_its_own_is_converted_plainly():
    cmyk = photo(mode="CMYK")
    plain = np.asarray(cmyk.convert("RGB"))
    assert np.array_equal(np.asarray(map_pixels(cmyk, identity)), plain)
    cmyk.info["icc_profile"] = SRGB  # not one of CMYK: not used, not kept
    result = map_pixels(cmyk, identity)
    assert np.array_equal(np.asarray(result), plain)
    assert "icc_profile" not in result.info


def test_damaged_cmyk_profile_is_not_fatal():
    for cut in (150, 300, 1000):
        image = open_image(encoded(photo(mode="CMYK"), "TIFF", icc_profile=cmyk_profile()[:cut]))
        assert map_pixels(image, identity).mode == "RGB"


def test_lab_is_converted_to_srgb():
    lab = ImageCms.profileToProfile(
        photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    difference = np.asarray(map_pixels(lab, identity), int) - np.asarray(photo(), int)
    assert np.abs(difference).mean() < 4


# ----------------------------------------------------------------------------- transparency


def red_disc_on_hidden_blue(size: int = 32) -> Image.Image:
    """Opaque red in the middle, half transparent red around it, invisible blue everywhere else."""
    image = Image.new("RGBA", (size, size), (0, 0, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((1, 1, size - 2, size - 2), (255, 0, 0, 128))
    draw.ellipse((2, 2, size - 3, size - 3), (255, 0, 0, 255))
    return image


@pytest.mark.parametrize("size", [7, 31, 32])
def test_hidden_colours_make_no_fringe(size):
    image = red_disc_on_hidden_blue(size)
    for function in (lambda x: map_pixels(x, repeat), enlarge_bicubic, enlarge_nearest):
        result = np.asarray(function(image))
        seen = result[..., 3] > 0
        assert seen.any() and not seen.all()
        assert (result[seen][:, 0] == 255).all()
        assert (result[..., 2] == 0).all()


def test_sharp_function_leaves_no_dark_outline():
    """White on nothing stays white: alpha is smoother than what a network does to an edge."""
    image = Image.new("LA", (32, 32), (255, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 23, 23), (255, 255))
    result = np.asarray(map_pixels(image, repeat))
    assert (result[..., 0][result[..., 1] > 0] == 255).all()


def test_colour_of_nearly_transparent_pixels_hardly_counts():
    image = red_disc_on_hidden_blue()
    garbage = np.asarray(image).copy()
    garbage[garbage[..., 3] == 0] = (0, 0, 255, 1)
    result = np.asarray(map_pixels(Image.fromarray(garbage), repeat))
    assert result[..., 2][result[..., 3] > 8].max() < 8


def test_what_is_fully_transparent_is_clean():
    result = np.asarray(map_pixels(red_disc_on_hidden_blue(), repeat))
    assert (result[result[..., 3] == 0] == 0).all()
    assert (np.asarray(map_pixels(Image.new("RGBA", (5, 6), (9, 9, 9, 0)), repeat)) == 0).all()


def test_alpha_is_enlarged_with_bicubic():
    alpha = Image.fromarray(noise(10, 12))
    image = photo(12, 10, "RGBA")
    image.putalpha(alpha)
    expected = alpha.resize((48, 40), Image.Resampling.BICUBIC)
    for result in (map_pixels(image, repeat), enlarge_bicubic(image)):
        assert_same_pixels(result.getchannel("A"), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_stays_opaque_and_has_the_colours_of_its_opaque_twin(mode):
    twin = photo(mode=mode[:-1])
    image = twin.convert(mode)
    for function in (lambda x: map_pixels(x, repeat), enlarge_bicubic, enlarge_nearest, shrink):
        result = function(image)
        assert result.mode == mode
        assert result.getchannel("A").getextrema() == (255, 255)
        assert_same_pixels(result.convert(mode[:-1]), function(twin))


def test_transparent_colour_of_a_palette_of_grey_and_of_rgb_becomes_alpha():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 1), 1)
    grey = Image.new("L", (4, 4), 0)
    colour = Image.new("RGB", (4, 4), (1, 2, 3))
    for image, key, mode in ((palette, 0, "RGBA"), (grey, 0, "LA"), (colour, (1, 2, 3), "RGBA")):
        image.putpixel((1, 1), 1 if image.mode != "RGB" else (9, 9, 9))
        opened = open_image(encoded(image, "PNG", transparency=key))
        result = map_pixels(opened, identity)
        assert result.mode == mode
        alpha = np.asarray(result.getchannel("A"))
        assert alpha[1, 1] == 255 and alpha.sum() == 255
    gif = open_image(encoded(palette, "GIF", transparency=0))
    assert np.asarray(map_pixels(gif, identity).getchannel("A")).sum() == 255


def test_partly_transparent_palette_becomes_alpha():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    opened = open_image(encoded(image, "PNG", transparency=bytes([0, 77])))
    assert map_pixels(opened, identity).getpixel((0, 0)) == (0, 255, 0, 77)


def test_transparent_value_of_sixteen_bit_grey_becomes_alpha():
    rows = b"\0" + struct.pack(">3H", 0, 300, 65535)
    image = open_image(png(3, 1, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 300))))
    result = np.asarray(map_pixels(image, identity))
    assert result.tolist() == [[[0, 255], [0, 0], [255, 255]]]


@pytest.mark.parametrize("depth, row", [(1, b"\0\x50"), (2, b"\0\x11"), (4, b"\0\x01\x01")])
def test_transparent_value_of_few_bits_becomes_alpha(depth, row):
    data = png(4, 1, depth, 0, row, png_chunk(b"tRNS", struct.pack(">H", 1)))
    alpha = map_pixels(open_image(data), identity).getchannel("A")
    assert np.asarray(alpha).tolist() == [[255, 0, 255, 0]]


def test_metrics_see_transparency_on_white():
    assert torch.equal(to_tensor(Image.new("RGBA", (2, 2), (0, 0, 0, 0))), torch.ones(1, 3, 2, 2))
    tensor = to_tensor(Image.fromarray(noise(4, 5, 3)))
    assert np.array_equal(tensor[0].permute(1, 2, 0).mul(255).round().numpy(), noise(4, 5, 3))


# --------------------------------------------------------------------------------- bicubic


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_bicubic_is_exactly_pillows(mode):
    image = Image.fromarray(noise(24, 40, 3)).convert(mode)
    bicubic = Image.Resampling.BICUBIC
    assert_same_pixels(enlarge_bicubic(image), image.resize((160, 96), bicubic))
    assert_same_pixels(shrink(image), image.resize((10, 6), bicubic))


def test_nearest_repeats_pixels():
    array = noise(6, 5, 4) | 1
    expected = array.repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(np.asarray(enlarge_nearest(Image.fromarray(array))), expected)


def test_shrink_crops_what_four_does_not_divide():
    image = Image.fromarray(noise(27, 43, 3))
    assert_same_pixels(crop_to_scale(image), image.crop((0, 0, 40, 24)))
    assert_same_pixels(shrink(image), shrink(image.crop((0, 0, 40, 24))))
    with pytest.raises(ImageError, match="3 × 9 pixels, and 4 × 4 are needed"):
        shrink(Image.new("RGB", (3, 9)))


# ---------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("format", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["L", "I;16", "LA", "RGB", "RGBA"])
def test_lossless_formats_give_back_what_they_can_hold(format, mode):
    image = photo(mode=mode) if mode != "I;16" else Image.fromarray(noise(24, 40, dtype=np.uint16))
    save_image(image, file := io.BytesIO(), format)
    read = open_image(file.getvalue())
    if format != "bmp":
        assert_same_pixels(read, image)
    else:
        assert read.mode == {"RGBA": "RGB", "LA": "L", "I;16": "L"}.get(mode, mode)


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
@pytest.mark.parametrize("mode", ["L", "I;16", "LA", "RGB", "RGBA"])
def test_lossy_formats_stay_close(format, mode):
    image = (
        photo(mode=mode)
        if mode != "I;16"
        else Image.fromarray(np.linspace(0, 65535, 960).reshape(24, 40).astype(np.uint16))
    )
    save_image(image, file := io.BytesIO(), format)
    assert torch.abs(to_tensor(open_image(file.getvalue())) - to_tensor(image)).mean() < 0.02


def test_transparency_is_laid_on_white_where_there_is_none():
    for format in ("jpeg", "bmp"):
        for image in (Image.new("RGBA", (9, 9), (0, 0, 0, 0)), Image.new("LA", (9, 9), (0, 0))):
            save_image(image, file := io.BytesIO(), format)
            assert np.asarray(Image.open(file)).min() >= 254


def test_jpeg_keeps_full_colour_resolution():
    save_image(photo(), file := io.BytesIO(), "jpeg")
    assert [layer[1:3] for layer in Image.open(file).layer] == [(1, 1)] * 3


@pytest.mark.parametrize("format, suffix", OUTPUT_FORMATS.items())
def test_suffix_decides_the_format(tmp_path, format, suffix):
    for name in (f"a{suffix}", f"b{suffix.upper()}"):
        save_image(photo(), tmp_path / name)
        assert Image.open(tmp_path / name).format.lower() == format
    save_image(photo(), tmp_path / "c.png", format)
    assert Image.open(tmp_path / "c.png").format.lower() == format


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.heic", "a.svg"])
def test_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(ImageError, match="png, jpeg, webp"):
        save_image(photo(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_stream_needs_a_format():
    with pytest.raises(ImageError, match="png, jpeg, webp"):
        save_image(photo(), io.BytesIO())


@pytest.mark.parametrize("format, longest", [("webp", 16383), ("jpeg", 65500), ("avif", 16384)])
def test_format_that_is_too_small_names_one_that_is_not(format, longest):
    save_image(Image.new("RGB", (longest, 1)), file := io.BytesIO(), format)
    assert open_image(file.getvalue()).width == longest
    with pytest.raises(
        ImageError, match=f"{format} takes at most {longest} a side; save it as png"
    ):
        save_image(Image.new("RGB", (longest + 1, 1)), io.BytesIO(), format)
    save_image(Image.new("RGB", (longest + 1, 1)), io.BytesIO(), "png")


def test_failed_write_leaves_no_file_and_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(photo(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ImageError, match="No space left on device"):
        save_image(photo(80, 80), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_path_is_an_image_error(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for path in (
        tmp_path / "none" / "a.png",
        tmp_path / "folder.png",
        tmp_path / ("x" * 300 + ".png"),
    ):
        with pytest.raises(ImageError, match="Can't write"):
            save_image(photo(), path)


def test_special_file_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    save_image(photo(), pipe)
    assert os.read(reader, 4) == b"\x89PNG"
    os.close(reader)


def test_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    save_image(photo(), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_exif_that_jpeg_can_not_hold_is_left_out():
    image = photo()
    exif = Image.Exif()
    exif[BASE.ImageDescription] = "x" * 70_000
    image.info["exif"] = exif.tobytes()
    save_image(image, file := io.BytesIO(), "jpeg")
    assert len(Image.open(file).getexif()) == 0
    save_image(image, file := io.BytesIO(), "png")
    assert len(Image.open(file).getexif()[BASE.ImageDescription]) == 70_000


def test_damaged_bytes_never_raise_anything_but_image_error():
    """A small fuzz: flipped bits in files of every format."""
    random = np.random.default_rng(0)
    for format in READABLE:
        good = encoded(photo(16, 12), format, exif=photographer_exif().tobytes())
        for _ in range(40):
            data = bytearray(good)
            for position in random.integers(0, len(data), random.integers(1, 6)):
                data[position] ^= 1 << random.integers(0, 8)
            try:
                image = open_image(bytes(data), max_pixels=100_000)
                save_image(map_pixels(image, repeat), io.BytesIO(), "png")
            except ImageError as error:
                assert 10 < len(str(error)) < 200
