"""PSNR and SSIM as the super-resolution literature computes them.

On the Y channel of ITU-R BT.601 in [16, 235], after rounding to 8 bits, with a border as wide as
the scale cut off: the protocol of Ledig et al. 2017 and most papers since.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from srgan.generator import SCALE

#: Rows that are compared at a time, so that memory doesn't grow with the image.
STRIP = 256


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601.

    Args:
        rgb: (N, 3, H, W) in [0, 1]; rounded to 8 bits here.

    Returns:
        (N, 1, H, W) float64 in [16, 235], not rounded, on the CPU.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    eight_bit = rgb.to("cpu", torch.float64, copy=True).clamp_(0, 1).mul_(255).round_().div_(255)
    return 16 + eight_bit.mul_(weights[:, None, None]).sum(1, keepdim=True)


def psnr_y(sr: Tensor, hr: Tensor, border: int = SCALE) -> float:
    """Peak signal-to-noise ratio of Y in dB.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hr: the original, of the same shape.
        border: pixels cut off on each side.

    Returns:
        dB, infinite for equal images.

    Raises:
        ValueError: the shapes differ or nothing is left inside the border.
    """
    error = _mean((y_sr - y_hr).square_() for y_sr, y_hr in _strips(sr, hr, border, overlap=0))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim_y(sr: Tensor, hr: Tensor, border: int = SCALE) -> float:
    """Structural similarity of Y, mean over the image.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity":
    11×11 Gaussian window of σ 1.5 inside the image only, K1 0.01, K2 0.03, range 255.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hr: the original, of the same shape.
        border: pixels cut off on each side.

    Returns:
        At most 1, which is for equal images.

    Raises:
        ValueError: the shapes differ or less than 11 pixels are left inside the border.
    """
    at = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window = (window / window.sum()).tolist()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(x: Tensor) -> Tensor:
        # Sums of shifted planes: far sooner than a float64 convolution of one channel.
        for dim in (2, 3):
            length = x.shape[dim] - len(window) + 1
            total = x.narrow(dim, 0, length) * window[0]
            for shift, weight in enumerate(window[1:], start=1):
                total.add_(x.narrow(dim, shift, length), alpha=weight)
            x = total
        return x

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        mean_a, mean_b = blur(a), blur(b)
        squares, product = blur(a * a + b * b), mean_a * mean_b
        mean_squares = mean_a**2 + mean_b**2
        covariance = blur(a * b) - product
        means = (2 * product + c1) / (mean_squares + c1)
        return means * (2 * covariance + c2) / (squares - mean_squares + c2)

    return _mean(similarity(*strip) for strip in _strips(sr, hr, border, overlap=10))


def _mean(maps: Iterator[Tensor]) -> float:
    total, count = 0.0, 0
    for values in maps:
        total, count = total + values.sum().item(), count + values.numel()
    return total / count


def _strips(sr: Tensor, hr: Tensor, border: int, overlap: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Y of both images inside the border, in strips of rows that overlap."""
    if sr.shape != hr.shape or sr.dim() != 4 or sr.shape[:2] != (1, 3):
        raise ValueError(
            f"expected two images of one shape (1, 3, H, W), "
            f"got {tuple(sr.shape)} and {tuple(hr.shape)}"
        )
    height, width = sr.shape[2:]
    least = 2 * border + overlap + 1
    if min(height, width) < least:
        raise ValueError(
            f"images of {width}×{height} are too small to compare: "
            f"at least {least} pixels a side are needed"
        )
    columns = slice(border, width - border)
    for top in range(border, height - border - overlap, STRIP):
        rows = slice(top, min(top + STRIP + overlap, height - border))
        yield luma(sr[:, :, rows, columns]), luma(hr[:, :, rows, columns])
