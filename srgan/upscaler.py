"""PIL image in, PIL image out, four times as large."""

import logging
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version

import torch
from PIL import Image
from torch import Tensor

from srgan.errors import ImageError
from srgan.generator import SCALE, InferenceGenerator, fold
from srgan.image import check_size, default_max_bytes, default_max_pixels, map_pixels
from srgan.tiling import enlarge_tiled
from srgan.weights import load_weights

logger = logging.getLogger(__name__)

#: Networks of different detail that are kept ready, 6 MB each.
CACHED_NETWORKS = 4


class Upscaler:
    """Enlarges images ×4 with SRGAN. Calls share nothing, so threads may share an Upscaler.

    Args:
        weights: `bundled`, a weights folder or .safetensors file, or `user/repo[@revision]` on the
            Hugging Face Hub; None for SRGAN_WEIGHTS or the default (`srgan.weights`).
        device: where to compute; None takes CUDA, else MPS, else the CPU.
        tile: largest side of a tile in low-res pixels, halo not included; smaller tiles take less
            memory and, below about 128, much more time; the result is the same. None chooses.
        max_pixels: largest image taken; None for SRGAN_MAX_PIXELS or the default.
        fallback: use the bundled weights, with a notice, where `weights` can't be had.

    Attributes:
        default_detail: the detail that the weights recommend.
        device: torch.device in use.
        max_pixels: see above.
        weights: the `srgan.weights.Weights` in use.
        notices: what a user should know of these weights, in whole sentences.

    Raises:
        WeightsError: the weights can't be found, read or trusted.
        ValueError: tile is not positive, or the device doesn't exist.
    """

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        *,
        tile: int | None = None,
        max_pixels: int | None = None,
        fallback: bool = False,
    ):
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}")
        self.device = _choose_device(device)
        self.max_pixels = default_max_pixels() if max_pixels is None else max_pixels
        self._body_tile, self._tail_tile = (512, 64) if self.device.type == "cpu" else (1024, 256)
        if tile is not None:
            self._body_tile, self._tail_tile = tile, min(tile, self._tail_tile)
        self.weights = load_weights(weights, fallback=fallback)
        self.default_detail = self.weights.detail
        self.notices = list(self.weights.notices)
        self._faithful, self._textured = fold(self.weights.srresnet), fold(self.weights.srgan)
        self._networks: OrderedDict[float, InferenceGenerator] = OrderedDict()
        self._lock = threading.Lock()  # of _networks
        # Now rather than at the first image: ZeroGPU moves to its GPU what is there at the start.
        self._network(self.default_detail)
        logger.info("weights %s on %s", self.weights.source, self.device)

    def upscale(
        self,
        image: Image.Image,
        detail: float | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Image.Image:
        """Enlarges an image to exactly 4× each side.

        Transparency, 16-bit grey, colour profile and EXIF are kept (`srgan.image.map_pixels`).

        Args:
            image: of any mode; not changed.
            detail: 0 for faithful (SRResNet) … 1 for textured (SRGAN); between them the parameters
                of the two networks are interpolated (Wang et al. 2018, ESRGAN, §3.4). None takes
                `default_detail`.
            progress: called often, on this thread, with the share of the work that is done, in
                (0, 1]. What it raises, `srgan.Cancelled` say, ends the work and is passed on.

        Raises:
            ImageError: the image is empty, too large, or needs more memory than there is.
            ValueError: detail is outside [0, 1].
        """
        detail = self.default_detail if detail is None else float(detail)
        if not 0 <= detail <= 1:
            raise ValueError(f"detail must be in [0, 1], got {detail}")
        check_size(image, self.max_pixels)
        network = self._network(detail)

        def enlarge(lr: Tensor) -> Tensor:
            return enlarge_tiled(
                network,
                lr.to(self.device),
                body_tile=self._body_tile,
                tail_tile=self._tail_tile,
                progress=progress,
            )

        try:
            return map_pixels(image, enlarge)
        except (MemoryError, RuntimeError) as exc:
            if not _means_out_of_memory(exc):
                raise
            raise ImageError(
                f"Not enough memory on {self.device} for {image.width} × {image.height} pixels. "
                "Use a smaller tile or a smaller image."
            ) from exc

    def _network(self, detail: float) -> InferenceGenerator:
        with self._lock:
            if detail not in self._networks:
                state = {
                    name: torch.lerp(value, self._textured[name], detail)
                    for name, value in self._faithful.items()
                }
                self._networks[detail] = InferenceGenerator(state).to(self.device)
                if len(self._networks) > CACHED_NETWORKS:
                    self._networks.popitem(last=False)
            self._networks.move_to_end(detail)
            return self._networks[detail]

    def info(self) -> dict:
        """What is running: JSON-able, for `/info` and for bug reports."""
        return {
            "model": f"srgan-x{SCALE}",
            "source": self.weights.source,
            "revision": self.weights.revision,
            "adversarial": self.weights.adversarial,
            "parameters": sum(p.numel() for p in self.weights.srgan.parameters()),
            "scale": SCALE,
            "device": str(self.device),
            "default_detail": self.default_detail,
            "limits": {"max_pixels": self.max_pixels, "max_bytes": default_max_bytes()},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "pillow", "safetensors")},
            },
            "notices": list(self.notices),
        }


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise ValueError(f"device {device} is not available here: {exc}") from exc
    return device


def _means_out_of_memory(exc: MemoryError | RuntimeError) -> bool:
    # PyTorch reports a lack of main memory as a plain RuntimeError.
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(exc, MemoryError) or any(phrase in str(exc) for phrase in words)
