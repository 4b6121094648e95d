"""Folders and archives of photos -> the image files in them, readable in any order."""

import bz2
import gzip
import logging
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SUFFIXES += (".avif", ".heic", ".heif", ".ppm", ".pgm")

MAX_FILE_BYTES = 2**29


class PrepareError(Exception):
    """The dataset can't be made; the message is one line that says why and what to do."""


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
