"""Pictures in and out of files, and between Pillow and tensors: the only home of uint8.

A file becomes a Pillow image with `open_image`, upright and within the limits; `map_pixels` takes
any Pillow image to a float tensor, through a function that enlarges it, and back to what it was
(grey, 16-bit grey or colour; with or without transparency); `save_image` writes a file.

Beside the pixels an image keeps, in Pillow's `info`: `icc_profile`, byte for byte, as long as it
belongs to the colour space of the pixels; `exif`; `dpi`. XMP and other metadata are left behind.
"""

import io
import math
import os
import re
import uuid
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms
from PIL.Image import Resampling, Transpose
from torch import Tensor

from srgan.bombs import check_directories, refuse_bombs
from srgan.errors import ImageError
from srgan.generator import SCALE
from srgan.settings import whole_number

# ------------------------------------------------------------------------------------- limits


def default_max_pixels() -> int:
    """Largest input, in pixels: SRGAN_MAX_PIXELS, or 2 097 152 (about 1448 × 1448)."""
    return whole_number("SRGAN_MAX_PIXELS", 2**21)


def default_max_bytes() -> int:
    """Largest input file, in bytes: SRGAN_MAX_BYTES, or 50 million."""
    return whole_number("SRGAN_MAX_BYTES", 50_000_000)


def check_size(image: Image.Image, max_pixels: int | None = None) -> None:
    """Refuses an image that is empty or too large; reads no pixel.

    Args:
        image: any Pillow image, decoded or not.
        max_pixels: the limit; None for `default_max_pixels()`.

    Raises:
        ImageError: it has no pixels, or more than `max_pixels`.
    """
    _check_area(*image.size, default_max_pixels() if max_pixels is None else max_pixels)


def _check_area(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"The image is empty: {width} × {height} pixels.")
    if width * height > max_pixels:
        raise ImageError(
            f"The image is too large: {width} × {height} is {width * height:,} pixels and the "
            f"limit is {max_pixels:,} (SRGAN_MAX_PIXELS). Make it smaller."
        )


# -------------------------------------------------------------------------------------- files

#: Suffixes of the files that `open_image` can be expected to read, for finding them in folders.
INPUT_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
)

#: Kind of file -> how it begins, and the Pillow plugins that may read it. Nothing else is decoded.
_READABLE = {
    "JPEG": (rb"\xff\xd8\xff", ["JPEG"]),
    "PNG": (rb"\x89PNG\r\n\x1a\n", ["PNG"]),
    "WebP": (rb"RIFF....WEBP", ["WEBP"]),
    "BMP": (rb"BM", ["BMP"]),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", ["TIFF"]),
    "GIF": (rb"GIF8[79]a", ["GIF"]),
    "AVIF": (rb"....ftypavi[fs]", ["AVIF"]),
    "HEIC": (rb"....ftyp(he[iv][cmsx]|m[is]f1)", ["AVIF", "HEIF"]),  # mif1 can be either
}
#: EXIF orientation -> what sets it right.
_TURN = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # fmt: skip
_NOTICES = "srgan_notices"
_SMALLER = "Use a smaller image."


