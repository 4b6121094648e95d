"""Photos from folders, archives or MIRFLICKR -> one packed dataset to train on.

    python -m train.prepare photos/ more.zip prepared
    python -m train.prepare mirflickr prepared --limit 60000 --size 256

Every image is decoded in full; damaged, small and repeated ones are left out and named, with the
reason, in the manifest. The result is a folder:

    images.bin     RGB uint8, HWC, one image after another
    index.npy      (n, 4) int64: byte offset, height, width, split (0 train, 1 validation)
    manifest.json  settings, counts, a record of each image and each rejected file; written last

The same files give the same bytes, whatever the number of workers. A run that was stopped, by
whatever means, goes on where it was when the command is given again.
"""

import bz2
import errno
import gzip
import hashlib
import http.client
import io
import json
import logging
import lzma
import multiprocessing
import os
import re
import shutil
import signal
import ssl
import struct
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import tyro
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from tqdm import tqdm

logger = logging.getLogger(__name__)

# The same names as in train.data, which this module does not import: every worker process would
# load torch.
IMAGES_FILE = "images.bin"
INDEX_FILE = "index.npy"
MANIFEST_FILE = "manifest.json"
JOURNAL_FILE = "journal.jsonl"
SCRATCH = "scratch"

#: Pillow's decoders that are let near the files; others run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SUFFIXES += (".avif", ".heic", ".heif", ".ppm", ".pgm")
MAX_FILE_BYTES = 2**29
#: Mean difference of two thumbnails, in 8-bit levels, up to which they show the same picture.
THUMBNAIL_TOLERANCE = 6.0

try:  # HEIC is decoded where its library is installed, and rejected with a reason elsewhere
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)


