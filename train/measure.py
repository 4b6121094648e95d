"""A dataset, prepared or not -> the size and sharpness of each photo."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from train.parallel import map_in_order, progress
from train.photos import Rejected, decode
from train.prepare import IMAGES_FILE, INDEX_FILE, JOURNAL_FILE, MANIFEST_FILE
from train.sources import Entry, PrepareError, list_sources

SCALE = 4  # as in srgan.generator, which would load torch in every worker process

#: Side, in pixels, of the centre crop that is measured and shown: the HR side of the original
#: project.
CROP = 256

#: Aspect ratios of cameras and screens, long side to short.
RATIOS = {"1:1": 1.0, "5:4": 5 / 4, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2.0}


@dataclass(frozen=True, slots=True)
class PackedPhoto:
    """An image of a prepared dataset.

    Attributes:
        name: where it came from.
        path: images.bin.
        offset: its first byte there.
        height, width: of the packed image.
        original: width and height before it was prepared.
    """

    name: str
    path: Path
    offset: int
    height: int
    width: int
    original: tuple[int, int]

    def open(self) -> Image.Image:
        """The image, RGB."""
        shape = (self.height, self.width, 3)
        pixels = np.fromfile(self.path, np.uint8, int(np.prod(shape)), offset=self.offset)
        return Image.fromarray(pixels.reshape(shape))


@dataclass(frozen=True, slots=True)
class FilePhoto:
    """An image file in a folder or archive."""

    entry: Entry
    max_pixels: int

    @property
    def name(self) -> str:
        """Where it came from."""
        return self.entry.name

    def open(self) -> Image.Image:
        """The image, upright, RGB.

        Raises:
            Rejected: it is no photo.
        """
        return decode(self.entry, min_side=16, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class Dataset:
    """Photos, and what is known of them without looking.

    Attributes:
        name: of the folder or archive.
        photos: all of them.
        left_out: how many files preparing it has left out, by reason.
        splits: how many photos each split has; empty where there are no splits.
    """

    name: str
    photos: list[PackedPhoto | FilePhoto]
    left_out: Counter[str]
    splits: Counter[str]


def open_dataset(path: Path, scratch: Path, max_pixels: int) -> Dataset:
    """Lists the photos of a prepared dataset, a folder or an archive.

    Raises:
        PrepareError: there are none.
    """
    name = path.resolve().name
    if (path / MANIFEST_FILE).is_file():
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        rows = np.load(path / INDEX_FILE).tolist()
        photos = [
            PackedPhoto(
                name=image["name"],
                path=path / IMAGES_FILE,
                offset=offset,
                height=height,
                width=width,
                original=(image["original_width"], image["original_height"]),
            )
            for image, (offset, height, width, _) in zip(manifest["images"], rows, strict=True)
        ]
        return Dataset(
            name=name,
            photos=photos,
            left_out=Counter(manifest["counts"]["rejected"]),
            splits=Counter(image["split"] for image in manifest["images"]),
        )
    if (path / JOURNAL_FILE).is_file():
        raise PrepareError(f"{path} is unfinished: give its train.prepare command again first")
    entries, _ = list_sources([path], scratch)
    if not entries:
        raise PrepareError(f"no image files in {path}")
    photos = [FilePhoto(entry, max_pixels) for entry in entries]
    return Dataset(name=name, photos=photos, left_out=Counter(), splits=Counter())


@dataclass(frozen=True, slots=True)
class Measure:
    """What looking at a photo gives.

    Attributes:
        photo: the photo.
        width, height: its original size, in pixels.
        laplacian: variance of the Laplacian of the luma, in squared 8-bit levels.
        fine: share, in [0, 1], of the energy that lies above the Nyquist frequency of the LR
            image: what ×4 enlargement has to invent.
    """

    photo: PackedPhoto | FilePhoto
    width: int
    height: int
    laplacian: float
    fine: float


def measure_all(dataset: Dataset, workers: int) -> tuple[list[Measure], list[str]]:
    """Looks at every photo.

    Returns:
        A measure of each, and the reasons for which files had none.
    """
    measures: list[Measure] = []
    failures: list[str] = []
    total = len(dataset.photos)
    with progress(total, 0, "explore", unit="image") as bar:
        for result in map_in_order(measure, dataset.photos, min(workers, total)):
            if isinstance(result, Measure):
                measures.append(result)
            else:
                failures.append(result)
            bar.update()
    return measures, failures


def measure(photo: PackedPhoto | FilePhoto) -> Measure | str:
    """Looks at one photo; returns the reason where it can't."""
    try:
        image = photo.open()
    except Rejected as rejection:
        return rejection.reason
    width, height = photo.original if isinstance(photo, PackedPhoto) else image.size
    luma = np.asarray(centre(image).convert("L"), np.float32)
    return Measure(photo, width, height, laplacian_variance(luma), fine_energy(luma))


def centre(image: Image.Image) -> Image.Image:
    """The middle of an image: a square of CROP pixels, or what there is of it.

    Its corner and sides are multiples of SCALE, so that its LR counterpart is whole pixels.
    """
    side = min(CROP, *image.size) // SCALE * SCALE
    left, top = ((length - side) // 2 // SCALE * SCALE for length in image.size)
    return image.crop((left, top, left + side, top + side))


def low_res(image: Image.Image) -> Image.Image:
    """The LR counterpart: bicubic ÷4, as in training."""
    width, height = (length // SCALE * SCALE for length in image.size)
    whole = image.crop((0, 0, width, height))
    return whole.resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC)


def laplacian_variance(luma: np.ndarray) -> float:
    """Variance of the four-neighbour Laplacian.

    Args:
        luma: (H, W), 8-bit levels.
    """
    middle = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(edges.var())


def fine_energy(luma: np.ndarray) -> float:
    """Share of the energy, mean excluded, at frequencies that the LR image can't hold.

    Args:
        luma: (H, W).
    """
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width))  # no energy from the borders
    energy = np.abs(np.fft.fft2((luma - luma.mean()) * window)) ** 2
    nyquist = 0.5 / SCALE  # cycles a pixel
    above_y = np.abs(np.fft.fftfreq(height)) > nyquist
    above_x = np.abs(np.fft.fftfreq(width)) > nyquist
    total = energy.sum()
    return float(energy[above_y[:, None] | above_x].sum() / total) if total else 0.0


def shape_of(width: int, height: int) -> str:
    """Names an aspect ratio: "3:2 landscape", "1:1", "other portrait"."""
    ratio = max(width, height) / min(width, height)
    names = [name for name, value in RATIOS.items() if abs(ratio / value - 1) <= 0.02]
    if names == ["1:1"]:
        return "1:1"
    return f"{names[0] if names else 'other'} {'landscape' if width > height else 'portrait'}"