def open_image(
    source: str | os.PathLike | bytes | BinaryIO,
    *,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
) -> Image.Image:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC, the first picture in it, upright.

    What a file is, its first bytes say, not its name. The limits are checked before anything is
    decoded. EXIF orientation is applied. Of EXIF, what tells about the photograph is kept (date,
    camera, exposure, author, copyright, place); orientation, thumbnail, pixel dimensions and the
    maker note, whose inner offsets would break, are dropped. EXIF or an ICC profile that is
    damaged is dropped too; see `notices`.

    Args:
        source: a path, the bytes of a file, or a binary stream (read from where it stands).
        max_pixels: the limit on width × height; None for `default_max_pixels()`.
        max_bytes: the limit on the file; None for `default_max_bytes()`.

    Returns:
        The image in the mode of the file, with only `icc_profile`, `exif`, `dpi` and
        `transparency` in its `info`.

    Raises:
        ImageError: it can't be read, is none of these, is damaged, or exceeds a limit.
    """
    data = _read(source, default_max_bytes() if max_bytes is None else max_bytes)
    max_pixels = default_max_pixels() if max_pixels is None else max_pixels
    kind = _kind(data)
    if kind == "HEIC" and "HEIF" not in Image.OPEN:
        import pillow_heif  # only here: most images don't need it

        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters becomes an error
            refuse_bombs(kind, data, max_pixels)
            file = Image.open(io.BytesIO(data), formats=_READABLE[kind][1])
            _check_declared(file, kind, data, max_pixels)
            remarks = _remarks(file, kind)
            if kind == "PNG":
                _scale_transparency(file)
            file.load()
            check_size(file, max_pixels)
            return _upright(file, remarks)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * Image.MAX_IMAGE_PIXELS)
        raise ImageError(
            f"The image is too large: it has more pixels than the limit, {limit:,}."
        ) from error
    except MemoryError as error:
        raise ImageError(f"Not enough memory to read this {kind} file. {_SMALLER}") from error
    except Exception as error:  # decoders raise nearly anything on malformed data
        raise ImageError(
            f"This {kind} file is damaged or cut short; download or export it again."
        ) from error


def notices(image: Image.Image) -> list[str]:
    """What `open_image` left out of a file, as sentences; empty for other images."""
    return list(image.info.get(_NOTICES, []))


def _read(source: str | os.PathLike | bytes | BinaryIO, max_bytes: int) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif hasattr(source, "read"):
            data = source.read(max_bytes + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"Can't read the image: {_reason(error)}.") from error
    if not data:
        raise ImageError("The file is empty.")
    if len(data) > max_bytes:
        raise ImageError(
            f"The file is larger than the limit of {max_bytes / 1e6:g} MB (SRGAN_MAX_BYTES). "
            "Save the image smaller."
        )
    return data


def _kind(data: bytes) -> str:
    for kind, (start, _) in _READABLE.items():
        if re.match(start, data, re.DOTALL):
            return kind
    *kinds, last = _READABLE
    raise ImageError(
        f"This isn't an image of a supported format; {', '.join(kinds)} and {last} are."
    )


def _check_declared(file: Image.Image, kind: str, data: bytes, max_pixels: int) -> None:
    """Refuses, before the decode, whatever would make it long or large."""
    check_size(file, max_pixels)
    if kind == "HEIC":  # `size` is that of the crop; the decoder makes the whole, a multiple of 64
        for sides in re.finditer(rb"ispe\0{4}(.{4})(.{4})", data, re.DOTALL):
            width, height = (int.from_bytes(side, "big") for side in sides.groups())
            _check_area(max(1, width - 63), max(1, height - 63), max_pixels)
    elif kind == "TIFF":  # tiles are decoded whole, even where they reach far beyond the image
        width, height = (int(file.tag_v2.get(tag, 1)) for tag in (322, 323))
        _check_area(width, height, max(max_pixels, 1024**2))
        if file.tag_v2.get(262) == 6 and file.tile[0][0] == "raw":  # Pillow reads other pixels
            raise ImageError("This TIFF holds uncompressed YCbCr, unreadable here; save it as RGB.")
    elif kind == "JPEG" and len(re.findall(rb"\xff\xda\0[\x08\n\x0c\x0e]", data)) > 500:
        raise ImageError("This JPEG has more than 500 scans; export it again.")  # ten are usual


def _remarks(file: Image.Image, kind: str) -> list[str]:
    """Notices about a file that is open but not decoded."""
    remarks = []
    if kind != "JPEG" and getattr(file, "is_animated", False):  # a JPEG's others are previews
        several, one = "is animated", "frame"
        if kind in ("TIFF", "HEIC"):
            several, one = "holds several pictures", "one"
        remarks.append(f"The file {several}: only the first {one} is used.")
    deep = any(";16" in str(tile) for tile in file.tile) or file.info.get("bit_depth", 8) > 8
    if deep and not file.mode.startswith("I"):
        remarks.append("The file has more than 8 bits a channel: colour is reduced to 8.")
    if file.mode in ("CMYK", "LAB"):
        remarks.append(f"The file is {file.mode}: its colours are converted to sRGB.")
    return remarks


def _scale_transparency(file: Image.Image) -> None:
    """Grey of 2 and 4 bits is scaled to 8 by Pillow, the value that is transparent isn't."""
    scale = {"L;2": 85, "L;4": 17}.get(file.tile[0][3], 1)
    if isinstance(file.info.get("transparency"), int):
        file.info["transparency"] *= scale


