"""SRGAN super-resolution: a photograph in, four times larger with believable detail out.

>>> from srgan import Upscaler, open_image, save_image
>>> upscaler = Upscaler()
>>> save_image(upscaler.upscale(open_image("photo.jpg")), "large.png")
"""

import os

# Read when torch loads libgomp. A thread that waits for the others spins, by default 300,000 times:
# where other programs want the processors too, it takes them from the thread that it waits for.
# Without effect where torch is imported already.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from srgan.errors import Cancelled, ImageError, SettingError, SRGANError, WeightsError
from srgan.generator import SCALE, Generator, GeneratorConfig
from srgan.image import open_image, save_image
from srgan.upscaler import Upscaler
from srgan.weights import load_weights, save_weights

__all__ = [
    "SCALE",
    "Cancelled",
    "Generator",
    "GeneratorConfig",
    "ImageError",
    "SRGANError",
    "SettingError",
    "Upscaler",
    "WeightsError",
    "load_weights",
    "open_image",
    "save_image",
    "save_weights",
]
