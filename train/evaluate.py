"""Measures weights on benchmark images against bicubic enlargement and the paper.

    python -m train.evaluate --weights weights --vgg vgg19.safetensors Set5 Set14 BSD100

Each image is cut to a multiple of 4, reduced with Pillow's bicubic, enlarged, rounded to 8 bits and
compared with the original: PSNR and SSIM on the Y channel with 4 border pixels cut off
(`srgan.metrics`), and a distance in VGG19's features (`train.metrics`).
"""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from tqdm import tqdm

from srgan.errors import SRGANError
from srgan.image import (
    INPUT_SUFFIXES,
    crop_to_scale,
    enlarge_bicubic,
    enlarge_nearest,
    open_image,
    shrink,
    to_tensor,
)
from srgan.metrics import psnr_y, ssim_y
from srgan.upscaler import Upscaler
from train.metrics import feature_distances
from train.vgg import TORCHVISION, VGG19, VGGError

logger = logging.getLogger(__name__)

#: Ledig et al. 2017, table 2: PSNR-Y in dB and SSIM-Y (of another implementation than ours).
PAPER = {
    "Set5": {"bicubic": (28.43, 0.8211), "srresnet": (32.05, 0.9019), "srgan": (29.40, 0.8472)},
    "Set14": {"bicubic": (25.99, 0.7486), "srresnet": (28.49, 0.8184), "srgan": (26.02, 0.7397)},
    "BSD100": {"bicubic": (25.94, 0.6935), "srresnet": (27.58, 0.7620), "srgan": (25.16, 0.6688)},
}
#: Name of a network in the results -> in tables and on the card.
LABELS = {"bicubic": "bicubic", "srresnet": "SRResNet", "srgan": "SRGAN"}
MAX_PIXELS = 2**26  # of a benchmark image; the limits on users' photos don't apply


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure."""

    datasets: Annotated[list[Path], tyro.conf.Positional]
    """Folders of high-res images; each folder's name is its name in the tables."""
    weights: str = "bundled"
    """bundled, a weights folder, a .safetensors file, or user/repo[@revision] on the Hub."""
    vgg: str = TORCHVISION
    """VGG19 for the feature distance: a .safetensors file, torchvision (its download), or none."""
    json: Path | None = None
    """Where to write the results."""
    sheets: Path | None = None
    """Folder for comparison sheets: low-res, bicubic, SRResNet, SRGAN if there is one, original."""
    sheet_crop: int = 160
    """Side of the pieces on the sheets in HR pixels."""
    device: str | None = None
    """cpu, cuda …; by default the fastest there is."""


def evaluate(config: EvaluateConfig) -> dict:
    """Measures.

    Returns:
        `{"weights": …, "versions": …, "evaluation": {dataset: {network: {metric: mean}}},
        "images": {dataset: {file: {network: {metric: value}}}}}`; JSON-able.

    Raises:
        ValueError: a dataset holds no images or an image is too small.
        SRGANError: the weights or an image can't be read.
        VGGError: the VGG19 file can't be read.
    """
    upscaler = Upscaler(config.weights, config.device)
    vgg = _load_vgg(config.vgg)
    if vgg is not None:
        vgg.to(upscaler.device)
    images: dict[str, dict] = {}
    for folder in config.datasets:
        files = sorted(path for path in folder.glob("*") if path.suffix.lower() in INPUT_SUFFIXES)
        if not files:
            raise ValueError(f"{folder} holds no images")
        images[folder.name] = {}
        for path in tqdm(files, desc=folder.name, unit="image"):
            hr = crop_to_scale(open_image(path, max_pixels=MAX_PIXELS))
            results = dict(_enlarge(upscaler, shrink(hr)))
            images[folder.name][path.name] = _measure(results, hr, vgg, upscaler.device)
            if config.sheets:
                config.sheets.mkdir(parents=True, exist_ok=True)
                pieces = [enlarge_nearest(shrink(hr)), *results.values(), hr]
                sheet = comparison_sheet(pieces, config.sheet_crop)
                sheet.save(config.sheets / f"{folder.name}-{path.stem}.png")
    info = upscaler.info()
    return {
        "weights": {
            **{key: info[key] for key in ("model", "source", "revision", "adversarial")},
            "checksums": upscaler.weights.checksums,
        },
        "device": info["device"],
        "versions": {**info["versions"], "numpy": version("numpy")},
        "evaluation": {name: _means(results) for name, results in images.items()},
        "images": images,
    }


def _enlarge(upscaler: Upscaler, lr: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    yield "bicubic", enlarge_bicubic(lr)
    yield "srresnet", upscaler.upscale(lr, detail=0.0)
    if upscaler.weights.adversarial:  # else it is the same network
        yield "srgan", upscaler.upscale(lr, detail=1.0)


def _measure(
    results: dict[str, Image.Image], hr: Image.Image, vgg: VGG19 | None, device: torch.device
) -> dict[str, dict[str, float]]:
    original = to_tensor(hr)
    enlarged = {name: to_tensor(image) for name, image in results.items()}
    metrics = {
        name: {"psnr_y": psnr_y(sr, original), "ssim_y": ssim_y(sr, original)}
        for name, sr in enlarged.items()
    }
    if vgg is not None:
        images = (sr.to(device) for sr in enlarged.values())
        distances = feature_distances(vgg, images, original.to(device))
        for name, distance in zip(enlarged, distances, strict=True):
            metrics[name]["vgg19"] = distance
    return metrics


def _means(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    rows = list(results.values())
    return {
        network: {
            metric: sum(row[network][metric] for row in rows) / len(rows)
            for metric in rows[0][network]
        }
        for network in rows[0]
    }


def _load_vgg(source: str) -> VGG19 | None:
    if source == "none":
        return None
    try:
        return VGG19(source)
    except VGGError as exc:
        if source != TORCHVISION:
            raise
        logger.warning("%s; the feature distance is left out", exc)
        return None


def comparison_sheet(pieces: list[Image.Image], side: int) -> Image.Image:
    """The middles of images of one size, side by side."""
    side = min(side, *pieces[0].size)
    left, top = ((length - side) // 2 for length in pieces[0].size)
    gap = 4
    sheet = Image.new("RGB", (len(pieces) * (side + gap) - gap, side), "white")
    for i, piece in enumerate(pieces):
        crop = piece.convert("RGB").crop((left, top, left + side, top + side))
        sheet.paste(crop, (i * (side + gap), 0))
    return sheet


def table(evaluation: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as a Markdown table, the paper's beside ours."""
    lines = [
        "| dataset | network | PSNR-Y | SSIM-Y | VGG19 distance | paper's PSNR | paper's SSIM |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for dataset, networks in evaluation.items():
        for network, metrics in networks.items():
            distance = f"{metrics['vgg19']:.4f}" if "vgg19" in metrics else "–"
            psnr, ssim = PAPER.get(dataset, {}).get(network, (None, None))
            paper = f"{psnr:.2f} | {ssim:.4f}" if psnr else "– | –"
            lines.append(
                f"| {dataset} | {LABELS[network]} | {metrics['psnr_y']:.2f} "
                f"| {metrics['ssim_y']:.4f} | {distance} | {paper} |"
            )
    return "\n".join(lines)


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = tyro.cli(EvaluateConfig, description=__doc__)
    try:
        results = evaluate(config)
        if config.json:
            config.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, SRGANError, VGGError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(table(results["evaluation"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
