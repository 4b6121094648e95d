"""What both training stages share: schedule, precision, stopping, validation."""

import math
import signal
import threading
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from srgan.generator import SCALE, Generator, InferenceGenerator, fold
from srgan.metrics import psnr_y
from train.data import PackedImages, degrade


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, and the learning rate on the way: linear warm-up, then half a cosine.

    Exactly one of `steps` and `minutes` is given. With `minutes` the curve follows the clock, so
    that it ends in time on whatever machine; with `steps` a run is repeatable.
    """

    steps: int | None = None
    minutes: float | None = None
    warmup: int = 200

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        if not (self.steps or self.minutes or 0) > 0:
            raise ValueError("steps or minutes must be positive")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 1 or more when it is over."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate(self, step: int, seconds: float) -> float:
        """Factor in [0, 1] on the learning rate."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(step, seconds))))
        return min(1.0, (step + 1) / self.warmup) * cosine


class Stopwatch:
    """Seconds of training, those before a resume included."""

    def __init__(self, seconds: float = 0.0):
        self._zero = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._zero


class StopOnSignal:
    """Turns SIGTERM and Ctrl-C into a flag, so that the step and a checkpoint are finished."""

    def __init__(self):
        self.stopped = False

    def __enter__(self) -> "StopOnSignal":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, *_) -> None:
        self.stopped = True


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(name: Literal["auto", "bf16", "float32"], device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bf16" if fast else "float32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def fix_batch_norm(module: nn.Module) -> None:
    """Lets every BN use its stored statistics (mean 0 and variance 1 in a new network) for good.

    What remains of it is a scale and an offset for each channel: still the paper's network, but
    without the dependence on the batch that Lim et al. 2017 (EDSR) and Wang et al. 2018 (ESRGAN)
    found harmful in super-resolution.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


@torch.no_grad()
def validation_psnr(
    generator: Generator, images: PackedImages, *, count: int, side: int = 256
) -> float:
    """Mean PSNR-Y in dB over the middles of the first `count` held-out images.

    Args:
        generator: run in float32 in its inference form; not changed.
        images: held-out images.
        side: images are cut to at most this many pixels a side.
    """
    device = images.pixels.device
    network = InferenceGenerator(fold(generator)).to(device)
    total = 0.0
    for i in range(min(count, len(images))):
        hr = middle(images.image(i), side)
        sr = network(degrade(hr))
        total += psnr_y(sr, hr)
    return total / min(count, len(images))


def middle(image: Tensor, side: int) -> Tensor:
    """Cuts the middle out of (N, 3, H, W), at most `side` a side and a multiple of the scale."""
    height, width = (min(length, side) // SCALE * SCALE for length in image.shape[2:])
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width]