def _upright(file: Image.Image, remarks: list[str]) -> Image.Image:
    """The decoded picture without its file: turned, with the metadata that still holds."""
    info, orientation = {}, 1
    if isinstance(file.info.get("dpi"), tuple):
        info["dpi"] = file.info["dpi"]
    if (transparency := _transparency(file)) is not None:
        info["transparency"] = transparency
    try:
        check_directories(_raw_exif(file.info))
        exif = file.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        if kept := _photograph_exif(exif):
            info["exif"] = kept
        elif file.info.get("exif") and not exif:  # Pillow found nothing in it
            remarks.append("The EXIF data is damaged and was left out.")
    except Exception:  # like the decoders
        remarks.append("The EXIF data is damaged and was left out.")
    if profile := file.info.get("icc_profile"):
        if _profile_space(profile) == _SPACES.get(file.mode, "RGB"):
            info["icc_profile"] = profile
        else:
            remarks.append("The colour profile doesn't fit the image and was left out.")
    turn = _TURN.get(orientation)
    image = file.copy() if turn is None else file.transpose(turn)
    image.info = info | {_NOTICES: remarks}
    return image


def _transparency(file: Image.Image) -> int | bytes | tuple | None:
    """What says which pixels are transparent, if it can be meant: PNG's texts are in `info` too."""
    value = file.info.get("transparency")
    if file.mode == "P" and isinstance(value, bytes):
        return value[:256]
    if isinstance(value, tuple if file.mode == "RGB" else int):
        return value if file.mode != "P" or value < 256 else None
    return None


def _raw_exif(info: dict[str, Any]) -> bytes:
    """What `getexif` is going to parse; empty for a TIFF, which is its own EXIF."""
    if info.get("exif") is not None:
        return info["exif"]
    lines = info.get("Raw profile type exif", "").split("\n")  # ImageMagick's in a PNG
    return bytes.fromhex("".join(lines[3:]))


def _photograph_exif(exif: Image.Exif) -> bytes:
    base, photo = ExifTags.Base, ExifTags.IFD
    kept = Image.Exif()
    kept.endian = exif.endian
    for tag in (
        base.ImageDescription, base.Make, base.Model, base.Software, base.DateTime, base.Artist,
        base.HostComputer, base.Copyright, base.XPTitle, base.XPComment, base.XPAuthor,
        base.XPKeywords, base.XPSubject,
    ):  # fmt: skip
        if tag in exif:
            kept[tag] = exif[tag]
    of_the_file = {base.ExifImageWidth, base.ExifImageHeight, photo.MakerNote, photo.Interop}
    for group in (photo.Exif, photo.GPSInfo):
        tags = exif.get_ifd(group).items()
        if described := {tag: value for tag, value in tags if tag not in of_the_file}:
            kept[group] = described
    return kept.tobytes() if len(kept) else b""


# ------------------------------------------------------------------------- modes and metadata

#: Colour space, as ICC profiles name it, of a Pillow mode; RGB where it isn't listed.
_SPACES = dict.fromkeys(("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L"), "GRAY")
_SPACES |= {"CMYK": "CMYK", "LAB": "Lab"}


def _profile_space(profile: Any) -> str | None:
    """Colour space of an ICC profile; None for one that can't be read."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except Exception:  # of many kinds, and it makes no difference
        return None


def _plain(image: Image.Image) -> Image.Image:
    """The image in one of the modes that are worked on: L, I;16, LA, RGB or RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey16(image)
    if image.mode == "CMYK":
        return _cmyk_to_srgb(image)
    wanted = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        wanted += "A"
    return image if image.mode == wanted else image.convert(wanted)


