"""An image file -> upright 8-bit RGB, and whether the like was there before."""

import contextlib
import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from train.sources import Entry

#: Pillow's decoders that are let near the files; others run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")

#: Mean difference of two thumbnails, in 8-bit levels, up to which they show the same picture.
THUMBNAIL_TOLERANCE = 6.0

try:  # HEIC is decoded where its library is installed, and rejected with a reason elsewhere
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)


class Rejected(Exception):
    """An image can't be used.

    Args:
        reason: one of a few, to be counted: "unreadable", "too small", "too large".
        detail: what exactly.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An image that is left out: `Rejected`, an "exact duplicate" or a "near duplicate"."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What is known of an image that is kept.

    Attributes:
        name: as Entry.name.
        sha256: of its packed bytes.
        height, width: as packed.
        original_height, original_width: before --size, upright.
        look: `look_of` it, in hexadecimal.
    """

    name: str
    sha256: str
    height: int
    width: int
    original_height: int
    original_width: int
    look: str


def load_picture(
    entry: Entry, *, size: int | None, min_side: int, max_pixels: int
) -> tuple[Picture | Rejection, bytes]:
    """Does all that doesn't depend on the other images; runs in the worker processes.

    Returns:
        The picture and its packed bytes, or why it is left out and no bytes.
    """
    try:
        image = decode(entry, min_side=min_side, max_pixels=max_pixels)
    except Rejected as error:
        return Rejection(name=entry.name, reason=error.reason, detail=error.detail), b""
    look = look_of(image).hex()
    width, height = image.size
    if size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = image.tobytes()
    picture = Picture(
        name=entry.name,
        sha256=hashlib.sha256(pixels).hexdigest(),
        height=image.height,
        width=image.width,
        original_height=height,
        original_width=width,
        look=look,
    )
    return picture, pixels


def decode(entry: Entry, *, min_side: int = 1, max_pixels: int) -> Image.Image:
    """Decodes an image file in full.

    Returns:
        The first frame, upright, RGB, 8 bits.

    Raises:
        Rejected: it is unreadable, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of files; a training set has thousands
            image = Image.open(io.BytesIO(entry.read()), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise Rejected("too large", f"{width}×{height}, more than {max_pixels} pixels")
            if min(width, height) < min_side:
                raise Rejected("too small", f"{width}×{height}, a side under {min_side}")
            image.load()
            turn_upright(image)
            return to_rgb(image)
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise Rejected("unreadable", "not an image of a known format") from error
    except OSError as error:
        raise Rejected("unreadable", error.strerror or str(error)) from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from error


def turn_upright(image: Image.Image) -> None:
    """Applies the EXIF orientation, where there is EXIF that can be read."""
    with contextlib.suppress(Exception):  # Pillow's parser raises anything; the pixels are good
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to 8-bit RGB.

    16-bit grey is scaled, transparency laid over white, CMYK goes through its profile. The values
    of RGB images stay what they are, whatever their profile, as when the network is used.

    Raises:
        ValueError: the pixels have no known range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} without a known range")
        levels = (levels.astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode == "CMYK" and image.info.get("icc_profile"):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    elif image.has_transparency_data:
        upper = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, upper)
    return image if image.mode == "RGB" else image.convert("RGB")


def look_of(image: Image.Image) -> bytes:
    """What near duplicates share: 64 signs of brightness differences, and a thumbnail.

    Returns:
        8 bytes, a bit for each neighbouring pair of cells in an 8 × 9 grid; then 192 bytes, RGB
        of an 8 × 8 grid.
    """
    small = image.resize((72, 64), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX))
    signs = grey[:, 1:] > grey[:, :-1]  # (8, 8)
    return np.packbits(signs).tobytes() + small.resize((8, 8), Image.Resampling.BOX).tobytes()


class Duplicates:
    """Finds images that are the same as, or look like, an earlier one.

    Each is compared with all before it, in one pass over an array of their hashes: 0.1 ms among
    60 000.

    Args:
        bits: largest difference of near duplicates; None to look for exact ones only.
    """

    def __init__(self, bits: int | None):
        self.bits = bits
        self._exact: dict[tuple[str, int], str] = {}  # sha256 and height -> name
        self._names: list[str] = []
        self._hashes = np.empty(1024, np.uint64)  # of the names, and room for more
        self._thumbnails = np.empty((1024, 192), np.uint8)

    def find(self, picture: Picture) -> Rejection | None:
        """Compares with all that were added; None where it is new."""
        same = self._exact.get((picture.sha256, picture.height))
        if same:
            return Rejection(name=picture.name, reason="exact duplicate", detail=f"of {same}")
        if self.bits is None:
            return None
        code, thumbnail = _parse_look(picture.look)
        bits = np.bitwise_count(self._hashes[: len(self._names)] ^ code)
        similar = np.flatnonzero(bits <= self.bits)
        # Skies and backdrops have few signs to tell them apart: their colours decide.
        difference = np.abs(self._thumbnails[similar].astype(np.int16) - thumbnail).mean(1)
        similar = similar[difference <= THUMBNAIL_TOLERANCE]
        if not len(similar):
            return None
        first = self._names[similar[0]]
        return Rejection(name=picture.name, reason="near duplicate", detail=f"of {first}")

    def add(self, picture: Picture) -> None:
        """Remembers an image that is kept."""
        number = len(self._names)
        if number == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._thumbnails = np.concatenate([self._thumbnails, np.empty_like(self._thumbnails)])
        self._hashes[number], self._thumbnails[number] = _parse_look(picture.look)
        self._names.append(picture.name)
        self._exact[picture.sha256, picture.height] = picture.name


def _parse_look(look: str) -> tuple[np.uint64, np.ndarray]:
    return np.uint64(int(look[:16], 16)), np.frombuffer(bytes.fromhex(look[16:]), np.uint8)
