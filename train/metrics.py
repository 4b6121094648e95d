"""Measures of perceived likeness; PSNR and SSIM are in `srgan.metrics`."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from train.vgg import LAYERS, VGG19


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
