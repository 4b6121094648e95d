"""PIL image in, PIL image out, four times as large."""

import logging
import math
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from srgan import int8, winograd
from srgan.back_projection import back_project
from srgan.errors import ImageError, SettingError
from srgan.generator import SCALE, InferenceGenerator, fold
from srgan.image import (
    check_size,
    default_max_bytes,
    default_max_pixels,
    map_pixels,
    open_image,
    to_tensor,
)
from srgan.tiling import enlarge_tiled
from srgan.weights import load_weights

logger = logging.getLogger(__name__)

#: clean is for sharp originals, photo for JPEGs with blocks, noise or slight blur.
Model = Literal["clean", "photo"]
Precision = Literal["auto", "float32", "float16", "int8"]
PRECISION_VARIABLE = "SRGAN_PRECISION"
#: Photographs by which the ranges of int8 are measured, and the side that is cut out of them.
CALIBRATION_FOLDER = Path(__file__).resolve().parent.parent / "examples"
CALIBRATION_SIDE = 48
#: `auto` wants int8 to be this close to float32 in each calibration image, in dB of PSNR: the
#: bundled weights, 48.1 dB at worst, lose less than 0.05 dB of PSNR on Set5, Set14 and BSD100.
LEAST_LIKENESS = 47.0
#: Of a picture: turned by quarters, mirrored or not.
ORIENTATIONS = 8
#: No tile is made smaller than this for want of memory.
LEAST_TILE = 32
#: Networks of different model or detail that are kept ready, 6 MB each.
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
        precision: float32, which CUDA computes as TF32 unless torch is told otherwise; float16, on
            a GPU; int8, on a CPU that is fast at it (`srgan.int8`); or auto: float16 on CUDA, int8
            on a CPU if it hardly differs with these weights, else float32. None for SRGAN_PRECISION
            or auto.

    Attributes:
        default_detail: the detail that the weights recommend.
        device: torch.device in use.
        precision: of clean, never auto; where it is int8, photo may still be in float32.
        max_pixels: see above.
        models: those that the weights have, ("clean",) or ("clean", "photo").
        weights: the `srgan.weights.Weights` in use.
        notices: what a user should know of these weights, in whole sentences.

    Raises:
        WeightsError: the weights can't be found, read or trusted.
        SettingError: tile is not positive, or the device doesn't exist or can't do the precision.
    """

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        *,
        tile: int | None = None,
        max_pixels: int | None = None,
        fallback: bool = False,
        precision: Precision | None = None,
    ):
        if tile is not None and tile < 1:
            raise SettingError(f"tile must be at least 1, got {tile}")
        precision = precision or os.environ.get(PRECISION_VARIABLE) or "auto"
        if precision not in get_args(Precision):
            raise SettingError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
            )
        self.device = _choose_device(device)
        self.precision = _choose_precision(precision, self.device)
        self.max_pixels = default_max_pixels() if max_pixels is None else max_pixels
        self._body_tile, self._tail_tile = (944, 64) if self.device.type == "cpu" else (1024, 256)
        if tile is not None:
            self._body_tile, self._tail_tile = tile, min(tile, self._tail_tile)
        self.weights = load_weights(weights, fallback=fallback)
        self.default_detail = self.weights.detail
        self.notices = list(self.weights.notices)
        # The networks at the ends of detail.
        self._ends = {"clean": [fold(self.weights.srresnet)]}
        if self.weights.adversarial:
            self._ends["clean"].append(fold(self.weights.srgan))
        if self.weights.photo is not None:
            self._ends["photo"] = [fold(self.weights.photo)]
        self.models: tuple[Model, ...] = tuple(self._ends)
        self._networks: OrderedDict[tuple[Model, float], InferenceGenerator] = OrderedDict()
        self._least_likeness = LEAST_LIKENESS if precision == "auto" else -math.inf
        self._ranges: dict[Model, int8.Ranges | None] = {}
        self._lock = threading.Lock()  # of _networks and _ranges
        if self.precision == "int8":
            self._ranges["clean"] = self._calibrate("clean")
            if self._ranges["clean"] is None:
                self.precision = "float32"
        # Now rather than at the first image: ZeroGPU moves to its GPU what is there at the start.
        # On a CPU photo waits for its first image, because to calibrate it takes seconds.
        for model in self.models[:1] if self.device.type == "cpu" else self.models:
            self._network(model, self.default_detail)
        logger.info("weights %s on %s, %s", self.weights.source, self.device, self.precision)

    def check(self, detail: float | None = None, model: Model = "clean") -> None:
        """Does nothing, but for what `upscale` would refuse.

        Raises:
            SettingError: detail is outside [0, 1], or the weights don't have the model.
        """
        if detail is not None and not 0 <= detail <= 1:
            raise SettingError(f"detail must be in [0, 1], got {detail}")
        if model not in self.models:
            raise SettingError(
                f"model must be one that the weights have ({', '.join(self.models)}), got {model!r}"
            )

    def upscale(
        self,
        image: Image.Image,
        detail: float | None = None,
        progress: Callable[[float], None] | None = None,
        *,
        model: Model = "clean",
        self_ensemble: bool = False,
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
            model: one of `models`. photo, for JPEGs with blocks, noise or slight blur, has one look
                only: `detail` has no effect.
            self_ensemble: take the mean over the image's eight orientations (Timofte et al. 2016,
                "Seven ways to improve example-based single image super resolution", §3.5): nearer
                to the original and smoother, in eight times the time.

        Raises:
            ImageError: the image is empty, too large, or needs more memory than there is.
            SettingError: as `check`.
        """
        check_size(image, self.max_pixels)
        try:
            enlarge = partial(
                self.enlarge,
                detail=detail,
                progress=progress,
                model=model,
                self_ensemble=self_ensemble,
            )
            return map_pixels(image, enlarge)
        except (MemoryError, RuntimeError) as exc:
            if not _means_out_of_memory(exc):
                raise
            raise ImageError(
                f"Not enough memory on {self.device} for {image.width} × {image.height} pixels. "
                "Use a smaller image."
            ) from exc

    def enlarge(
        self,
        lr: Tensor,
        detail: float | None = None,
        progress: Callable[[float], None] | None = None,
        *,
        model: Model = "clean",
        self_ensemble: bool = False,
    ) -> Tensor:
        """What `upscale` does to the pixels, in smaller tiles where memory doesn't suffice.

        Args:
            lr: (1, 3, h, w), RGB float32 in [0, 1].
            detail, progress, model, self_ensemble: as for `upscale`; where memory lacked, progress
                goes back.

        Returns:
            (1, 3, 4h, 4w) on `device`, not clamped; of clean the network's result after
            `srgan.back_projection`.

        Raises:
            SettingError: as `check`.
            MemoryError, RuntimeError: there is not enough memory for the smallest tiles.
        """
        self.check(detail, model)
        detail = self.default_detail if detail is None else float(detail)
        network, lr = self._network(model, detail), lr.to(self.device)
        enlarge = self._enlarge_in_all_orientations if self_ensemble else self._enlarge
        sr = enlarge(network, lr, progress)
        # What photo's results lack of the low-res image is its noise and blocks.
        if model == "clean":
            back_project(sr, lr)
        return sr

    def _enlarge_in_all_orientations(
        self,
        network: InferenceGenerator,
        lr: Tensor,
        progress: Callable[[float], None] | None,
    ) -> Tensor:
        mean = lr.new_zeros(1, 3, *(SCALE * side for side in lr.shape[2:]))
        for i, (mirrored, turns) in enumerate(product((False, True), range(4))):

            def report(share: float, done: int = i) -> None:
                if progress is not None:
                    progress((done + share) / ORIENTATIONS)

            seen = (lr.flip(3) if mirrored else lr).rot90(turns, (2, 3))
            sr = self._enlarge(network, seen, report).rot90(-turns, (2, 3))
            mean.add_(sr.flip(3) if mirrored else sr, alpha=1 / ORIENTATIONS)
        return mean

    def _enlarge(
        self,
        network: InferenceGenerator,
        lr: Tensor,
        progress: Callable[[float], None] | None,
    ) -> Tensor:
        body_tile, tail_tile = self._body_tile, self._tail_tile
        while True:
            try:
                return enlarge_tiled(
                    network, lr, body_tile=body_tile, tail_tile=tail_tile, progress=progress
                )
            except (MemoryError, RuntimeError) as exc:
                if not _means_out_of_memory(exc) or body_tile <= LEAST_TILE:
                    raise
            # Out here the failed attempt holds no memory any more.
            body_tile = max(LEAST_TILE, min(body_tile, max(lr.shape[2:])) // 2)
            tail_tile = min(tail_tile, body_tile)
            logger.warning("not enough memory: again with tiles of %d pixels", body_tile)

    def _calibrate(self, model: Model) -> int8.Ranges | None:
        """Measures the ranges for int8 at all ends of detail.

        Returns:
            The ranges, or None where float32 is to be used.

        Raises:
            SettingError: int8 was asked for, and there are no photographs to measure with.
        """
        images = _calibration_images()
        if not images and self._least_likeness == -math.inf:
            raise SettingError(f"precision int8 needs the photographs of {CALIBRATION_FOLDER}")
        ranges, likeness = None, -math.inf
        if images:
            ranges, likeness = int8.calibrate(
                self._ends[model], images, back_projected=model == "clean"
            )
        if likeness < self._least_likeness:
            logger.info("%s: int8 is %.1f dB from float32, which is used", model, likeness)
            return None
        return ranges

    def _network(self, model: Model, detail: float) -> InferenceGenerator:
        faithful, textured = self._ends[model][0], self._ends[model][-1]
        if textured is faithful:
            detail = 0.0  # one network for all
        with self._lock:
            if (model, detail) not in self._networks:
                state = {
                    name: torch.lerp(value, textured[name], detail)
                    for name, value in faithful.items()
                }
                self._networks[model, detail] = self._make(model, state)
                if len(self._networks) > CACHED_NETWORKS:
                    self._networks.popitem(last=False)
            self._networks.move_to_end((model, detail))
            return self._networks[model, detail]

    def _make(self, model: Model, state: dict[str, Tensor]) -> InferenceGenerator:
        if self.precision == "int8":
            if model not in self._ranges:
                self._ranges[model] = self._calibrate(model)
            ranges = self._ranges[model]
            if ranges is not None:
                return int8.Int8Generator(state, ranges)
        if self.device.type == "cpu" and winograd.pays():
            return winograd.WinogradGenerator(state)
        dtype = torch.float16 if self.precision == "float16" else torch.float32
        # On MPS torch has misread the strides of channels_last (pytorch/pytorch#180984).
        memory = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        return InferenceGenerator(state, memory).to(self.device, dtype)

    def info(self) -> dict:
        """What is running: JSON-able, for `/info` and for bug reports."""
        return {
            "model": f"srgan-x{SCALE}",
            "models": list(self.models),
            "source": self.weights.source,
            "revision": self.weights.revision,
            "adversarial": self.weights.adversarial,
            "parameters": sum(p.numel() for p in self.weights.srgan.parameters()),
            "scale": SCALE,
            "device": str(self.device),
            "precision": self.precision,
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
        raise SettingError(f"device {device} is not available here: {exc}") from exc
    return device


def _choose_precision(precision: Precision, device: torch.device) -> Precision:
    if precision == "auto":
        if device.type == "cuda":
            return "float16"
        return "int8" if device.type == "cpu" and int8.available() else "float32"
    if precision == "int8" and not (device.type == "cpu" and int8.available()):
        raise SettingError("precision int8 needs an x86 CPU with VNNI; use auto")
    if precision == "float16" and device.type == "cpu":
        raise SettingError("precision float16 needs a GPU; use auto")
    return precision


def _calibration_images() -> list[Tensor]:
    """Middles of photographs, as they are and, for the ranges of drawings and text, in hard
    contrast."""
    images = []
    for path in sorted(CALIBRATION_FOLDER.glob("*.png")):
        image = open_image(path)
        left, top = ((side - CALIBRATION_SIDE) // 2 for side in image.size)
        middle = image.crop((left, top, left + CALIBRATION_SIDE, top + CALIBRATION_SIDE))
        pixels = to_tensor(middle)
        images += [pixels, (2 * pixels - 0.5).clamp(0, 1)]
    return images


def _means_out_of_memory(exc: MemoryError | RuntimeError) -> bool:
    # PyTorch reports a lack of main memory, and cuDNN's of the GPU's, as a plain RuntimeError.
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "could not create a memory object",
        "bad_alloc",
        "ALLOC_FAILED",
        "unable to find an engine to execute this computation",
    )
    return isinstance(exc, MemoryError) or any(phrase in str(exc) for phrase in words)
