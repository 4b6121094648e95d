"""Measures of perceived likeness; PSNR and SSIM are in `srgan.metrics`."""

import torch
from torch import Tensor

from train.vgg import LAYERS, VGG19


@torch.no_grad()
def feature_distance(vgg: VGG19, sr: Tensor, hr: Tensor) -> float:
    """Distance in VGG19's features, made like LPIPS but not calibrated on human judgement.

    At each of relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4 the feature vectors are scaled to
    length 1, their squared difference is summed over the channels and averaged over the image;
    the mean over the five layers is returned. Zhang et al. 2018, "The Unreasonable Effectiveness
    of Deep Features as a Perceptual Metric", with all weights 1. Independent of the feature scale.

    Args:
        vgg: on the device of the images.
        sr: (1, 3, H, W) in [0, 1], at least 16 pixels a side.
        hr: the original, of the same shape.

    Returns:
        At least 0, which is for equal images.

    Raises:
        ValueError: the shapes differ or the images are too small.
    """
    if sr.shape != hr.shape or min(sr.shape[2:]) < 16:
        raise ValueError(
            f"expected two images of one size of at least 16 pixels a side, "
            f"got {tuple(sr.shape)} and {tuple(hr.shape)}"
        )
    total = 0.0
    layers = tuple(LAYERS)
    for a, b in zip(vgg(sr, layers), vgg(hr, layers), strict=True):
        difference = torch.nn.functional.normalize(a) - torch.nn.functional.normalize(b)
        total += difference.square().sum(1).mean().item()
    return total / len(layers)
