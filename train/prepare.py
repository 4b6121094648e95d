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

import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from train.download import download
from train.parallel import cores, map_in_order, progress
from train.photos import Duplicates, Picture, Rejection, load_picture
from train.sources import SUFFIXES, Entry, PrepareError, list_sources

logger = logging.getLogger(__name__)

# The same names as in train.data, which this module does not import: every worker process would
# load torch.
IMAGES_FILE = "images.bin"

INDEX_FILE = "index.npy"

MANIFEST_FILE = "manifest.json"

JOURNAL_FILE = "journal.jsonl"

SCRATCH = "scratch"


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
        max_pixels: Leave out images that declare more pixels, before they are decoded. A worker
            needs up to about 10 bytes of memory a pixel for a JPEG, 22 with transparency; up to
            2 × `workers` results, 3 bytes a pixel, wait for their turn.
        near_duplicates: Leave out images that look like an earlier one, that is whose difference
            hashes differ in at most this many of 64 bits (up to 16) and whose thumbnails agree.
            None keeps them; exact duplicates are always left out.
        validation: Share of the images held out, chosen by the hash of their pixels, so that an
            image stays in its split when others are added; at least one.
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
        places = [place for source in config.sources for place in locate_source(source, config)]
        manifest = _find_finished(places, config)
        if manifest:
            return manifest
        for path, url in places:
            if url and not path.is_file():
                download(url, path)
        entries, other_files = list_sources([path for path, _ in places], scratch)
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


def locate_source(source: str, config: PrepareConfig) -> list[tuple[Path, str | None]]:
    """A source's folders and archives, each with the URL where it is to be had, if there is one."""
    mirflickr = re.fullmatch(r"mirflickr(25k|:[\d,-]+)?", source)
    if not mirflickr:
        return [(Path(source), None)]
    if mirflickr[1] == "25k":
        files = ["mirflickr25k.v3b/mirflickr25k.zip"]
    else:
        parts = _parse_parts((mirflickr[1] or ":0")[1:])
        files = [f"mirflickr1m.v3b/images{part}.zip" for part in parts]
    folder = config.downloads or config.out.absolute().parent / "downloads"
    url = config.mirflickr_url.rstrip("/")
    return [(folder / file.rpartition("/")[2], f"{url}/{file}") for file in files]


def _find_finished(
    places: list[tuple[Path, str | None]], config: PrepareConfig
) -> dict[str, Any] | None:
    """The manifest of a finished dataset, all of downloads, of which some are no longer there."""
    path = config.out / MANIFEST_FILE
    downloads = all(url for _, url in places)
    if not (downloads and path.is_file()) or all(place.is_file() for place, _ in places):
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = {record["name"] for kind in ("images", "rejected") for record in manifest[kind]}
    if {name.partition("/")[0] for name in files} != {place.name for place, _ in places}:
        return None
    _check_identity({**manifest, "settings": config.settings}, manifest, config.out)
    logger.info("%s is complete: nothing to do", config.out)
    return manifest


def _parse_parts(text: str) -> list[int]:
    """Reads "0,3-5" as [0, 3, 4, 5]."""
    parts = set()
    for item in text.split(","):
        match = re.fullmatch(r"(\d)(?:-(\d))?", item)
        if not match:
            raise PrepareError(f"expected parts of MIRFLICKR-1M like 0,3-5 (0 to 9), got {text}")
        parts.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(parts)


def _hash_of_listing(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


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
    if config.validation and 1 not in splits and len(kept) > 1:  # of a few, one at least
        splits[min(range(len(kept)), key=lambda i: kept[i].sha256)] = 1
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
