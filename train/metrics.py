"""Measures of perceived likeness and of artefacts; PSNR and SSIM are in `srgan.metrics`."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE
from train.losses import normalized_detail
from train.vgg import LAYERS, VGG19

LPIPSNet = Literal["alex", "vgg", "squeeze"]
#: Side in pixels of the blocks whose spectra are averaged.
SPECTRUM_BLOCK = 16 * SCALE


class LPIPSError(Exception):
    """LPIPS can't be computed here; the text says why and what to do."""


def load_lpips(net: LPIPSNet, device: torch.device) -> Callable[[Tensor, Tensor], float]:
    """LPIPS, calibrated on human judgement (Zhang et al. 2018); smaller is more alike.

    Returns:
        The distance of two images (1, 3, H, W) in [0, 1].

    Raises:
        LPIPSError: torchmetrics is not installed, or torchvision can't download the network.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as exc:
        raise LPIPSError("LPIPS needs torchmetrics: pip install torchmetrics") from exc
    try:
        metric = LearnedPerceptualImagePatchSimilarity(net, normalize=True).to(device)
    except (OSError, RuntimeError) as exc:
        raise LPIPSError(f"the network of LPIPS can't be loaded: {exc}") from exc

    @torch.no_grad()
    def distance(sr: Tensor, hr: Tensor) -> float:
        return metric(sr.to(device), hr.to(device)).item()

    return distance


def color_shift(sr: Tensor, hr: Tensor) -> list[float]:
    """Mean error of each channel in 1/255, signed.

    Args:
        sr, hr: (1, 3, H, W) in [0, 1].
    """
    return (255 * (sr - hr).mean((0, 2, 3))).tolist()


def checkerboard(image: Tensor) -> float:
    """How far the spectrum stands out at the frequencies of the pixel shuffles, in dB.

    What repeats with the LR grid has all its power at multiples of 1 / SCALE of the sampling rate
    in x and y. There the spectrum of luminance (mean over Hann-windowed blocks with half overlap)
    is compared with the geometric mean of the frequencies around. A photograph has about 0 dB; a
    regular texture can have more on its own account, so compare with the original.

    Args:
        image: (1, 3, H, W) in [0, 1], at least `SPECTRUM_BLOCK` pixels a side.
    """
    side = SPECTRUM_BLOCK
    blocks = _blocks(image.mean(1)[0])
    power = _mean_power(blocks - blocks.mean((2, 3), keepdim=True))
    step = side // SCALE
    excess = []
    for i in range(0, side, step):
        for j in range(0, side, step):
            if i or j:
                around = [(i + d, j) for d in (-4, -3, 3, 4)] + [(i, j + d) for d in (-4, -3, 3, 4)]
                levels = torch.stack([power[a % side, b % side] for a, b in around])
                excess.append(power[i, j] / levels.log().mean().exp())
    return 10 * torch.stack(excess).mean().log10().item()


def strokes(image: Tensor) -> float:
    """How far the finest detail runs along rows and columns rather than diagonally, in dB.

    The power of luminance's `normalized_detail` between 1/4 and 1/2 of the sampling rate, within 8°
    of the axes relative to that more than 30° away. Photographs have more than 0 dB, for buildings
    and horizons are upright, so compare with the original.

    Args:
        image: (1, 3, H, W) in [0, 1], at least `SPECTRUM_BLOCK` pixels a side.
    """
    power = _mean_power(_blocks(normalized_detail(image.mean(1, keepdim=True))[0, 0]))
    frequencies = torch.fft.fftfreq(SPECTRUM_BLOCK, device=image.device).abs()
    y, x = frequencies[:, None], frequencies[None]
    radius, angle = torch.hypot(y, x), torch.atan2(torch.minimum(y, x), torch.maximum(y, x))
    fine = (radius >= 0.25) & (radius <= 0.5)
    along = power[fine & (angle < math.radians(8))].mean()
    diagonal = power[fine & (angle > math.radians(30))].mean()
    return 10 * (along / diagonal).log10().item()


def _blocks(plane: Tensor) -> Tensor:
    """Squares of `SPECTRUM_BLOCK` pixels with half overlap, (n, m, side, side), of (H, W)."""
    side = SPECTRUM_BLOCK
    return plane.unfold(0, side, side // 2).unfold(1, side, side // 2)


def _mean_power(blocks: Tensor) -> Tensor:
    """The mean spectrum of Hann-windowed blocks, (side, side)."""
    window = torch.hann_window(SPECTRUM_BLOCK, device=blocks.device)
    spectra = torch.fft.fft2(blocks * window[:, None] * window)
    return spectra.abs().square().mean((0, 1)) + 1e-12


@torch.no_grad()
def feature_distances(vgg: VGG19, images: Iterable[Tensor], hr: Tensor) -> list[float]:
    """Distances in VGG19's features, made like LPIPS but not calibrated on human judgement.

    At each of relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4 the feature vectors are scaled to
    length 1, their squared difference is summed over the channels and averaged over the image;
    the mean over the five layers is returned. Zhang et al. 2018, "The Unreasonable Effectiveness
    of Deep Features as a Perceptual Metric", with all weights 1. Independent of the feature scale.

    Args:
        vgg: on the device of the images.
        images: each (1, 3, H, W) in [0, 1].
        hr: the original, of the same shape, at least 16 pixels a side.

    Returns:
        For each image at least 0, which is for one equal to the original.

    Raises:
        ValueError: the shapes differ or the images are too small.
    """
    if min(hr.shape[2:]) < 16:
        raise ValueError(f"images need at least 16 pixels a side, got {tuple(hr.shape)}")
    layers = tuple(LAYERS)
    targets = [F.normalize(features) for features in vgg(hr, layers)]
    distances = []
    for image in images:
        if image.shape != hr.shape:
            raise ValueError(
                f"expected images of one size, got {tuple(image.shape)} and {tuple(hr.shape)}"
            )
        errors = [
            (F.normalize(features) - target).square_().sum(1).mean().item()
            for features, target in zip(vgg(image, layers), targets, strict=True)
        ]
        distances.append(sum(errors) / len(errors))
    return distances
