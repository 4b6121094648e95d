"""High-res images -> low-res ones such as users bring: blur, any filter, noise and JPEG.

In the spirit of BSRGAN (Zhang et al. 2021) and Real-ESRGAN (Wang et al. 2021, §3), but milder and
of one pass: meant are photographs as phones and websites give them, not ruins.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE
from train.device import send

#: HR pixels around a crop that are degraded with it, so that the units of JPEG in which it lies are
#: whole.
MARGIN = 16 * SCALE
#: Standard deviations of the blur in HR pixels, and the reach of its kernel.
BLUR, BLUR_REACH = (0.2, 2.8), 10
#: Standard deviation of the noise in 1/255; how many images have any, how many of these the same in
#: all channels, and how many a noise that grows with the root of the light.
NOISE, NOISY, GREY, SHOT = (1.0, 12.0), 0.6, 0.4, 0.5
#: Quality of JPEG, how many images are one, and how many of these have 4:2:0 chroma.
QUALITY, COMPRESSED, SUBSAMPLED = (35, 95), 0.85, 0.7
#: Pixels a side of JPEG's blocks, and of what 4:2:0 takes together (minimum coded unit).
BLOCK, MCU = 8, 16


def photograph(hr: Tensor, seeds: Sequence[int]) -> Tensor:
    """Blurs, reduces ÷4, adds noise and compresses, each with random strength.

    Args:
        hr: (N, 3, H, W) in [0, 1], H and W multiples of 4.
        seeds: of each image's randomness, (N,); with the same one an image becomes the same again,
            whatever else is in the batch, on a device of the same type.

    Returns:
        (N, 3, H/4, W/4) in [0, 1], multiples of 1/255.
    """
    device = hr.device
    cpu = [torch.Generator().manual_seed(seed) for seed in seeds]
    # Uniform in [0, 1), (11, N): drawn for every image, whether they are needed or not.
    draws = torch.stack([torch.rand(11, generator=one) for one in cpu], 1)
    across, along, angle, choice, noisy, strength, grey, shot, compressed, quality, half = draws
    lr = blur(hr, _within(BLUR, across), _within(BLUR, along), math.pi * angle)
    lr = _pick(
        send((3 * choice).long(), device),
        F.interpolate(lr, scale_factor=1 / SCALE, mode="bicubic", antialias=True),
        F.interpolate(lr, scale_factor=1 / SCALE, mode="bilinear", antialias=True),
        F.avg_pool2d(lr, SCALE),
    ).clamp(0, 1)
    sigma = send(torch.where(noisy < NOISY, _within(NOISE, strength) / 255, 0.0), device)
    kinds = send(grey < GREY, device), send(shot < SHOT, device)
    lr = lr + _each(sigma) * _noise(lr, seeds, *kinds)
    lr = lr.mul(255).round_().clamp_(0, 255).div_(255)
    corners = torch.stack([torch.randint(MCU, (2,), generator=one) for one in cpu])
    coded = jpeg(lr, _within(QUALITY, quality), half < SUBSAMPLED, corners)
    return _pick(send((compressed < COMPRESSED).long(), device), lr, coded)


def blur(images: Tensor, across: Tensor, along: Tensor, angle: Tensor) -> Tensor:
    """Convolves each image with a Gaussian of its own; beyond the edges they repeat.

    Args:
        images: (N, C, H, W).
        across, along: (N,) standard deviations along the Gaussian's axes, in pixels.
        angle: (N,) by which these are turned, in radians.
    """
    height, width = images.shape[2:]
    steps = torch.arange(-BLUR_REACH, BLUR_REACH + 1.0)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    cosine, sine = (_each(f(angle))[:, 0] for f in (torch.cos, torch.sin))
    u, v = x * cosine + y * sine, y * cosine - x * sine  # (N, side, side)
    exponents = (u / _each(across)[:, 0]) ** 2 + (v / _each(along)[:, 0]) ** 2
    kernels = torch.softmax(-exponents.flatten(1) / 2, 1).view_as(exponents)
    kernels = send(kernels, images.device)
    padded = F.pad(images, [BLUR_REACH] * 4, mode="replicate")
    # By Fourier transforms: on a CPU ten times as fast as F.conv2d with a group for each image.
    size = padded.shape[2:]
    spectra = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, size)[:, None]
    return torch.fft.irfft2(spectra, size)[:, :, -height:, -width:]


def _noise(images: Tensor, seeds: Sequence[int], grey: Tensor, shot: Tensor) -> Tensor:
    """Gaussian noise like images (N, 3, H, W), of standard deviation 1; where it's `grey` the same
    in all channels, where it's `shot` noise growing with the root of the light."""
    device = images.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    noise = torch.stack(
        [torch.randn(images.shape[1:], generator=one, device=device) for one in generators]
    )
    noise = torch.where(_each(grey), noise[:, :1], noise)
    return torch.where(_each(shot), noise * images.sqrt(), noise)


