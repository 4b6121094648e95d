"""A prepared dataset (`train.prepare`) -> batches of (LR, HR) crops, made on the device.

The whole dataset lies in one uint8 tensor, on the GPU where there is one, so that a batch costs a
gather and a small convolution and no loader ever waits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE
from train import photograph
from train.device import send

#: What makes LR out of HR: `degrade`, or `train.photograph`.
Degradation = Literal["bicubic", "photo"]

IMAGES_FILE = "images.bin"
INDEX_FILE = "index.npy"
MANIFEST_FILE = "manifest.json"

#: Pixels of the result that the antialiased bicubic kernel reaches from its centre.
REACH = 2
#: HR pixels that decide over one LR pixel beyond its own four.
MARGIN = REACH * SCALE


def degrade(hr: Tensor) -> Tensor:
    """The one definition of a clean low-res image: bicubic ÷4 with antialiasing, to 8 bits.

    Args:
        hr: (N, 3, H, W) in [0, 1], H and W multiples of 4.

    Returns:
        (N, 3, H/4, W/4) in [0, 1], multiples of 1/255.
    """
    return reduce(hr, SCALE)


def reduce(images: Tensor, factor: int) -> Tensor:
    """Bicubic reduction with antialiasing, to 8 bits.

    Equals Pillow's `Image.resize(…, BICUBIC)`, but for 1/255 in about one pixel of ten thousand:
    like Pillow it reduces the width first, rounds halves up, and clips after either pass.

    Args:
        images: (N, C, H, W) in [0, 1], H and W multiples of the factor.

    Returns:
        (N, C, H / factor, W / factor) in [0, 1], multiples of 1/255.
    """
    height, width = images.shape[2:]
    pixels = 255 * images
    for size in ((height, width // factor), (height // factor, width // factor)):
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        pixels = pixels.add_(0.5).floor_().clamp_(0, 255)
    return pixels.div_(255)


def make_lr(hr: Tensor, degradation: Degradation, seeds: list[int]) -> Tensor:
    """The low-res images of a kind.

    Args:
        hr: (N, 3, H, W) in [0, 1], H and W multiples of 4.
        degradation: bicubic, or photo.
        seeds: of each image; bicubic has no use for them.

    Returns:
        (N, 3, H/4, W/4) in [0, 1], multiples of 1/255.
    """
    return photograph.photograph(hr, seeds) if degradation == "photo" else degrade(hr)


@dataclass(frozen=True, kw_only=True)
class PackedImages:
    """Images of many sizes, one after another in one flat tensor.

    Attributes:
        pixels: (bytes,) uint8, RGB, HWC; on any device.
        index: (n, 3) int64: byte offset, height, width; on the CPU.
    """

    pixels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def image(self, i: int) -> Tensor:
        """One whole image, (1, 3, H, W) float32 in [0, 1], on the device of the pixels."""
        offset, height, width = self.index[i].tolist()
        pixels = self.pixels[offset : offset + height * width * 3]
        return pixels.view(1, height, width, 3).permute(0, 3, 1, 2).float().div_(255)


def load_packed(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[PackedImages, PackedImages]:
    """Reads a prepared dataset.

    On the CPU the pixels stay a memory map, shared between processes; on a GPU they are copied.

    Returns:
        The training and the validation images.

    Raises:
        ValueError: the folder is not a complete prepared dataset, or too large for the GPU; the
            message says what to do.
    """
    folder = Path(folder)
    missing = [n for n in (IMAGES_FILE, INDEX_FILE, MANIFEST_FILE) if not (folder / n).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a prepared dataset: {', '.join(missing)} missing. "
            f"Make one with `python -m train.prepare`."
        )
    try:
        index = torch.from_numpy(np.load(folder / INDEX_FILE))  # (n, 4)
        offset, height, width, _ = index.unbind(1)
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        images = len(manifest["images"])
    except (ValueError, EOFError, IndexError, KeyError, TypeError) as exc:
        raise ValueError(f"{folder} is damaged ({exc}). Prepare it again.") from exc
    ends = (3 * height * width).cumsum(0)
    size = (folder / IMAGES_FILE).stat().st_size
    if images != len(index) or [0, *ends.tolist()] != [*offset.tolist(), size]:
        raise ValueError(f"{folder} is damaged: its files don't belong together. Prepare it again.")
    # Mode "c", copy-on-write: torch wants a writable array, the file stays as it is.
    pixels = torch.from_numpy(np.memmap(folder / IMAGES_FILE, np.uint8, mode="c"))
    try:
        pixels = pixels.to(device)
    except torch.OutOfMemoryError as exc:
        raise ValueError(
            f"{folder} holds {size / 1e9:.1f} GB of pixels, more than {device} has room for: "
            f"prepare fewer or smaller images (train.prepare --limit, --size), or give another "
            f"--device"
        ) from exc

    def split(which: int) -> PackedImages:
        chosen = index[:, 3] == which
        return PackedImages(pixels=pixels, index=index[chosen, :3].contiguous())

    return split(0), split(1)


class _Places(NamedTuple):
    """Where crops of one size can lie."""

    side: int  # of the crops, as they are read
    positions: Tensor  # (n,) how many of them each image has
    ends: Tensor  # (n,) their sums up to and with each image


class CropSampler:
    """Draws random (LR, HR) crops from packed images.

    An image is drawn with a probability proportional to the number of its crops, so that every
    crop of the dataset is equally likely; of some candidates the one with the most detail is taken,
    then flipped and transposed at random. The crop is taken with a margin from which only the
    degradation sees, so LR is what the whole image would give.

    Args:
        images: where to crop.
        crop: side of the HR crop in pixels, a multiple of 4.
        batch: crops a batch.
        generator: the source of all randomness, on the CPU, the same in all processes.
        degradation: of which kind LR is.
        reductions: whole numbers by which images are reduced before they are cropped, one drawn for
            each batch.
        candidates: crops drawn for each one that is taken; with 1 all are equally likely.
        rank, world_size: this process's number and how many there are; each takes its share of
            every batch, so that together they see what one process would see alone.

    Raises:
        ValueError: `crop` is not a multiple of 4, there are no candidates, the processes can't
            share the batch evenly, a reduction is not a positive whole number, or no image is large
            enough.
    """

    def __init__(
        self,
        images: PackedImages,
        *,
        crop: int,
        batch: int,
        generator: torch.Generator,
        degradation: Degradation = "bicubic",
        reductions: Sequence[int] = (1,),
        candidates: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if crop < SCALE or crop % SCALE:
            raise ValueError(f"crop must be a positive multiple of {SCALE}, got {crop}")
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        if batch % world_size:
            raise ValueError(f"a batch of {batch} can't be shared by {world_size} processes")
        self.images = images
        self.batch = batch
        self.candidates = candidates
        self.share = slice(rank, None, world_size)
        self.generator = generator
        self.degradation = degradation
        self.margin = photograph.MARGIN if degradation == "photo" else MARGIN
        self.side = crop + 2 * self.margin  # of what LR is made of
        if not reductions or min(reductions) < 1:
            raise ValueError(f"reductions must be whole numbers from 1, got {tuple(reductions)}")
        self.places = {reduction: self._find_places(reduction) for reduction in reductions}

    def _find_places(self, reduction: int) -> _Places:
        side = self.side if reduction == 1 else reduction * (self.side + 2 * REACH)
        room = (self.images.index[:, 1:] - side + 1).clamp(min=0)  # (n, 2) positions
        positions = room[:, 0] * room[:, 1]
        if not positions.any():
            raise ValueError(
                f"no image has {side} pixels on both sides, which a crop of "
                f"{self.side - 2 * self.margin} needs with its margin"
                + (f" and a reduction of {reduction}" if reduction > 1 else "")
                + ": lower the crop or prepare larger images"
            )
        return _Places(side, positions, positions.cumsum(0))

    def next(self) -> tuple[Tensor, Tensor]:
        """Draws a batch.

        Returns:
            LR (N, 3, crop/4, crop/4) and HR (N, 3, crop, crop), float32 in [0, 1], on the device
            of the pixels; N is this process's share of the batch.
        """
        reduction = next(iter(self.places))
        if len(self.places) > 1:
            number = torch.randint(len(self.places), (1,), generator=self.generator).item()
            reduction = list(self.places)[number]
        side, positions, ends = self.places[reduction]
        draws = (self.batch, self.candidates)
        draw = torch.randint(int(ends[-1]), draws, generator=self.generator)
        draw = draw[self.share].flatten().contiguous()
        orientation = torch.randint(8, (self.batch,), generator=self.generator)[self.share]
        chosen = torch.searchsorted(ends, draw, right=True)
        within = draw - (ends[chosen] - positions[chosen])
        offset, _, width = self.images.index[chosen].unbind(1)
        across = width - side + 1
        first = offset + 3 * (within // across * width + within % across)  # byte of the corner

        device = self.images.pixels.device
        first, row_bytes = send(first, device), send(3 * width, device)
        cut = _copy if device.type == "cpu" else _gather
        crops = cut(self.images.pixels, first, row_bytes, side)
        crops = crops.view(-1, self.candidates, side, side, 3)
        crops = _most_detailed(crops, reduction)
        crops = crops.permute(0, 3, 1, 2).float().div_(255)  # (N, 3, side, side)
        if reduction > 1:
            crops = reduce(crops, reduction)[:, :, REACH:-REACH, REACH:-REACH]

        orientation = send(orientation, device)[:, None, None, None]
        crops = torch.where(orientation & 1 > 0, crops.flip(3), crops)
        crops = torch.where(orientation & 2 > 0, crops.flip(2), crops)
        crops = torch.where(orientation & 4 > 0, crops.transpose(2, 3), crops)

        seeds = torch.randint(2**62, (self.batch,), generator=self.generator)[self.share]
        lr = make_lr(crops, self.degradation, seeds.tolist())
        lr, hr = (
            image[:, :, margin:-margin, margin:-margin].contiguous()
            for image, margin in ((lr, self.margin // SCALE), (crops, self.margin))
        )
        return lr, hr

    def shifted(self, *images: Tensor, by: int) -> list[Tensor]:
        """The same random window of images (N, C, H, W): smaller by `by` pixels a side."""
        top, left = torch.randint(by + 1, (2,), generator=self.generator).tolist()
        height, width = (length - by for length in images[0].shape[2:])
        return [image[:, :, top : top + height, left : left + width] for image in images]

    def state_dict(self) -> dict[str, Tensor]:
        """What makes the next batches the same again."""
        return {"random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["random"])


def _gather(pixels: Tensor, first: Tensor, row_bytes: Tensor, side: int) -> Tensor:
    """Squares out of images, byte by byte: for a GPU.

    Args:
        pixels: (bytes,) uint8, RGB, HWC.
        first: (n,) byte of each square's corner.
        row_bytes: (n,) of the image that it lies in.
        side: in pixels.

    Returns:
        (n, side, 3 side)
    """
    rows = torch.arange(side, device=pixels.device)
    line = torch.arange(3 * side, device=pixels.device)
    return pixels[(first[:, None] + rows * row_bytes[:, None])[:, :, None] + line]


def _copy(pixels: Tensor, first: Tensor, row_bytes: Tensor, side: int) -> Tensor:
    """The same row by row: several times as fast on a CPU."""
    size = side, 3 * side
    places = zip(first.tolist(), row_bytes.tolist(), strict=True)
    return torch.stack([pixels[start:].as_strided(size, (step, 1)) for start, step in places])


def _most_detailed(crops: Tensor, distance: int) -> Tensor:
    """Of each row of candidates the crop whose pixels differ most from their neighbours.

    Args:
        crops: (N, candidates, H, W, 3) uint8.
        distance: of the neighbours, in pixels.

    Returns:
        (N, H, W, 3)
    """
    if crops.shape[1] == 1:
        return crops[:, 0]
    green = crops[:, :, ::distance, ::distance, 1].short()
    detail = sum(green.diff(dim=dim).abs().float().mean((2, 3)) for dim in (2, 3))
    return crops[torch.arange(len(crops), device=crops.device), detail.argmax(1)]
