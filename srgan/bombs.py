"""Files that cost their decoder far more than they look like, found before it sees them.

Decoders trust what a file says of itself: Pillow copies every value of a directory of EXIF or TIFF,
though a thousand of them be the same megabyte; appends the blocks of a GIF comment to one another,
one by one; and an AVIF is decoded at the size of its AV1 streams, whatever size it declares. What
is merely damaged passes: the decoders tell.
"""

import itertools
import re
from collections.abc import Iterator

from PIL.JpegImagePlugin import MARKER

from srgan.errors import ImageError

#: Pieces of one kind in one file; real files have some hundreds.
_MAX_PIECES = 10_000
#: Numbers in one value of a directory: the strips of the largest TIFF, with room.
_MAX_NUMBERS = 65_536
#: Bytes between the pieces of a file, which its decoder reads one by one.
_MAX_JUNK = 1_000_000


def refuse_bombs(kind: str, data: bytes, max_pixels: int) -> None:
    """Refuses a file whose structure makes decoding slow or large beyond reason.

    Args:
        kind: JPEG, PNG, GIF, TIFF, AVIF or HEIC; others pass.
        data: the file.
        max_pixels: the limit on the picture.

    Raises:
        ImageError: it is such a file.
    """
    if kind == "JPEG":
        _check_jpeg(data)
    elif kind == "PNG":
        _check_png(data)
    elif kind == "GIF":
        _check_gif(data, max_pixels)
    elif kind == "TIFF":
        check_directories(data)
    elif kind in ("AVIF", "HEIC"):
        _check_heif(data, max_pixels)


def _refuse(what: str) -> None:
    raise ImageError(f"This file has {what}, more than a picture needs; export it again.")


def _number(data: bytes, start: int, length: int, order: str = "big") -> int:
    """What lies beyond the end counts as missing digits."""
    return int.from_bytes(data[start : start + length], order)


# --------------------------------------------------------------------------------------- TIFF

#: How TIFF and EXIF begin for Pillow, which knows some forms that don't exist.
_TIFF = rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"
#: Field type of TIFF -> bytes of one number.
_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8,
}  # fmt: skip
#: Types that are not taken apart: bytes, text, undefined.
_BLOBS = {1, 2, 7}
#: Tags that point at the directories which are read beside the first: EXIF, GPS, interoperability.
_POINTERS = {0x8769, 0x8825, 0xA005}


def check_directories(block: bytes) -> None:
    """Refuses a TIFF, or the TIFF that EXIF is, whose values are endless or all the same bytes.

    Raises:
        ImageError: reading its directories would take a multiple of its size.
    """
    start = 0
    while block.startswith(b"Exif\0\0", start):
        start += 6
        if start > 60:  # Pillow takes them off one by one
            _refuse("EXIF in EXIF")
    block = block[start:]
    if not re.match(_TIFF, block):
        return
    order = "little" if block[:2] == b"II" else "big"
    wide = 8 if block[2:3] == b"+" else 4  # bytes of an offset: BigTIFF or not, as Pillow sees it
    head = 8 if wide == 8 else 2  # bytes of the number of entries
    waiting, seen = [_number(block, wide, wide, order)], set()
    while waiting:
        start = waiting.pop()
        if start in seen or start >= len(block):
            continue
        seen.add(start)
        if len(seen) > 10:
            _refuse("too many directories")
        first, used = start + head, 0
        end = first + _number(block, start, head, order) * (4 + 2 * wide)
        entries = range(first, min(end, len(block)), 4 + 2 * wide)
        if len(entries) > 4096:
            _refuse(f"a directory of {len(entries):,} values")
        for at in entries:
            tag, type_ = _number(block, at, 2, order), _number(block, at + 2, 2, order)
            count = _number(block, at + 4, wide, order)
            unit = _SIZES.get(type_, 0)
            size, place = count * unit, at + 4 + wide
            if size > wide:
                place = _number(block, place, wide, order)
                if place + size > len(block):
                    continue  # Pillow reads nothing
                used += size
                if type_ not in _BLOBS and count > _MAX_NUMBERS:
                    _refuse(f"a value of {count:,} numbers")
            if tag in _POINTERS:
                waiting.append(_number(block, place, unit, order))
        if used > 2 * len(block):
            _refuse("overlapping metadata")


# ----------------------------------------------------------------------------- JPEG, PNG, GIF