# ----------------------------------------------------------------------------------------- JPEG

#: ITU T.81, annex K: quantisation of luma and chroma at quality 50.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61,  12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,  14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,  24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,  72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,  18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,  47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
)  # fmt: skip
#: BT.601 as in JFIF: RGB -> Y, Cb, Cr around 0.
_YCBCR = (0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)


def jpeg(images: Tensor, quality: Tensor, subsample: Tensor, corners: Tensor) -> Tensor:
    """What JPEG leaves of images, after libjpeg's tables and triangle filter for chroma.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        quality: (N,) in [1, 100], as in libjpeg.
        subsample: (N,) bool, 4:2:0 or 4:4:4.
        corners: (N, 2) where in the first unit of 16 × 16 pixels an image's corner lies: (0, 0) for
            whole files, anything else for what was cut out of one.

    Returns:
        Like `images`, multiples of 1/255.
    """
    device = images.device
    height, width = images.shape[2:]
    high, wide = (math.ceil((length + MCU - 1) / MCU) * MCU for length in (height, width))
    starts = [(top, left) for top, left in corners.tolist()]
    whole = torch.cat([
        F.pad(one[None], [left, wide - width - left, top, high - height - top], mode="replicate")
        for one, (top, left) in zip(images, starts, strict=True)
    ])  # fmt: skip
    to_ycbcr, to_rgb = _color_matrices(device)
    ycbcr = torch.einsum("dc,nchw->ndhw", to_ycbcr, 255 * whole).round_()
    ycbcr[:, 0] -= 128
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    luma, chroma = (
        send(((torch.tensor(table) * factor[:, None] + 50) / 100).floor().clamp(1, 255), device)
        .view(-1, 1, BLOCK, BLOCK)
        for table in (_LUMA, _CHROMA)
    )  # fmt: skip
    y, color = _quantize(ycbcr[:, :1], luma), ycbcr[:, 1:]
    fine = _quantize(color, chroma)
    coarse = _quantize(F.avg_pool2d(color, 2), chroma)
    coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    color = torch.where(_each(send(subsample, device)), coarse, fine)
    rgb = torch.einsum("cd,ndhw->nchw", to_rgb, torch.cat([y + 128, color], 1))
    rgb = torch.stack([
        one[:, top : top + height, left : left + width]
        for one, (top, left) in zip(rgb, starts, strict=True)
    ])  # fmt: skip
    return rgb.round_().clamp_(0, 255).div_(255)


@cache
def _color_matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """From RGB and back, (3, 3); copied to a GPU once."""
    with torch.inference_mode(False):  # the first to ask may not train, the next one may
        matrix = torch.tensor(_YCBCR)
        return matrix.to(device), matrix.inverse().to(device)


def _quantize(planes: Tensor, table: Tensor) -> Tensor:
    """Rounds the DCT of each block of planes (N, C, H, W) to multiples of table (N, 1, 8, 8)."""
    n, channels, height, width = planes.shape
    at = torch.arange(BLOCK, device=planes.device)
    dct = torch.cos(math.pi / BLOCK * (at + 0.5) * at[:, None]) * math.sqrt(2 / BLOCK)
    dct[0] /= math.sqrt(2)
    blocks = planes.view(n, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    steps = table.view(n, 1, 1, BLOCK, 1, BLOCK)
    coefficients = torch.einsum("ui,ncaibj,vj->ncaubv", dct, blocks, dct)
    coefficients = (coefficients / steps).round() * steps
    restored = torch.einsum("ui,ncaubv,vj->ncaibj", dct, coefficients, dct)
    return restored.reshape(planes.shape).round_()


# -------------------------------------------------------------------------------------- helpers


def _within(limits: tuple[float, float], draw: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * draw


def _each(values: Tensor) -> Tensor:
    """(N,) to go with images (N, C, H, W)."""
    return values[:, None, None, None]


def _pick(choice: Tensor, *alternatives: Tensor) -> Tensor:
    """For each image that of its alternatives, all (N, C, H, W), whose number it chooses, (N,)."""
    return torch.stack(alternatives)[choice, torch.arange(len(choice), device=choice.device)]