def _grey16(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        low, high, white = values.min(), values.max(), 65535 if image.mode == "I" else 1
        if not (low >= 0 and high <= white):  # or NaN
            raise ImageError(
                f"The image's grey values go from {low:g} to {high:g}; expected 0 to {white}. "
                "Rescale them."
            )
        values = np.rint(values * np.float32(65535 / white))
    grey = Image.fromarray(values.astype("<u2"))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # there is no 16-bit mode with alpha: 8 bits of both
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        grey = _grey8(grey)
        grey.putalpha(alpha)
    return grey


def _grey8(image: Image.Image) -> Image.Image:
    """I;16 to L; Pillow's own conversion clips instead of scaling."""
    return Image.fromarray(np.rint(np.asarray(image) / np.float32(257)).astype(np.uint8))


def _cmyk_to_srgb(image: Image.Image) -> Image.Image:
    try:
        profile = io.BytesIO(image.info.get("icc_profile"))
        return ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, TypeError):  # none, or damaged, or not one of CMYK
        return image.convert("RGB")


def _metadata(image: Image.Image, mode: str) -> dict[str, Any]:
    """What of an image's metadata holds for the same picture in another mode and size."""
    kept = {}
    profile = image.info.get("icc_profile")
    spaces = {_SPACES.get(image.mode, "RGB"), _SPACES.get(mode, "RGB")}
    if profile and {_profile_space(profile)} == spaces:
        kept["icc_profile"] = profile
    if exif := image.info.get("exif"):
        kept["exif"] = exif
    try:
        dpi = tuple(float(value) for value in image.info["dpi"])
        if len(dpi) == 2 and all(1 <= value <= 10_000 for value in dpi):
            kept["dpi"] = dpi
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        pass  # none, or nonsense
    return kept


# ------------------------------------------------------------------------------------- pixels


def map_pixels(image: Image.Image, function: Callable[[Tensor], Tensor]) -> Image.Image:
    """Puts the colours of an image through a function that may change its size.

    Grey is handed over as three equal channels, and what comes back is weighted to grey
    (BT.601). Transparency goes its own way, by Pillow's bicubic. What is transparent, or nearly,
    first takes the alpha-weighted colour of what is visible around it, so that no hidden colour
    shows at an edge. (Premultiplying all of it would hand `function` an outline in black; a
    network sharpens that, and the smooth alpha no longer hides it: a dark fringe.)

    Args:
        image: of any mode. I has to be within 0 to 65535 and F within 0 to 1; both become I;16.
        function: takes RGB float32 (1, 3, h, w) in [0, 1]; returns (1, 3, H, W) on any device,
            not necessarily clamped. Runs in inference mode; what it returns is overwritten.

    Returns:
        L, I;16, LA, RGB or RGBA of H × W. Opaque stays exactly opaque; where alpha is 0, so is
        the colour.

    Raises:
        ImageError: the image is empty, or its values are out of range.
    """
    plain = _not_empty(image)
    alpha = plain.getchannel("A") if plain.mode.endswith("A") else None
    with torch.inference_mode():
        pixels = _pixels(plain)
        if alpha is not None and alpha.getextrema() != (255, 255):
            pixels = _spread_visible(pixels, _pixels(alpha)[:, :1])
        result = _image(function(pixels), plain.mode.removesuffix("A"))
    if alpha is not None:
        result.putalpha(alpha.resize(result.size, Resampling.BICUBIC))
    return _finish(result, image)


def to_tensor(image: Image.Image) -> Tensor:
    """The colours of an image of any mode, on white where it is transparent.

    Returns:
        RGB float32 (1, 3, h, w) in [0, 1].

    Raises:
        ImageError: as `map_pixels`.
    """
    return _pixels(_on_white(_not_empty(image)))


def enlarge_bicubic(image: Image.Image) -> Image.Image:
    """Pillow's BICUBIC ×4, in the modes that `map_pixels` returns."""
    return _resize(image, (image.width * SCALE, image.height * SCALE), Resampling.BICUBIC)


def enlarge_nearest(image: Image.Image) -> Image.Image:
    """Every pixel as a square of 4 × 4, in the modes that `map_pixels` returns."""
    return _resize(image, (image.width * SCALE, image.height * SCALE), Resampling.NEAREST)


