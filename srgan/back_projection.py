"""Keeps an enlargement true to the image that was enlarged.

A network's result, reduced again, is not quite the low-res image: flat colours come out off by some
levels, and textures that an adversary asked for shift the brightness around them. One step of
iterative back-projection (Irani and Peleg 1991, "Improving Resolution by Image Registration") takes
that away; Vella and Mota 2020, "Robust Single-Image Super-Resolution via CNNs and TV-TV
Minimization", find the same fault in networks, and that mending it makes the results better.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE, bands, grow, relative, scaled

#: LR rows next to a band that bicubic kernels see, in either direction.
HALO = 2


def back_project(sr: Tensor, lr: Tensor) -> None:
    """Adds to an enlargement, bicubically enlarged, what it lacks of the low-res image.

    Args:
        sr: (N, 3, 4h, 4w), changed in place.
        lr: (N, 3, h, w), what was enlarged: a bicubic reduction, or what is taken for one.
    """
    lacking = lr.clone(memory_format=torch.contiguous_format)
    parts = [(band, grow(band, HALO, lr.shape[2])) for band in bands(lr)]
    for band, seen in parts:
        reduced = _resize(sr[:, :, scaled(seen)], 1 / SCALE)
        lacking[:, :, band] -= reduced[:, :, relative(band, seen)]
    for band, seen in parts:
        enlarged = _resize(lacking[:, :, seen], SCALE)
        sr[:, :, scaled(band)] += enlarged[:, :, scaled(relative(band, seen))]


def _resize(x: Tensor, factor: float) -> Tensor:
    if x.shape[3] <= SCALE:  # torch 2.14 makes nonsense of planes that get one column
        x = x.contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)
