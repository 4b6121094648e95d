"""Image files as nobody should send them, all made here and the same every time.

`hostile_files()` is what `tests.benchmarks.hostile` tries one by one; `valid_files()` are small
pictures of every promised format, to be mutated.
"""

import io
import itertools
import random
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms

pillow_heif.register_heif_opener()

#: Pillow's names of the formats that `open_image` promises to read.
READABLE = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"]
#: The limit in pixels that the files of "over the limit" and "declared sizes" exceed.
MAX_PIXELS = 2**18
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class HostileFile(NamedTuple):
    kind: str
    name: str
    data: bytes
    expected: str | None  # "picture", "error", or None where either is right


# ------------------------------------------------------------------------------------- pieces


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """Smooth and coloured, so that lossy formats stay close to it."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    channels = [x / width, y / height, (x + y) / (width + height), 1 - 0.9 * x / width]
    array = (255 * np.stack(channels, axis=-1)).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + end


def after_start(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with (marker, content) inserted at its beginning."""
    inserted = [struct.pack(">BBH", 255, marker, len(s) + 2) + s for marker, s in segments]
    return jpeg[:2] + b"".join(inserted) + jpeg[2:]


def tiff(tags: dict[int, int | list[int]], pixels: bytes = b"") -> bytes:
    """Little-endian, of LONGs; tag 273 or 324, where it is missing, points at the pixels."""
    tags = dict(tags)
    at = 324 if 322 in tags else 273
    tags.setdefault(at, 0)
    beyond = 8 + 2 + 12 * len(tags) + 4
    lists = {tag: value for tag, value in tags.items() if isinstance(value, list)}
    start = beyond + 4 * sum(map(len, lists.values()))
    if tags[at] == 0:
        tags[at] = start
    entries, arrays = b"", b""
    for tag in sorted(tags):
        if tag in lists:
            entries += struct.pack("<HHII", tag, 4, len(lists[tag]), beyond + len(arrays))
            arrays += np.array(lists[tag], dtype="<u4").tobytes()
        else:
            entries += struct.pack("<HHII", tag, 4, 1, tags[tag])
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + entries + bytes(4) + arrays + pixels


def grey_tiff(width: int, height: int, pixels: bytes = b"", **more: int | list[int]) -> bytes:
    """Of 8-bit grey; `more` are further tags, t273=… for example."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    return tiff(tags | {int(name[1:]): value for name, value in more.items()}, pixels)


def adobe_ycck() -> bytes:
    """A CMYK JPEG whose colours are stored as YCCK, as Photoshop does; `photo(mode="CMYK")`."""
    *inks, black = photo(mode="CMYK").split()
    coded = Image.merge("RGB", inks).convert("YCbCr").point(lambda value: 255 - value)
    data = encoded(Image.merge("CMYK", (*coded.split(), black)), "JPEG", quality=95)
    at = data.index(b"\xff\xee\0\x0eAdobe") + 15  # the colour transform
    return data[:at] + b"\x02" + data[at + 1 :]


def matrix_profile(*primaries: tuple[float, float, float], gamma: float) -> bytes:
    """An RGB profile of three primaries (XYZ, D50) and one curve."""
    numbers = [[round(65536 * value) for value in primary] for primary in primaries]
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white}
    for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), numbers, strict=True):
        tags[name] = b"XYZ \0\0\0\0" + struct.pack(">3i", *values)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"
    return profile(b"RGB ", tags)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile with the header of sRGB's and these tags."""
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = bytearray(SRGB[:128])
    header[0:4] = struct.pack(">I", offset + len(body))
    header[16:20] = space
    return bytes(header) + table + body


ADOBE_RGB = matrix_profile(
    (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457),
    gamma=563 / 256,
)  # fmt: skip
DISPLAY_P3 = matrix_profile(
    (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407),
    gamma=2.2,
)  # fmt: skip


