"""PSNR and SSIM as the super-resolution literature computes them.

On the Y channel of ITU-R BT.601 in [16, 235], after rounding to 8 bits, with a border as wide as
the scale cut off: the protocol of Ledig et al. 2017 and most papers since.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601.

    Args:
        rgb: (N, 3, H, W) in [0, 1]; rounded to 8 bits here.

    Returns:
        (N, 1, H, W) float64 in [16, 235], not rounded.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=rgb.device)
    eight_bit = rgb.double().clamp(0, 1).mul(255).round().div(255)
    return 16 + (eight_bit * weights[:, None, None]).sum(1, keepdim=True)


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
    y_sr, y_hr = _cut(sr, hr, border, least=1)
    error = (y_sr - y_hr).square().mean().item()
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
    y_sr, y_hr = _cut(sr, hr, border, least=11)
    at = torch.arange(-5, 6, dtype=torch.float64, device=sr.device)
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mean_sr, mean_hr = blur(y_sr), blur(y_hr)
    variance_sr = blur(y_sr * y_sr) - mean_sr**2
    variance_hr = blur(y_hr * y_hr) - mean_hr**2
    covariance = blur(y_sr * y_hr) - mean_sr * mean_hr
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_sr * mean_hr + c1) * (2 * covariance + c2)
    similarity /= (mean_sr**2 + mean_hr**2 + c1) * (variance_sr + variance_hr + c2)
    return similarity.mean().item()


def _cut(sr: Tensor, hr: Tensor, border: int, least: int) -> tuple[Tensor, Tensor]:
    if sr.shape != hr.shape or sr.dim() != 4 or sr.shape[:2] != (1, 3):
        raise ValueError(
            f"expected two images of one shape (1, 3, H, W), "
            f"got {tuple(sr.shape)} and {tuple(hr.shape)}"
        )
    height, width = sr.shape[2:]
    if min(height, width) < 2 * border + least:
        raise ValueError(
            f"images of {width}×{height} are too small to compare: "
            f"at least {2 * border + least} pixels a side are needed"
        )
    rows, columns = slice(border, height - border), slice(border, width - border)
    return luma(sr)[:, :, rows, columns], luma(hr)[:, :, rows, columns]