def _check_jpeg(data: bytes) -> None:
    exif, previews = [], b""
    for count, (marker, content) in enumerate(_segments(data)):
        if count > _MAX_PIECES:
            _refuse(f"over {_MAX_PIECES:,} segments")
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif.append(content[6:] if exif else content)
            if len(exif) > 64:
                _refuse(f"EXIF in over {len(exif) - 1} pieces")
        elif marker == 0xE2 and content.startswith(b"MPF\0"):
            previews = content[4:]
    check_directories(b"".join(exif))
    check_directories(previews)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of what precedes the first scan, as Pillow takes the file apart."""
    at, junk = 2, 0
    while at + 4 <= len(data):
        found = data.find(b"\xff", at)
        junk += (found if found >= 0 else len(data)) - at
        if junk > _MAX_JUNK:
            _refuse("a megabyte of nothing")
        if found < 0 or found + 4 > len(data):
            return
        marker, at = data[found + 1], found + 2
        if marker == 0xDA:
            return
        if marker == 0xFF:
            at, junk = at - 1, junk + 1
        elif marker == 0:
            junk += 2
        elif MARKER.get(0xFF00 + marker, (None,))[-1]:
            length = max(2, _number(data, at, 2))
            yield marker, data[at + 2 : at + length]
            at += length
        else:
            yield marker, b""


def _check_png(data: bytes) -> None:
    at, count = 8, 0
    while at + 8 <= len(data):
        at += 12 + _number(data, at, 4)
        count += 1
        if count > 10 * _MAX_PIECES:  # some encoders make small ones
            _refuse(f"over {10 * _MAX_PIECES:,} chunks")


def _check_gif(data: bytes, max_pixels: int) -> None:
    """Up to the second picture, for which Pillow looks too."""
    at = 13 + _palette(_number(data, 10, 1))
    pictures = comments = junk = 0
    while pictures < 2 and at < len(data):
        if data[at] == 0x2C:
            pictures += 1
            at += 11 + _palette(_number(data, at + 9, 1))
            at, _ = _skip_blocks(data, at, max(_MAX_PIECES, max_pixels))
        elif data[at] == 0x21:
            at, count = _skip_blocks(data, at + 2, _MAX_PIECES)
            comments += 1 + count
            if comments > _MAX_PIECES:
                _refuse(f"over {_MAX_PIECES:,} blocks of comments")
        elif data[at] == 0x3B:
            return
        else:
            at, junk = at + 1, junk + 1
            if junk > _MAX_JUNK:
                _refuse("a megabyte of nothing")


def _palette(flags: int) -> int:
    """Its length in bytes, by the flags of a GIF's screen or picture."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Where a chain of blocks ends, and how many they are."""
    count = 0
    while length := _number(data, at, 1):
        at += 1 + length
        count += 1
        if count > most:
            _refuse(f"over {most:,} blocks in a row")
    return at + 1, count


# --------------------------------------------------------------------------------- AVIF, HEIC


def _check_heif(data: bytes, max_pixels: int) -> None:
    pixels = 0
    for item in itertools.chain(_items(data), _first_samples(data)):
        # EXIF, wherever in its item it begins
        for count, header in enumerate(re.finditer(_TIFF, item)):
            if count > 20:
                _refuse(f"EXIF that begins over {count} times")
            check_directories(item[header.start() :])
        pixels += _av1_pixels(item)
    if pixels > 4 * max(max_pixels, 2**16):  # colour, alpha, gain map, thumbnail
        raise ImageError(
            f"The image is too large: it holds pictures of {pixels:,} pixels and the limit is "
            f"{max_pixels:,} (SRGAN_MAX_PIXELS). Make it smaller."
        )


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box (ISO 14496-12, §4.2)."""
    for _ in range(_MAX_PIECES):
        if start + 8 > end:
            return
        size, head = _number(data, start, 4), 8
        if size == 1:
            size, head = _number(data, start + 8, 8), 16
        elif size == 0:
            size = end - start
        if size < head:
            return
        yield data[start + 4 : start + 8], start + head, min(start + size, end)
        start += size
    _refuse(f"over {_MAX_PIECES:,} boxes")


def _inside(data: bytes, *path: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the content of all boxes of this path."""
    places = [(0, len(data))]
    for type_ in path:
        places = [
            (start + 4 * (type_ == b"meta"), end)  # after its version
            for place in places
            for found, start, end in _boxes(data, *place)
            if found == type_
        ]
        if len(places) > 100:
            _refuse(f"{len(places):,} boxes of one kind")
    yield from places