def resized_container(data: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """An AVIF or HEIC that declares another size than its coded picture has."""
    old_size, new_size = struct.pack(">II", *old), struct.pack(">II", *new)
    assert old_size in data
    return data.replace(old_size, new_size)


def valid_files(width: int = 12, height: int = 9) -> dict[str, bytes]:
    """Name -> a small picture; every promised format, and what is special about some."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    image = photo(width, height)
    files = {
        format.lower(): encoded(image, format, exif=exif.tobytes(), icc_profile=ADOBE_RGB)
        for format in READABLE
    }
    clear = photo(width, height, "RGBA")
    clear.putalpha(photo(width, height, "L"))
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    deep = Image.fromarray(noise(height, width, dtype=np.uint16))
    palette = image.quantize(16)
    return files | {
        "progressive.jpeg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpeg": encoded(image.convert("CMYK"), "JPEG"),
        "ycck.jpeg": adobe_ycck(),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "alpha.png": encoded(clear, "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=bytes([0, 99, 255])),
        "animated.png": encoded(image, "PNG", **frames),
        "animated.gif": encoded(image, "GIF", **frames),
        "animated.webp": encoded(image, "WEBP", **frames),
        "animated.avif": encoded(image, "AVIF", **frames),
        "alpha.webp": encoded(clear, "WEBP", lossless=True),
        "alpha.avif": encoded(clear, "AVIF"),
        "palette.bmp": encoded(palette, "BMP"),
        "lzw.tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": encoded(image, "TIFF", compression="jpeg"),
        "pages.tiff": encoded(image, "TIFF", **frames),
        "deep.tiff": encoded(deep, "TIFF"),
        "fax.tiff": encoded(image.convert("1"), "TIFF", compression="group4"),
    }


# ---------------------------------------------------------------------------------- all of it


def hostile_files(*kinds: str) -> Iterator[HostileFile]:
    """Every kind, or these, one after the other, made as they are asked for."""
    for kind in kinds or KINDS:
        for name, data, expected in _KINDS[kind](random.Random(kind)):
            yield HostileFile(kind, name, data, expected)


Made = Iterator[tuple[str, bytes, str | None]]


def _no_images(rng: random.Random) -> Made:
    texts = {
        "nothing": b"",
        "one byte": b"\xff",
        "text": b"hello",
        "zeros": bytes(5000),
        "noise": rng.randbytes(5000),
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9"/>',
        "html": b"<!doctype html><script>alert(1)</script>",
        "zip": b"PK\x03\x04" + bytes(60),
        "video": b"\0\0\0\x18ftypisom" + bytes(100),
        "photoshop": b"8BPS\0\1" + bytes(60),
    }
    for name, data in texts.items():
        yield name, data, "error"
    for format in ("EPS", "PDF", "PPM", "ICO", "ICNS", "PCX", "TGA", "JPEG2000", "DDS", "SGI"):
        yield format, encoded(photo(32, 32), format), "error"
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0",
                  b"MM\0*", b"II+\0", b"MM\0+", b"GIF89a", b"\0\0\0\x20ftypavif",
                  b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypmif1"):  # fmt: skip
        for length in (0, 1, 9, 100, 3000):
            yield f"{start[:12]!r} and noise", start + rng.randbytes(length), "error"


def _truncated(rng: random.Random) -> Made:
    for name, data in valid_files(24, 24).items():
        for tenth in range(1, 10):
            yield f"{name}, {tenth}/10", data[: len(data) * tenth // 10], None


def _flipped(rng: random.Random) -> Made:
    for name, data in valid_files().items():
        for _ in range(20):
            yield name, flip(data, [rng.randrange(8 * len(data)) for _ in range(6)]), None


def flip(data: bytes, bits: list[int]) -> bytes:
    damaged = bytearray(data)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def _spliced(rng: random.Random) -> Made:
    files = valid_files()
    for (first, a), (second, b) in itertools.permutations(files.items(), 2):
        cut = rng.randrange(12, len(a))
        yield f"{first}, then {second}", a[:cut] + b[rng.randrange(len(b)) :], None
    for name, data in files.items():
        start, end = sorted(rng.randrange(len(data)) for _ in range(2))
        yield f"{name}, a part twice", data[:end] + data[start:], None
        yield f"{name}, without a part", data[:start] + data[end:], None


def _polyglots(rng: random.Random) -> Made:
    tails = (b"PK\x03\x04" + bytes(30), b"%PDF-1.4\n%%EOF", b"<script>alert(1)</script>")
    for name, data in valid_files().items():
        for tail in tails:
            yield f"{name} + {tail[:5]!r}", data + tail, "picture"
    jpeg = encoded(photo(), "JPEG")
    yield "JPEG with a script inside", after_start(jpeg, (0xFE, b"*/=alert(1)/*")), "picture"
    yield "GIF that is a script", b"GIF89a/*" + bytes(40) + b"*/=1;alert(1)", "error"
    yield "PDF around a JPEG", b"%PDF-1.4\n" + jpeg, "error"


def _over_the_limit(rng: random.Random) -> Made:
    side = int(MAX_PIXELS**0.5)
    for format in READABLE:
        yield f"{format} at the limit", encoded(Image.new("L", (side, side)), format), "picture"
        over = Image.new("L", (MAX_PIXELS // 16 + 1, 16))  # 16 pixels more
        if format != "HEIF" and over.width <= 16383:
            yield f"{format} a column over", encoded(over, format), "error"
        yield f"{format} a row over", encoded(Image.new("L", (side, side + 1)), format), "error"
        yield f"{format} far over", encoded(Image.new("L", (4 * side, side)), format), "error"
    over = png(MAX_PIXELS + 1, 1, 8, 0, bytes(MAX_PIXELS + 2))
    yield "PNG one pixel over", over, "error"


#: Declared sides, of which the last two overflow something.
SIDES = [513, 5000, 16383, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1]


def _declared_sizes(rng: random.Random) -> Made:
    for side, other in itertools.product(SIDES, (1, SIDES[0], None)):
        yield from _declaring(side, side if other is None else other)
    zeros = bytes(1 + 20_000 // 8) * 20_000
    yield "PNG that really is 20000 × 20000", png(20_000, 20_000, 1, 0, zeros), "error"
    yield "PNG of more rows than declared", png(8, 8, 1, 0, zeros), "picture"
    bomb = zlib.compress(bytes(100_000_000), 9)
    small = (2, 1, 8, 0, b"\0\1\2")
    yield "PNG with a profile bomb", png(*small, png_chunk(b"iCCP", b"x\0\0" + bomb)), None
    yield "PNG with a text bomb", png(*small, png_chunk(b"zTXt", b"x\0\0" + bomb)), None
    yield "PNG with an iTXt bomb", png(*small, png_chunk(b"iTXt", b"x\0\1\0\0\0" + bomb)), None
    deflate = {"t259": 8, "t279": len(bomb)}
    yield "TIFF strip bomb", grey_tiff(16, 16, bomb, t278=16, **deflate), None
    yield "TIFF of giant rows per strip", grey_tiff(16, 16, bomb, t278=2**31, **deflate), None
    for side in (1024, 40_000, 2**31):
        tiles = grey_tiff(16, 16, bomb, t322=side, t323=side, t325=len(bomb), t259=8)
        yield f"TIFF of tiles of {side}", tiles, None if side == 1024 else "error"
    for samples in (5, 65535, 2**31):
        yield f"TIFF of {samples} samples", grey_tiff(16, 16, bytes(999), t277=samples), "error"
    for format, big in (("AVIF", 4096), ("HEIF", 2048)):
        data = encoded(Image.new("RGB", (big, big), "teal"), format, quality=10)
        small = resized_container(data, (big, big), (64, 64))
        yield f"{format} coded larger than declared", small, "error"


def _declaring(width: int, height: int) -> Made:
    """Files of every format, as far as it can declare this, with next to no content."""
    over = "error" if width * height > MAX_PIXELS else None
    name = f"of {width} × {height}"
    for depth, kind in ((1, 0), (8, 2), (16, 6)):
        yield f"PNG {name}, {depth} bits", png(width, height, depth, kind, bytes(9)), "error"
    for compression in (1, 4, 5, 7, 8, 32773):
        data = grey_tiff(width, height, bytes(9), t259=compression, t278=height, t279=9)
        yield f"TIFF {name}, compression {compression}", data, over
    for bits, compression in ((1, 0), (8, 1), (24, 0), (32, 3)):
        header = struct.pack("<IiiHHI", 40, _signed(width), _signed(height), 1, bits, compression)
        data = b"BM" + struct.pack("<IHHI", 100, 0, 0, 70) + header + bytes(60)
        yield f"BMP {name}, {bits} bits, compression {compression}", data, over
    for format in ("AVIF", "HEIF"):
        data = encoded(Image.new("RGB", (64, 64)), format)
        yield f"{format} {name}", resized_container(data, (64, 64), (width, height)), over
    if max(width, height) < 65536:
        data = encoded(photo(8, 8), "JPEG")
        at = data.index(b"\xff\xc0\0\x11\x08") + 5
        size = struct.pack(">HH", height, width)
        yield f"JPEG {name}", data[:at] + size + data[at + 4 :], over
        size = struct.pack("<HH", width, height)
        data = encoded(photo(8, 8, "L"), "GIF")
        yield f"GIF {name}", data[:6] + size + data[10:], over
        at = data.index(b",\0\0\0\0\x08\0\x08\0")
        yield f"GIF with a frame {name}", data[: at + 5] + size + data[at + 9 :], "error"
    if max(width, height) < 2**24:
        canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        frames = {"save_all": True, "append_images": [photo(8, 8).rotate(90)]}
        data = encoded(photo(8, 8), "WEBP", **frames)
        yield f"WebP with a canvas {name}", data[:24] + canvas + data[30:], over
    if max(width, height) < 2**14:
        data = encoded(photo(8, 8), "WEBP")
        at = data.index(b"\x9d\x01\x2a") + 3
        yield f"WebP {name}", data[:at] + struct.pack("<HH", width, height) + data[at + 4 :], over
        data = encoded(photo(8, 8), "WEBP", lossless=True)
        size = struct.pack("<I", width - 1 | height - 1 << 14)
        yield f"lossless WebP {name}", data[:21] + size + data[25:], over


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _laborious(rng: random.Random) -> Made:
    """Small pictures in files of some MB, which a careless reader is slow with."""
    size = 4_000_000
    gif, jpeg = encoded(photo(8, 8, "L"), "GIF"), encoded(photo(8, 8), "JPEG")
    at = gif.index(b",\0\0\0\0")
    for name, comment in {
        "a long comment": b"!\xfe" + (b"\xff" + bytes(255)) * (size // 256) + b"\0",
        "a comment of one-byte blocks": b"!\xfe" + b"\x01x" * (size // 2) + b"\0",
        "many comments": b"!\xfe\x01x\0" * (size // 5),
    }.items():
        yield f"GIF with {name}", gif[:at] + comment + gif[at:], None
        yield f"GIF with {name} at its end", gif[:-1] + comment + gif[-1:], None
    yield "GIF of many frames", gif[:at] + gif[at:-1] * (size // len(gif)) + b";", "picture"
    for name, segment in {
        "EXIF": (0xE1, b"Exif\0\0x"),
        "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        "profile": (0xE2, b"ICC_PROFILE\0\1\1x"),
        "comment": (0xFE, b""),
    }.items():
        many = [segment] * (size // (len(segment[1]) + 4))
        yield f"JPEG with its {name} in many pieces", after_start(jpeg, *many), None
    for count in (499, 5000):
        data = encoded(photo(512, 512), "JPEG", progressive=True)
        scan = data[data.rindex(b"\xff\xda") : -2]
        yield f"JPEG of {count} scans", data[:-2] + scan[:60] * count + data[-2:], None
    for name, junk in {"fill bytes": b"\xff", "restarts": b"\xff\xd0", "junk": b"x"}.items():
        yield f"JPEG of {name}", jpeg[:2] + junk * size + jpeg[2:], None
    rows = (2, 1, 8, 0, b"\0\1\2")
    for name in (b"tEXt", b"prVt"):
        chunks = [png_chunk(name, b"")] * (size // 12)
        yield f"PNG of many {name.decode()}", png(*rows, *chunks), None
    chunk = png_chunk(b"IDAT", b"")
    plain = png(*rows)
    at = plain.index(b"IDAT") - 4
    yield "PNG of many empty IDAT", plain[:at] + chunk * (size // 12) + plain[at:], None
    exif = png_chunk(b"eXIf", b"Exif\0\0" * (size // 6))
    yield "PNG with EXIF in EXIF", png(*rows, exif), None
    count = size // 4
    for name, tags in {
        "strips": {"t273": [0] * count, "t278": 1, "t279": [1] * count},
        "tiles": {"t322": 1, "t323": 1, "t324": [0] * count, "t325": [1] * count},
        "compressed strips": {"t259": 8, "t273": [0] * count, "t278": 1, "t279": [1] * count},
        "dates": {"t306": [0] * count},
    }.items():
        yield f"TIFF of many {name}", grey_tiff(512, 512, **tags), None
    webp = encoded(photo(8, 8), "WEBP", exif=b"Exif\0\0II*\0")
    chunk = b"JUNK\0\0\0\0"
    webp += chunk * (size // 8)
    yield "WebP of many chunks", webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:], None
    for format in ("AVIF", "HEIF"):
        data = encoded(photo(64, 64), format)
        yield f"{format} of many boxes", data + b"\0\0\0\x08free" * (size // 8), None
        start = int.from_bytes(data[:4], "big")
        nested = b"".join(struct.pack(">I4s", size - 8 * i, b"meta") for i in range(size // 8))
        yield f"{format} of nested boxes", data[:start] + nested + data[start:], None
        metas = _box(b"meta", bytes(8)) * (size // 16)
        yield f"{format} of many meta boxes", data[:start] + metas + data[start:], None


def _odd_sizes(rng: random.Random) -> Made:
    for size, format in itertools.product(
        [(1, 1), (3, 5), (1, 4000), (4000, 1), (16383, 2), (7, 16383)], READABLE
    ):
        if format != "HEIF" or max(size) < 16384 // 2:  # x265 encodes no longer ones
            yield f"{format} of {size}", encoded(photo(*size), format), "picture"


def _modes(rng: random.Random) -> Made:
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = b"".join(b"\0" + rng.randbytes(2 * 6 * channels) for _ in range(5))
        yield f"16-bit PNG, colour type {kind}", png(6, 5, 16, kind, rows), "picture"
    for depth in (1, 2, 4, 8):
        row = b"\0" + rng.randbytes(-(-6 * depth // 8))
        yield f"{depth}-bit grey PNG", png(6, 5, depth, 0, row * 5), "picture"
        for level in (1, 65535):
            clear = png_chunk(b"tRNS", struct.pack(">H", level))
            data = png(6, 5, depth, 0, row * 5, clear)
            yield f"{depth}-bit grey PNG, tRNS {level}", data, "picture"
        colours = png_chunk(b"PLTE", rng.randbytes(3 << depth))
        yield f"{depth}-bit palette PNG", png(6, 5, depth, 3, row * 5, colours), "picture"
        for alpha in (b"\0", b"\x80\xff", bytes(300), b"\xff" * 299 + b"\0"):
            clear = png_chunk(b"tRNS", alpha)
            data = png(6, 5, depth, 3, row * 5, colours, clear)
            yield f"{depth}-bit palette PNG, tRNS of {len(alpha)}", data, "picture"
    for level in (1, 65535):
        clear = png_chunk(b"tRNS", struct.pack(">3H", level, 2, 3))
        data = png(6, 5, 8, 2, (b"\0" + rng.randbytes(18)) * 5, clear)
        yield f"RGB PNG, tRNS {level}", data, "picture"
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK"):
        yield f"TIFF {mode}", encoded(photo(mode=mode), "TIFF"), "picture"
    yield "TIFF LAB", encoded(_lab(), "TIFF"), "picture"
    raw = encoded(photo(mode="YCbCr"), "TIFF") + bytes(5000)
    yield "TIFF YCbCr, uncompressed", raw, "error"  # Pillow takes it for RGBX
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    for most in (65535, 2**30, -1):
        image = Image.fromarray((values * most).astype(np.int32))
        yield f"TIFF I, to {most}", encoded(image, "TIFF"), "picture" if most == 65535 else "error"
    for most in (1, 2, np.nan, np.inf, -1):
        image = Image.fromarray(np.append(values, np.float32([most] * 8)[None], axis=0))
        yield f"TIFF F, to {most}", encoded(image, "TIFF"), "picture" if most == 1 else "error"
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        yield f"TIFF, {compression}", encoded(photo(), "TIFF", compression=compression), "picture"
    yield "CMYK JPEG", encoded(photo(mode="CMYK"), "JPEG"), "picture"
    yield "YCCK JPEG", adobe_ycck(), "picture"
    for bits in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {bits}", encoded(photo(mode=bits), "BMP"), "picture"


def _lab() -> Image.Image:
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    return ImageCms.profileToProfile(photo(), srgb, lab, outputMode="LAB")


def _animated(rng: random.Random) -> Made:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        yield f"{format} of three", data, "picture"
        for place in (len(data) // 2, len(data) * 9 // 10):
            yield f"{format} of three, cut", data[:place], None
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames * 20)
    yield "TIFF of 61 pages", data, "picture"


def _metadata(rng: random.Random) -> Made:
    loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    huge = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x010F, 2, 2**31, 8) + bytes(4)
    exifs = {"junk": b"junk", "loop": loop, "huge count": huge, "empty": b"", "cut": loop[:9],
             "noise": b"II*\0\x08\0\0\0" + rng.randbytes(600)}  # fmt: skip
    for format, (name, exif) in itertools.product(("JPEG", "PNG", "WEBP"), exifs.items()):
        data = encoded(photo(), format, exif=b"Exif\0\0" + exif)
        yield f"{format}, EXIF: {name}", data, "picture"
    formats = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    for orientation, format in itertools.product(range(10), formats):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data = encoded(photo(), format, exif=exif)
        yield f"{format}, orientation {orientation}", data, "picture"
    table = b"\0\0\xff\xff" + rng.randbytes(400)
    profiles = {
        "Adobe RGB": ADOBE_RGB,
        "Display P3": DISPLAY_P3,
        "none": b"none",
        "cut": SRGB[:200],
        "noise": rng.randbytes(600),
        "endless table": SRGB[:128] + table,
    }
    for (name, icc), mode in itertools.product(profiles.items(), ("L", "RGB", "CMYK")):
        format = "JPEG" if mode == "CMYK" else "PNG"
        data = encoded(photo(mode=mode), format, icc_profile=icc)
        yield f"{format} {mode}, profile: {name}", data, "picture"
    for key in ("transparency", "icc_profile", "exif", "dpi", "bbox", "xmp", "srgan_notices",
                "interlace", "default_image", "Raw profile type exif"):  # fmt: skip
        for mode, kind in (("L", 0), ("RGB", 2)):
            row = b"\0" + bytes(4 if mode == "L" else 12)
            for value in (b"\0\0", b"72", b"\xff" * 5, b""):
                text = png_chunk(b"tEXt", key.encode() + b"\0" + value)
                yield f"{mode} PNG, text {key}={value!r}", png(4, 1, 8, kind, row, text), None
    for dots in (0, 1, 2**32 - 1):
        resolution = png_chunk(b"pHYs", struct.pack(">IIB", dots, dots, 1))
        yield f"PNG of {dots} dots", png(2, 1, 8, 0, b"\0\1\2", resolution), "picture"
    for first, second in ((0, 1), (1, 0), (0, 0), (2**32 - 1, 1)):
        data = encoded(photo(), "TIFF", dpi=(72, 72))
        new = struct.pack("<II", first, second)
        yield f"TIFF of {first}/{second} dots", data.replace(struct.pack("<II", 72, 1), new), None


def _aliases(rng: random.Random) -> Made:
    """The same bytes over and over: a megabyte of EXIF that is a gigabyte once it is read."""
    for name, exif in {
        "values": _aliasing(900, 1_000_000),
        "numbers": _aliasing(50, 1_000_000, type=4),
        "big-endian values": _aliasing(900, 1_000_000, order=">"),
    }.items():
        text = b"Raw profile type exif\0\n\n\n" + exif.hex().encode()
        for chunk in (png_chunk(b"eXIf", exif), png_chunk(b"tEXt", text)):
            data = png(2, 1, 8, 0, b"\0\1\2", chunk)
            yield f"PNG, {chunk[4:8].decode()} of aliased {name}", data, None
        for format in ("WEBP", "AVIF", "HEIF"):
            data = encoded(photo(), format, exif=b"Exif\0\0" + exif)
            yield f"{format}, EXIF of aliased {name}", data, None
        pieces = [exif[i : i + 65_000] for i in range(0, len(exif), 65_000)]
        parts = [(0xE1, b"Exif\0\0" + piece) for piece in pieces]
        jpeg = encoded(photo(), "JPEG")
        yield f"JPEG, EXIF of aliased {name}", after_start(jpeg[:2] + jpeg[20:], *parts), None
    yield "TIFF of aliased values", _aliasing(900, 1_000_000, picture=True), None
    pages = (0xE2, b"MPF\0" + _aliasing(2500, 30_000))
    yield "JPEG, aliased previews", after_start(encoded(photo(), "JPEG"), pages), None
    yield "AVIF grid", avif_grid(side=512), "picture"
    yield "AVIF grid of tiles coded larger than declared", avif_grid(side=64), "error"


def _aliasing(
    values: int, length: int, *, type: int = 7, order: str = "<", picture: bool = False
) -> bytes:
    """A TIFF directory of so many values, which all are the same bytes after it."""
    tags = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 4}
    entries = [struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags) if picture]
    end = 8 + 2 + 12 * (len(entries) + values) + 4
    count = length // {7: 1, 4: 4}[type]
    entries += [struct.pack(order + "HHII", 40_000 + i, type, count, end) for i in range(values)]
    start = b"II" if order == "<" else b"MM"
    head = start + struct.pack(order + "HIH", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + bytes(length)


def avif_grid(side: int) -> bytes:
    """512 × 512 pixels in tiles of this side, each of them the same picture of 512 × 512."""
    tile = encoded(Image.new("RGB", (512, 512), "teal"), "AVIF")
    av1 = tile[tile.index(b"mdat") + 4 :]
    config = tile[tile.index(b"av1C") + 4 :][:4]
    tiles = 512 // side
    count = tiles**2
    grid = struct.pack(">4B2H", 0, 0, tiles - 1, tiles - 1, 512, 512)

    def build(start: int) -> bytes:
        places = struct.pack(">HHHII", 1, 0, 1, start, len(grid))
        for i in range(count):
            places += struct.pack(">HHHII", 2 + i, 0, 1, start + len(grid), len(av1))
        kinds = _box(b"infe", struct.pack(">IHH4sx", 2 << 24, 1, 0, b"grid"))
        for i in range(count):
            kinds += _box(b"infe", struct.pack(">IHH4sx", (2 << 24) + 1, 2 + i, 0, b"av01"))
        ids = struct.pack(f">{count}H", *range(2, 2 + count))
        properties = _box(b"ispe", struct.pack(">III", 0, 512, 512)) + _box(b"av1C", config)
        properties += _box(b"pixi", b"\0\0\0\0\3\x08\x08\x08")
        properties += _box(b"ispe", struct.pack(">III", 0, side, side))
        uses = struct.pack(">HB2B", 1, 2, 1, 3)
        uses += b"".join(struct.pack(">HB3B", 2 + i, 3, 4, 0x82, 3) for i in range(count))
        uses = _box(b"ipma", struct.pack(">II", 0, 1 + count) + uses)
        meta = _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
        meta += _box(b"pitm", struct.pack(">IH", 0, 1))
        meta += _box(b"iloc", struct.pack(">IHH", 0, 0x4400, 1 + count) + places)
        meta += _box(b"iinf", struct.pack(">IH", 0, 1 + count) + kinds)
        meta += _box(b"iref", bytes(4) + _box(b"dimg", struct.pack(">HH", 1, count) + ids))
        meta += _box(b"iprp", _box(b"ipco", properties) + uses)
        start = _box(b"ftyp", b"avif\0\0\0\0avifmif1miafMA1A")
        return start + _box(b"meta", bytes(4) + meta) + _box(b"mdat", grid + av1)

    return build(len(build(0)) - len(grid) - len(av1))


def _box(type: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), type) + content


_KINDS = {
    "no image": _no_images,
    "truncated": _truncated,
    "bits flipped": _flipped,
    "spliced": _spliced,
    "polyglots": _polyglots,
    "over the limit": _over_the_limit,
    "declared sizes": _declared_sizes,
    "laborious": _laborious,
    "odd sizes": _odd_sizes,
    "modes": _modes,
    "animated": _animated,
    "metadata": _metadata,
    "aliases": _aliases,
}
#: What `hostile_files` makes.
KINDS = list(_KINDS)
