"""Pictures of how training goes, for TensorBoard."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from srgan.generator import SCALE

COUNT = 4


def add_samples(
    writer: SummaryWriter, step: int, pairs: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Writes the first few images, each as a strip of LR, bicubic, SR and HR.

    Args:
        writer: where to.
        step: of the training.
        pairs: LR (1, 3, h, w), SR and HR (1, 3, 4h, 4w), in [0, 1].
    """
    for i, (lr, sr, hr) in enumerate(pairs[:COUNT]):
        pixels = F.interpolate(lr, scale_factor=SCALE, mode="nearest")
        bicubic = F.interpolate(lr, scale_factor=SCALE, mode="bicubic").clamp(0, 1)
        strip = torch.cat([pixels, bicubic, sr, hr], dim=3)[0]
        writer.add_image(f"low-res, bicubic, network, original/{i}", strip, step)