def _items(data: bytes) -> Iterator[bytes]:
    """The content of every item, those of tracks too (ISO 14496-12, §8.11.3)."""
    idat = next((start for start, _ in _inside(data, b"meta", b"idat")), 0)
    pieces = length = 0
    tables = [_inside(data, b"meta", b"iloc"), _inside(data, b"moov", b"trak", b"meta", b"iloc")]
    for at, end in itertools.chain(*tables):
        version = _number(data, at, 1)
        sizes = [_number(data, at + 4, 2) >> shift & 15 for shift in (12, 8, 4, 0)]
        offset_size, length_size, base_size, index_size = sizes
        index_size *= version > 0
        id_size = 4 if version == 2 else 2
        items = _number(data, at + 6, id_size)
        at += 6 + id_size
        while items and at < end:
            items, pieces = items - 1, pieces + 1
            at += id_size
            origin = 0
            if version > 0:
                origin = idat if _number(data, at, 2) & 15 == 1 else 0
                at += 2
            origin += _number(data, at + 2, base_size)
            count = _number(data, at + 2 + base_size, 2)
            at += 2 + base_size + 2
            parts = []
            for _ in range(count):
                if at >= end:
                    break
                at += index_size
                start = origin + _number(data, at, offset_size)
                size = _number(data, at + offset_size, length_size) or len(data)
                at += offset_size + length_size
                parts.append(data[start : start + size])
                pieces, length = pieces + 1, length + len(parts[-1])
                if length > 2 * len(data):
                    _refuse("pictures that are the same bytes")
            if pieces > 4000:  # libheif reads up to 1000 items
                _refuse(f"over {pieces - 1:,} pieces of pictures")
            yield b"".join(parts)


def _first_samples(data: bytes) -> Iterator[bytes]:
    """What an animation's tracks begin with (ISO 14496-12, §8.7)."""
    for start, end in _inside(data, b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        boxes = {type_: at for type_, at, _ in _boxes(data, start, end)}
        wide = 8 if b"co64" in boxes else 4
        chunks = boxes.get(b"co64" if wide == 8 else b"stco", len(data))
        sizes = boxes.get(b"stsz", len(data))
        place = _number(data, chunks + 8, wide)
        length = _number(data, sizes + 4, 4) or _number(data, sizes + 12, 4)
        yield data[place : place + length]


# ---------------------------------------------------------------------------------------- AV1


class _Bits:
    """Reads a header bit by bit; after its end come zeros."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data[:512].ljust(512, b"\0"), "big")
        self._left = 8 * 512

    def __call__(self, count: int) -> int:
        self._left -= count
        return self._value >> self._left & (1 << count) - 1


def _av1_pixels(stream: bytes) -> int:
    """The largest frame that sequence headers in an AV1 stream allow; 0 for anything else.

    AV1 Bitstream & Decoding Process Specification, §5.3 (OBU syntax).
    """
    at = pixels = count = 0
    while at < len(stream) and not stream[at] & 0x80:
        kind, extended, sized = stream[at] >> 3, stream[at] >> 2 & 1, stream[at] >> 1 & 1
        at += 1 + extended
        size = len(stream) - at
        if sized:
            size = 0
            for i in range(8):  # LEB128
                digit = _number(stream, at, 1)
                size |= (digit & 127) << 7 * i
                at += 1
                if digit < 128:
                    break
        if kind == 1:
            pixels = max(pixels, _sequence_pixels(_Bits(stream[at : at + size])))
        at += size
        count += 1
        if count > 500:
            _refuse(f"over {count - 1} units in a picture")
    return pixels


def _sequence_pixels(read: _Bits) -> int:
    """AV1 specification, §5.5.1 to §5.5.4."""
    read(4)  # profile, still picture
    reduced = read(1)
    if reduced:
        read(5)
    else:
        model = delay = 0
        if read(1):  # timing
            read(64)
            if read(1):  # equal intervals
                zeros = 0
                while zeros < 32 and not read(1):
                    zeros += 1
                read(zeros % 32)
            model = read(1)
            if model:
                delay = read(5) + 1
                read(42)
        displayed = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if model and read(1):
                read(2 * delay + 1)
            if displayed and read(1):
                read(4)
    wide, high = read(4) + 1, read(4) + 1
    pixels = (read(wide) + 1) * (read(high) + 1)
    # Frames may state sizes of their own, in as many bits; an encoder takes no more than it needs.
    return pixels if reduced else max(pixels, 2 ** (wide + high) // 4)