class PrepareError(Exception):
    """The dataset can't be made; the message is one line that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Photos from folders, archives or MIRFLICKR -> one packed dataset to train on.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        paths: Sources, then the folder of the dataset (new, empty, or that of the run to go on
            with). A source is a folder (with all folders in it), an archive (.zip, .tar, .tar.gz,
            and so on), `mirflickr` for part 0 of MIRFLICKR-1M, `mirflickr:0,3-5` for chosen parts
            of it (each 100 000 photos, about 12 GB), or `mirflickr25k` (3 GB); these are
            downloaded. A folder that is called so is ./mirflickr.
        size: Resize every image to a square of this many pixels, whatever its aspect ratio; the
            original project did so with 256. None keeps images as they are.
        min_side: Leave out images whose shorter side has fewer pixels (before `size`): the
            training crop and its margin must fit.
        max_pixels: Leave out images that declare more pixels, before they are decoded. Memory
            is at most about 6 bytes times this times `workers`.
        near_duplicates: Leave out images that look like an earlier one, that is whose difference
            hashes differ in at most this many of 64 bits (up to 16) and whose thumbnails agree.
            None keeps them; exact duplicates are always left out.
        validation: Share of the images held out, chosen by the hash of their pixels, so that an
            image stays in its split when others are added.
        limit: Use only the first so many image files, in the order of sources and names.
        workers: Processes that decode; None is one a core.
        downloads: Folder for downloaded archives; None is `downloads` next to the dataset.
        mirflickr_url: Where MIRFLICKR is served, for a mirror.
        overwrite: Delete the dataset, finished or not, that the folder holds, and start anew.
    """

    paths: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SOURCE [SOURCE ...] OUT", help_behavior_hint=""),
    ]
    size: int | None = None
    min_side: int = 128
    max_pixels: int = 64_000_000
    near_duplicates: int | None = 6
    validation: float = 0.02
    limit: int | None = None
    workers: int | None = None
    downloads: Path | None = None
    mirflickr_url: str = "https://press.liacs.nl/mirflickr/"
    overwrite: bool = False

    def __post_init__(self):
        if len(self.paths) < 2:
            raise ValueError(
                f"expected SOURCE [SOURCE ...] OUT, got {' '.join(self.paths) or 'none'}"
            )
        limits = {
            "size": (4, 4096),
            "min_side": (1, None),
            "max_pixels": (1, 2 * Image.MAX_IMAGE_PIXELS),  # beyond it Pillow refuses
            "near_duplicates": (0, 16),
            "validation": (0, 1),
            "limit": (1, None),
            "workers": (1, None),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                allowed = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ValueError(f"{name} must be {allowed}, got {value}")

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the photos come from."""
        return self.paths[:-1]

    @property
    def out(self) -> Path:
        """Folder of the dataset."""
        return Path(self.paths[-1])

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, besides the files."""
        names = ("size", "min_side", "max_pixels", "near_duplicates", "validation", "limit")
        return {name: getattr(self, name) for name in names}


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Makes the dataset, or goes on with it.

    Returns:
        The manifest.

    Raises:
        PrepareError: there is nothing to make a dataset of, or something stopped the run.
        OSError: a file can't be read or written.
    """
    out = config.out
    _check_out(out, config.overwrite)
    scratch = out / SCRATCH
    try:
        archives = [path for source in config.sources for path in fetch_source(source, config)]
        entries, other_files = list_sources(archives, scratch)
        entries = entries[: config.limit]
        if not entries:
            raise PrepareError(
                f"no image files in {', '.join(config.sources)}: {other_files} files, none of "
                f"them ending in {' '.join(SUFFIXES)}"
            )
        identity = {"settings": config.settings, "listing": _hash_of_listing(entries)}
        if (out / MANIFEST_FILE).is_file():
            manifest = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
            _check_identity(identity, manifest, out)
            (out / JOURNAL_FILE).unlink(missing_ok=True)
            logger.info("%s is complete: nothing to do", out)
            return manifest
        out.mkdir(parents=True, exist_ok=True)
        return _pack(entries, other_files, identity, config)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise PrepareError(
            f"no space left ({error}); what is done is kept: make room and give the same command "
            f"again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_out(out: Path, overwrite: bool) -> None:
    """Makes sure that `out` holds nothing but a dataset; with `overwrite`, not even that."""
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is a file; OUT must be a folder")
    ours = [MANIFEST_FILE, JOURNAL_FILE, IMAGES_FILE, INDEX_FILE, SCRATCH]  # manifest goes first
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    foreign = sorted(present - set(ours))
    if foreign and not present & {MANIFEST_FILE, JOURNAL_FILE}:
        raise PrepareError(
            f"{out} holds other files ({foreign[0]}, …); the last argument is the folder of the "
            f"dataset: give a new or an empty one"
        )
    if overwrite:
        for name in ours[:-1]:
            (out / name).unlink(missing_ok=True)


def _check_identity(now: dict[str, Any], then: dict[str, Any], out: Path) -> None:
    """Makes sure that `out` belongs to this command."""
    changed = [
        f"{name} was {then['settings'].get(name)}, is {value}"
        for name, value in now["settings"].items()
        if then["settings"].get(name) != value
    ]
    if now["listing"] != then["listing"]:
        changed.append("the image files are others")
    if changed:
        raise PrepareError(
            f"{out} holds a dataset made otherwise ({'; '.join(changed)}). Give another folder, "
            f"or --overwrite to delete it."
        )


# ------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class Entry:
    """An encoded image: some bytes of some file.

    Attributes:
        name: name of the source and path within it, with slashes.
        path: the file.
        offset: first byte; for a member of a zip archive, that of its local header.
        size: encoded bytes.
        member: set where the bytes are a member of a zip archive.
    """

    name: str
    path: str
    offset: int
    size: int
    member: zipfile.ZipInfo | None = None

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError, zipfile.BadZipFile, ValueError: it can't be read.
        """
        if self.size > MAX_FILE_BYTES:
            raise ValueError(f"{self.size} bytes, the limit is {MAX_FILE_BYTES}")
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            if self.member is None:
                return file.read(self.size)
            if self.member.flag_bits & 1:
                raise ValueError("encrypted")
            # Opening the archive in every process would parse its whole directory there: seconds
            # and 100 MB for one of 100 000 files. The local header says where the data begin.
            name_length, extra_length = struct.unpack("<26x2H", file.read(30))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            with zipfile.ZipExtFile(file, "r", self.member) as member:
                return member.read(self.size)  # bounded, whatever the data expand to; checks CRC


def fetch_source(source: str, config: PrepareConfig) -> list[Path]:
    """A source's folders and archives, downloaded where need be."""
    mirflickr = re.fullmatch(r"mirflickr(25k|:[\d,-]+)?", source)
    if not mirflickr:
        return [Path(source)]
    if mirflickr[1] == "25k":
        files = ["mirflickr25k.v3b/mirflickr25k.zip"]
    else:
        parts = _parse_parts((mirflickr[1] or ":0")[1:])
        files = [f"mirflickr1m.v3b/images{part}.zip" for part in parts]
    folder = config.downloads or config.out.absolute().parent / "downloads"
    paths = []
    for file in files:
        path = folder / file.rpartition("/")[2]
        if not path.is_file():
            download(config.mirflickr_url.rstrip("/") + "/" + file, path)
        paths.append(path)
    return paths


def _parse_parts(text: str) -> list[int]:
    """Reads "0,3-5" as [0, 3, 4, 5]."""
    parts = set()
    for item in text.split(","):
        match = re.fullmatch(r"(\d)(?:-(\d))?", item)
        if not match:
            raise PrepareError(f"expected parts of MIRFLICKR-1M like 0,3-5 (0 to 9), got {text}")
        parts.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(parts)


def list_sources(sources: Iterable[Path], scratch: Path) -> tuple[list[Entry], int]:
    """Finds the image files.

    Args:
        sources: folders and archives.
        scratch: folder for unpacked .tar.gz archives, in which nothing can be found at random;
            made if needed, the caller deletes it after the last read.

    Returns:
        The images in the order of the sources and then of their names, and the number of files
        that are none by their name.

    Raises:
        PrepareError: a source is not there, or not of a kind that can be read.
    """
    entries: list[Entry] = []
    other_files = 0
    labels: Counter[str] = Counter()
    for number, source in enumerate(sources):
        label = source.resolve().name
        labels[label] += 1
        if labels[label] > 1:
            label += f"#{labels[label]}"
        if source.is_dir():
            found = _list_folder(source, label)
        elif not source.exists():
            raise PrepareError(f"{source} does not exist")
        elif zipfile.is_zipfile(source):
            found = _list_zip(source, label)
        elif tarfile.is_tarfile(source):
            found = _list_tar(source, label, scratch / f"{number}.tar")
        else:
            raise PrepareError(
                f"{source} is no folder and no readable zip or tar archive; if it was downloaded, "
                f"delete it and download it again"
            )
        images = []
        for entry in found:
            parts = entry.name.split("/")
            if any(part.startswith(".") or part == "__MACOSX" for part in parts[1:]):
                continue  # what file managers leave behind
            if parts[-1].lower().endswith(SUFFIXES):
                images.append(entry)
            else:
                other_files += 1
        entries += sorted(images, key=lambda entry: entry.name)
    return entries, other_files


def _list_folder(folder: Path, label: str) -> Iterator[Entry]:
    warn = partial(logger.warning, "left out: %s")
    for parent, _, names in os.walk(folder, onerror=warn):
        inner = Path(parent).relative_to(folder)
        for name in names:
            path = os.path.join(parent, name)
            size = os.path.getsize(path) if os.path.exists(path) else 0  # a broken link
            yield Entry(f"{label}/{(inner / name).as_posix()}", path, 0, size)


def _list_zip(path: Path, label: str) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    name = f"{label}/{member.filename}"
                    yield Entry(name, str(path), member.header_offset, member.file_size, member)
    except zipfile.BadZipFile as error:
        raise PrepareError(f"{label} is damaged ({error}); download or copy it again") from error


def _list_tar(path: Path, label: str, unpacked: Path) -> Iterator[Entry]:
    openers = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with open(path, "rb") as file:
        opener = openers.get(file.read(2))
    try:
        if opener:
            logger.info("decompressing %s", path)
            _decompress(path, opener, unpacked)
            path = unpacked
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg():
                    name = f"{label}/{member.name.removeprefix('./')}"
                    yield Entry(name, str(path), member.offset_data, member.size)
    except tarfile.TarError as error:
        raise PrepareError(f"{label} is damaged ({error}); download or copy it again") from error


def _decompress(path: Path, opener: Callable[[Path], IO[bytes]], destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opener(path) as source, open(destination, "wb") as target:
            shutil.copyfileobj(source, target, 2**20)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None):  # the system's, not the decoder's
            raise
        raise tarfile.ReadError(str(error)) from error


def _hash_of_listing(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# ------------------------------------------------------------------------------- download


class _Incomplete(Exception):
    """The connection ended before the file did."""


def download(url: str, destination: Path, *, attempts: int = 6, pause: float = 2.0) -> None:
    """Fetches a large file, going on where an earlier attempt or run stopped.

    The bytes go to `destination`.part, which is renamed when its size is the one the server
    announced.

    Args:
        url: where it is.
        destination: where it shall be.
        attempts: without a byte gained in between, after which to give up.
        pause: seconds before the second attempt; doubled for each further one.

    Raises:
        PrepareError: it can't be had; the message says why.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    failures, most = 0, _size(part)
    logger.info("downloading %s to %s", url, destination)
    while True:
        try:
            _fetch(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise PrepareError(
                    f"{url}: the server says {error.code} {error.reason}; check the address "
                    f"(--mirflickr-url)"
                ) from error
            problem: Exception = error
        except (
            _Incomplete,
            urllib.error.URLError,
            http.client.HTTPException,
            ssl.SSLError,
            ConnectionError,
            TimeoutError,
        ) as error:
            problem = error
        failures = 1 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= attempts:
            raise PrepareError(
                f"{url}: {problem} ({failures} attempts); {_size(part)} bytes are kept in {part}, "
                f"the same command goes on from there"
            ) from problem
        wait = pause * 2 ** (failures - 1)
        logger.warning("%s: %s; trying again in %g s", url, problem, wait)
        time.sleep(wait)
    part.replace(destination)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path) -> None:
    """Appends what is missing to `part`; replaces it where the server can't send a part."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "srgan-x4 train.prepare"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: it is all there, or not this file.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):
            return
        part.unlink()
        raise _Incomplete(f"expected {total} bytes, got {have}; starting anew") from error
    with response:
        if response.status == 206:
            total = int(response.headers["Content-Range"].rpartition("/")[2])
        else:
            have = 0
            total = int(response.headers["Content-Length"] or 0)  # 0: not announced
        free = shutil.disk_usage(part.parent).free
        if total - have > free:
            raise PrepareError(
                f"{url} needs {total - have} bytes more in {part.parent}, {free} are free: make "
                f"room or choose another folder with --downloads"
            )
        with (
            open(part, "ab" if have else "wb") as file,
            progress(total or None, have, part.stem, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(2**18):
                file.write(block)
                bar.update(len(block))
    if total and _size(part) != total:
        got = _size(part)
        if got > total:
            part.unlink()
        raise _Incomplete(f"expected {total} bytes, got {got}")


def progress(total: int | None, done: int, title: str, **options: Any) -> tqdm:
    """A progress bar that starts at `done`; in a log file, a line now and then."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=done, desc=title, mininterval=interval, **options)


# -------------------------------------------------------------------------------- images


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
            return to_rgb(upright(image))
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise Rejected("unreadable", "not an image of a known format") from error
    except OSError as error:
        raise Rejected("unreadable", error.strerror or str(error)) from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise Rejected("unreadable", f"{type(error).__name__}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, where there is EXIF that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's parser raises anything; the pixels are good
        return image


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
    return image.convert("RGB")


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


# ------------------------------------------------------------------------------- packing


def _pack(
    entries: list[Entry], other_files: int, identity: dict[str, Any], config: PrepareConfig
) -> dict[str, Any]:
    """Decodes, judges and writes all images, then the index and the manifest."""
    out = config.out
    started = time.monotonic()
    load = partial(
        load_picture, size=config.size, min_side=config.min_side, max_pixels=config.max_pixels
    )
    with _Packer(out, identity) as packer:
        duplicates = Duplicates(config.near_duplicates)
        kept = [outcome for outcome in packer.outcomes if isinstance(outcome, Picture)]
        for picture in kept:
            duplicates.add(picture)
        done = len(packer.outcomes)
        workers = min(config.workers or cores(), len(entries))
        with progress(len(entries), done, "prepare", unit="image") as bar:
            for outcome, pixels in map_in_order(load, entries[done:], workers):
                if isinstance(outcome, Picture):
                    outcome = duplicates.find(outcome) or outcome
                if isinstance(outcome, Picture):
                    duplicates.add(outcome)
                    kept.append(outcome)
                    bar.set_postfix(kept=len(kept), refresh=False)
                packer.append(outcome, pixels)
                bar.update()
    rejected = [outcome for outcome in packer.outcomes if isinstance(outcome, Rejection)]
    if not kept:
        _check_out(out, overwrite=True)
        raise PrepareError(f"none of the {len(entries)} images can be used: {_reasons(rejected)}")
    splits = [split_of(picture.sha256, config.validation) for picture in kept]
    _write_index(out / INDEX_FILE, kept, splits)
    manifest = _manifest(kept, splits, rejected, other_files)
    manifest = {**identity, **manifest, "images_sha256": packer.sha256.hexdigest()}
    _write(out / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
    (out / JOURNAL_FILE).unlink()

    counts = manifest["counts"]
    logger.info(
        "%d images for training and %d for validation, %.2f GB, in %s; %s; %.0f images/s",
        counts["train"],
        counts["validation"],
        manifest["images_bytes"] / 1e9,
        out,
        f"left out: {_reasons(rejected)}" if rejected else "none left out",
        (len(entries) - done) / (time.monotonic() - started),
    )
    if config.validation and not counts["validation"]:
        logger.warning("no image fell into the validation split: raise --validation")
    return manifest


class _Packer:
    """The growing images.bin, and the journal that says what it holds.

    An outcome's line is written after its bytes, both at once (unbuffered). So, whatever stopped
    an earlier run, the lines whose bytes are there count, and all behind them is cut off.

    Attributes:
        outcomes: what was done so far, by earlier runs too, in the order of the entries.
        sha256: of images.bin.
    """

    def __init__(self, out: Path, identity: dict[str, Any]):
        self.outcomes: list[Picture | Rejection] = []
        self.sha256 = hashlib.sha256()
        for name in (JOURNAL_FILE, IMAGES_FILE):
            (out / name).touch()
        journal_end, images_end = self._recover(out, identity)
        self._journal = (out / JOURNAL_FILE).open("ab", buffering=0)
        self._images = (out / IMAGES_FILE).open("ab", buffering=0)
        self._journal.truncate(journal_end)
        self._images.truncate(images_end)
        if not journal_end:
            _write_all(self._journal, _json_line(identity))

    def _recover(self, out: Path, identity: dict[str, Any]) -> tuple[int, int]:
        """Reads what is there; returns the ends, in bytes, of the part that counts."""
        journal_end = images_end = 0
        if (out / JOURNAL_FILE).stat().st_size:
            logger.info("checking what an earlier run has done")
        with open(out / JOURNAL_FILE, "rb") as journal, open(out / IMAGES_FILE, "rb") as images:
            for line in journal:
                record = _parse_line(line)
                if record is None:
                    break
                if not journal_end:
                    _check_identity(identity, record, out)
                elif "sha256" in record:
                    picture = Picture(**record)
                    pixels = images.read(picture.height * picture.width * 3)
                    if hashlib.sha256(pixels).hexdigest() != picture.sha256:
                        break
                    self.sha256.update(pixels)
                    self.outcomes.append(picture)
                    images_end += len(pixels)
                else:
                    self.outcomes.append(Rejection(**record))
                journal_end += len(line)
        return journal_end, images_end

    def append(self, outcome: Picture | Rejection, pixels: bytes) -> None:
        """Writes the next outcome, and its bytes if it is a picture."""
        if isinstance(outcome, Picture):
            _write_all(self._images, pixels)
            self.sha256.update(pixels)
        _write_all(self._journal, _json_line(asdict(outcome)))
        self.outcomes.append(outcome)

    def __enter__(self) -> "_Packer":
        return self

    def __exit__(self, *error: object) -> None:
        with self._images, self._journal:
            os.fsync(self._images.fileno())


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """A record of the journal; None where the line was cut."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def map_in_order(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Like `map`, in `workers` processes, with at most 2 × `workers` results waiting.

    Raises:
        PrepareError: a worker process died, or memory ran out.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pending: deque = deque()
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except (BrokenProcessPool, MemoryError) as error:
        raise PrepareError(
            "a worker process died or ran out of memory; lower --workers or --max-pixels and give "
            "the same command again"
        ) from error


def _start_worker() -> None:
    """Lets a worker process end with its parent, and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def split_of(sha256: str, validation: float) -> int:
    """The split of an image: 1 (validation) for a share of all hashes, else 0 (train)."""
    return int(int(sha256[:8], 16) < validation * 2**32)


def _write_index(path: Path, kept: list[Picture], splits: list[int]) -> None:
    sizes = np.array([(picture.height, picture.width) for picture in kept], np.int64)
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1] * 3)
    starts = np.concatenate([[0], ends[:-1]])
    buffer = io.BytesIO()
    np.save(buffer, np.column_stack([starts, sizes, splits]).astype(np.int64))
    _write(path, buffer.getvalue())


def _manifest(
    kept: list[Picture], splits: list[int], rejected: list[Rejection], other_files: int
) -> dict[str, Any]:
    images = []
    for picture, split in zip(kept, splits, strict=True):
        record = asdict(picture)
        del record["look"]
        images.append({**record, "split": ("train", "validation")[split]})
    sizes = Counter((picture.original_width, picture.original_height) for picture in kept)
    return {
        "counts": {
            "train": splits.count(0),
            "validation": splits.count(1),
            "rejected": dict(Counter(rejection.reason for rejection in rejected)),
            "not_images": other_files,
        },
        "images_bytes": sum(picture.height * picture.width * 3 for picture in kept),
        "most_common_original_sizes": [
            {"width": width, "height": height, "images": count}
            for (width, height), count in sizes.most_common(20)
        ],
        "images": images,
        "rejected": [asdict(rejection) for rejection in rejected],
    }


def _write(path: Path, data: bytes) -> None:
    """Writes a file that is there in full or not at all."""
    partial_path = path.with_name(path.name + ".part")
    with open(partial_path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial_path.replace(path)


def _reasons(rejected: list[Rejection]) -> str:
    """ "2 unreadable (a.jpg: image file is truncated), 1 too small (…)" """
    first = {rejection.reason: rejection for rejection in reversed(rejected)}
    counts = Counter(rejection.reason for rejection in rejected)
    return ", ".join(
        f"{count} {reason} ({first[reason].name}: {first[reason].detail})"
        for reason, count in counts.most_common()
    )


def main() -> None:
    """The command line."""
    config = tyro.cli(
        PrepareConfig, prog="python -m train.prepare", config=(tyro.conf.FlagCreatePairsOff,)
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare(config)
    except (PrepareError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