def shrink(image: Image.Image) -> Image.Image:
    """Pillow's BICUBIC ÷4 of `crop_to_scale(image)`: the low-res image that training means."""
    image = crop_to_scale(image)
    return _resize(image, (image.width // SCALE, image.height // SCALE), Resampling.BICUBIC)


def crop_to_scale(image: Image.Image) -> Image.Image:
    """The image without the last 0 to 3 columns and rows, so that 4 divides its sides.

    Raises:
        ImageError: a side is shorter than 4.
    """
    if min(image.size) < SCALE:
        raise ImageError(
            f"The image is too small to be shrunk: {image.width} × {image.height} pixels, "
            f"and {SCALE} × {SCALE} are needed."
        )
    return image.crop((0, 0, image.width // SCALE * SCALE, image.height // SCALE * SCALE))


def _not_empty(image: Image.Image) -> Image.Image:
    check_size(image, max_pixels=image.width * image.height)
    return _plain(image)


def _pixels(plain: Image.Image) -> Tensor:  # -> (1, 3, h, w) in [0, 1], without alpha
    channels = np.asarray(plain).reshape(plain.height, plain.width, -1)
    colours = channels[..., : -1 if plain.mode.endswith("A") else None]
    pixels = torch.from_numpy(colours.transpose(2, 0, 1).astype(np.float32, order="C"))
    return pixels.div_(65535 if plain.mode == "I;16" else 255)[None].expand(1, 3, -1, -1)


def _image(pixels: Tensor, mode: str) -> Image.Image:  # (1, 3, H, W), overwritten -> H × W
    if mode != "RGB":
        red, green, blue = pixels.float().split(1, dim=1)
        pixels = red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    peak = 65535 if mode == "I;16" else 255
    levels = pixels[0].float().mul_(peak).round_().clamp_(0, peak)
    if mode == "I;16":
        return Image.fromarray(levels[0].cpu().numpy().astype("<u2"))
    levels = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(levels if mode == "RGB" else levels[..., 0])


def _spread_visible(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Gives pixels under 1/16 alpha, the more the less, the colour of what is visible nearby.

    Args:
        pixels: (1, 3, h, w), in [0, 1].
        alpha: (1, 1, h, w), in [0, 1].
    """
    if max(alpha.shape[-2:]) == 1:
        return pixels
    weight = F.avg_pool2d(alpha, 2, ceil_mode=True)  # (1, 1, ⌈h/2⌉, ⌈w/2⌉)
    around = F.avg_pool2d(pixels * alpha, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    around = _spread_visible(around, weight)
    around = F.interpolate(around, size=alpha.shape[-2:], mode="bilinear")  # (1, 3, h, w)
    return around.lerp_(pixels, (16 * alpha).clamp_max(1).square())


def _resize(image: Image.Image, size: tuple[int, int], filter: Resampling) -> Image.Image:
    plain = _not_empty(image)
    if plain.mode == "I;16" and filter != Resampling.NEAREST:  # Pillow's own is less exact
        values = Image.fromarray(np.asarray(plain).astype(np.float32)).resize(size, filter)
        plain = Image.fromarray(np.rint(np.asarray(values)).clip(0, 65535).astype("<u2"))
    else:
        plain = plain.resize(size, filter)  # premultiplied where there is alpha
    return _finish(plain, image)


def _finish(result: Image.Image, image: Image.Image) -> Image.Image:
    """Clears what is fully transparent and adds the metadata of the image it was made from."""
    if result.mode.endswith("A"):
        hidden = result.getchannel("A").point([255] + [0] * 255)
        result.paste((0,) * len(result.mode), mask=hidden)
    result.info = _metadata(image, result.mode)
    return result


def _on_white(plain: Image.Image) -> Image.Image:
    """Without transparency."""
    if not plain.mode.endswith("A"):
        return plain
    colour = plain.convert("RGBA")
    white = Image.new("RGBA", plain.size, "white")
    return Image.alpha_composite(white, colour).convert(plain.mode.removesuffix("A"))


# ------------------------------------------------------------------------------------- output


class _Format(NamedTuple):
    suffix: str
    modes: tuple[str, ...]  # what it can hold of L, I;16, LA, RGB, RGBA
    longest: float  # side, in pixels
    options: dict[str, Any]  # of Pillow's save


# PNG: run lengths alone, zlib's way for such pictures: a megapixel of photograph takes 0.1 s in
# place of 0.25 and is as large, an enlarged one smaller; text on white is three times as large.
# JPEG: libjpeg's limit, a little below the format's 65535.
_FORMATS = {
    "png": _Format(
        ".png", ("L", "I;16", "LA", "RGB", "RGBA"), math.inf, {"compress_type": zlib.Z_RLE}
    ),
    "jpeg": _Format(".jpg", ("L", "RGB"), 65500, {"quality": 95, "subsampling": "4:4:4"}),
    "webp": _Format(".webp", ("RGB", "RGBA"), 16383, {"quality": 95}),
    "avif": _Format(
        ".avif", ("L", "RGB", "RGBA"), 16384, {"quality": 90, "subsampling": "4:4:4", "speed": 8}
    ),
    "tiff": _Format(".tif", ("L", "I;16", "LA", "RGB", "RGBA"), math.inf, {}),
    "bmp": _Format(".bmp", ("L", "RGB"), math.inf, {}),
}
#: Name of a format that `save_image` writes -> suffix of its files.
OUTPUT_FORMATS = {name: format.suffix for name, format in _FORMATS.items()}
_ALIASES = {"jpg": "jpeg", "tif": "tiff"}


def save_image(
    image: Image.Image,
    destination: str | os.PathLike | BinaryIO,
    format: str | None = None,
) -> None:
    """Writes an image file, with the ICC profile, EXIF and dpi of its `info`.

    Transparency is laid on white where the format has none, 16-bit grey becomes 8-bit where it
    has no such thing. JPEG, WebP and AVIF are written at high quality, the others lossless.
    A path gets the whole file or nothing.

    Args:
        image: of any mode, as `map_pixels`.
        destination: a path or a binary stream.
        format: a name of `OUTPUT_FORMATS`; None for what the path's suffix says.

    Raises:
        ImageError: unknown format, an image too large for it, or the file can't be written.
    """
    stream = hasattr(destination, "write")
    name = format or ("" if stream else Path(destination).suffix)
    name = _ALIASES.get(name.lower().lstrip("."), name.lower().lstrip("."))
    if name not in _FORMATS:
        raise ImageError(f"Can't write {name or 'nameless'!r} files; {', '.join(_FORMATS)} work.")
    data = _encode(_not_empty(image), image, name)
    try:
        if stream:
            destination.write(data)
        else:
            _write_whole(Path(destination), data)
    except (OSError, ValueError) as error:
        raise ImageError(f"Can't write the image: {_reason(error)}.") from error


def _encode(plain: Image.Image, image: Image.Image, name: str) -> memoryview:
    format = _FORMATS[name]
    if max(plain.size) > format.longest:
        raise ImageError(
            f"The image is {plain.width} × {plain.height} pixels and {name} takes at most "
            f"{format.longest} a side; save it as png."
        )
    if plain.mode not in format.modes:
        if f"RGB{plain.mode[1:]}" not in format.modes:
            plain = _on_white(plain)
        plain = _grey8(plain) if plain.mode == "I;16" else plain
        plain = plain if plain.mode in format.modes else plain.convert(f"RGB{plain.mode[1:]}")
    metadata = _metadata(image, plain.mode)
    if name == "jpeg" and len(metadata.get("exif", b"")) > 65533:
        del metadata["exif"]  # more than one JPEG segment holds
    # An explicit empty profile: else Pillow takes the one that was found not to fit.
    options = {"icc_profile": b""} | format.options | metadata
    file = io.BytesIO()
    try:
        plain.save(file, name, **options)
    except MemoryError as error:
        raise ImageError(f"Not enough memory to write the image as {name}. {_SMALLER}") from error
    except Exception as error:  # encoders differ in what they raise
        raise ImageError(f"The image can't be written as {name}: {error}.") from error
    return file.getbuffer()


def _write_whole(path: Path, data: memoryview) -> None:
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: not to be replaced
        path.write_bytes(data)
        return
    path = path.resolve()
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
