"""Measures weights on benchmark images against bicubic enlargement and the paper.

    python -m train.evaluate --weights weights --vgg vgg19.safetensors Set5 Set14 BSD100

Each image is cut to a multiple of 4, reduced with Pillow's bicubic, enlarged, rounded to 8 bits and
compared with the original: PSNR and SSIM on the Y channel with 4 border pixels cut off
(`srgan.metrics`), a distance in VGG19's features and, with --lpips, LPIPS (`train.metrics`). A
second table shows artefacts: the colour shift of each dataset, and checkerboards and strokes along
the axes in its spectra.

With --degradation photo the images are blurred, made noisy and compressed too (`train.photograph`),
each as the seed says that is its place in its folder, and the weights for photographs join in.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image
from torchvision.transforms.functional import to_pil_image
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
from srgan.upscaler import Precision, Upscaler
from train.data import Degradation
from train.device import exact_float32
from train.metrics import (
    SPECTRUM_BLOCK,
    LPIPSError,
    LPIPSNet,
    checkerboard,
    color_shift,
    feature_distances,
    load_lpips,
    strokes,
)
from train.photograph import photograph
from train.vgg import TORCHVISION, VGG19, VGGError, identify

logger = logging.getLogger(__name__)

#: What the eye finds in texture that a network has made: name -> strength in dB.
PATTERNS = {"checkerboard": checkerboard, "strokes": strokes}
#: Ledig et al. 2017, table 2: PSNR-Y in dB and SSIM-Y (of another implementation than ours).
PAPER = {
    "Set5": {"bicubic": (28.43, 0.8211), "srresnet": (32.05, 0.9019), "srgan": (29.40, 0.8472)},
    "Set14": {"bicubic": (25.99, 0.7486), "srresnet": (28.49, 0.8184), "srgan": (26.02, 0.7397)},
    "BSD100": {"bicubic": (25.94, 0.6935), "srresnet": (27.58, 0.7620), "srgan": (25.16, 0.6688)},
}
#: Name of a network in the results -> in tables and on the card.
LABELS = {"bicubic": "bicubic", "srresnet": "SRResNet", "srgan": "SRGAN", "photo": "SRGAN photo"}
MAX_PIXELS = 2**26  # of a benchmark image; the limits on users' photos don't apply


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure."""

    datasets: Annotated[list[Path], tyro.conf.Positional]
    """Folders of high-res images; each folder's name is its name in the tables."""
    degradation: Degradation = "bicubic"
    """How they are reduced: bicubic, the literature's way, or photo, as users' photographs are."""
    weights: str = "bundled"
    """bundled, a weights folder, a .safetensors file, or user/repo[@revision] on the Hub."""
    vgg: str = TORCHVISION
    """VGG19 for the feature distance: a .safetensors file, torchvision (its download), or none."""
    lpips: LPIPSNet | Literal["none"] = "none"
    """Network of LPIPS, downloaded by torchvision; needs torchmetrics."""
    json: Path | None = None
    """Where to write the results."""
    sheets: Path | None = None
    """Folder for comparison sheets: low-res, the networks of the tables, original."""
    sheet_crop: int = 160
    """Side of the pieces on the sheets in HR pixels."""
    self_ensemble: bool = False
    """Take the mean over eight orientations of each image, as `Upscaler.upscale` can."""
    device: str | None = None
    """cpu, cuda …; by default the fastest there is."""
    precision: Precision = "float32"
    """In which the network is computed; auto is what Upscaler would choose."""


def evaluate(config: EvaluateConfig) -> dict:
    """Measures.

    Returns:
        `{"weights": …, "vgg": …, "versions": …, "evaluation": {dataset: {network: {metric: mean}}},
        "artefacts": {dataset: {network: {metric: value}}},
        "images": {dataset: {file: {network: {metric: value}}}}}`; JSON-able.

    Raises:
        ValueError: two datasets have the same name, one is no folder with images, an image is too
            small, or the device can't do the precision.
        SRGANError: the weights or an image can't be read.
        VGGError: the VGG19 file can't be read.
        LPIPSError: LPIPS can't be computed here.
    """
    for name, count in Counter(folder.name for folder in config.datasets).items():
        if count > 1:
            raise ValueError(f"{count} datasets are called {name}: rename their folders")
    files = {folder: _find_images(folder) for folder in config.datasets}
    exact_float32()
    upscaler = Upscaler(config.weights, config.device, precision=config.precision)
    vgg = _load_vgg(config.vgg)
    vgg_identity = None if vgg is None else identify(config.vgg)
    if vgg is not None:
        vgg.to(upscaler.device)
    lpips = None if config.lpips == "none" else load_lpips(config.lpips, upscaler.device)
    images: dict[str, dict] = {}
    artefacts: dict[str, dict] = {}
    for folder in config.datasets:
        dataset = folder.name + (", photo" if config.degradation == "photo" else "")
        dataset += ", self-ensemble" if config.self_ensemble else ""
        images[dataset] = {}
        traces = []
        for seed, path in enumerate(tqdm(files[folder], desc=dataset, unit="image")):
            hr = crop_to_scale(open_image(path, max_pixels=MAX_PIXELS))
            lr = shrink(hr)
            if config.degradation == "photo":
                pixels = photograph(to_tensor(hr), [seed])[0]
                lr = to_pil_image(pixels.mul(255).round().to(torch.uint8))
            results = dict(_enlarge(upscaler, lr, config))
            original = to_tensor(hr)
            enlarged = {name: to_tensor(image) for name, image in results.items()}
            images[dataset][path.name] = _measure(enlarged, original, vgg, lpips, upscaler.device)
            traces.append(_trace(enlarged, original))
            if config.sheets:
                config.sheets.mkdir(parents=True, exist_ok=True)
                pieces = [enlarge_nearest(lr), *results.values(), hr]
                sheet = comparison_sheet(pieces, config.sheet_crop)
                sheet.save(config.sheets / f"{dataset}-{path.stem}.png")
        artefacts[dataset] = _artefacts(traces)
    info = upscaler.info()
    return {
        "weights": {
            **{key: info[key] for key in ("model", "source", "revision", "adversarial")},
            "checksums": upscaler.weights.checksums,
        },
        "vgg": vgg_identity,
        "device": info["device"],
        "precision": info["precision"],
        "versions": {**info["versions"], "numpy": version("numpy")},
        "evaluation": {name: _means(results) for name, results in images.items()},
        "artefacts": artefacts,
        "images": images,
    }


def _enlarge(
    upscaler: Upscaler, lr: Image.Image, config: EvaluateConfig
) -> Iterator[tuple[str, Image.Image]]:
    upscale = partial(upscaler.upscale, lr, self_ensemble=config.self_ensemble)
    yield "bicubic", enlarge_bicubic(lr)
    yield "srresnet", upscale(detail=0.0)
    if upscaler.weights.adversarial:  # else it is the same network
        yield "srgan", upscale(detail=1.0)
    if config.degradation == "photo" and "photo" in upscaler.models:
        yield "photo", upscale(model="photo")


def _measure(
    enlarged: dict[str, torch.Tensor],
    original: torch.Tensor,
    vgg: VGG19 | None,
    lpips: Callable[[torch.Tensor, torch.Tensor], float] | None,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    metrics = {
        name: {"psnr_y": psnr_y(sr, original), "ssim_y": ssim_y(sr, original)}
        for name, sr in enlarged.items()
    }
    if vgg is not None:
        images = (sr.to(device) for sr in enlarged.values())
        distances = feature_distances(vgg, images, original.to(device))
        for name, distance in zip(enlarged, distances, strict=True):
            metrics[name]["vgg19"] = distance
    if lpips is not None:
        for name, sr in enlarged.items():
            metrics[name]["lpips"] = lpips(sr, original)
    return metrics


def _trace(
    enlarged: dict[str, torch.Tensor], original: torch.Tensor
) -> dict[str, tuple[list[float], dict[str, float]]]:
    """For each result its colour shift, and how much more of each pattern it has than the original;
    no patterns for images too small to have a spectrum."""
    patterns = PATTERNS if min(original.shape[2:]) >= SPECTRUM_BLOCK else {}
    own = {name: strength(original) for name, strength in patterns.items()}
    return {
        network: (
            color_shift(sr, original),
            {name: strength(sr) - own[name] for name, strength in patterns.items()},
        )
        for network, sr in enlarged.items()
    }


def _artefacts(traces: list[dict]) -> dict[str, dict[str, float]]:
    """Over a dataset: the largest mean error of a channel in 1/255, the mean patterns in dB."""
    summary = {}
    for network in traces[0]:
        shifts, patterns = zip(*(trace[network] for trace in traces), strict=True)
        shift = torch.tensor(shifts).mean(0).abs().max().item()
        known = [found for found in patterns if found]
        summary[network] = {"color_shift": shift} | {
            name: sum(found[name] for found in known) / len(known) for name in PATTERNS if known
        }
    return summary


def _means(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    rows = list(results.values())
    return {
        network: {
            metric: sum(row[network][metric] for row in rows) / len(rows)
            for metric in rows[0][network]
        }
        for network in rows[0]
    }


def _find_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted; raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; a dataset is one with its original images")
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in INPUT_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images")
    return files


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


def artefact_table(artefacts: dict[str, dict[str, dict[str, float]]]) -> str:
    """Colour shifts and patterns as a Markdown table."""
    titles = ["dataset", "network", "colour shift, 1/255"]
    titles += [f"{name} over the original, dB" for name in PATTERNS]
    lines = [_row(titles), _row(["---", "---", *["---:"] * (len(titles) - 2)])]
    for dataset, networks in artefacts.items():
        for network, metrics in networks.items():
            shift = f"{metrics['color_shift']:.2f}"
            strengths = [f"{metrics[n]:.1f}" if n in metrics else "–" for n in PATTERNS]
            lines.append(_row([dataset, LABELS[network], shift, *strengths]))
    return "\n".join(lines)


def table(evaluation: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as a Markdown table, the paper's beside ours."""
    measured = {key for row in evaluation.values() for metrics in row.values() for key in metrics}
    perceptual = {"vgg19": "VGG19 distance", "lpips": "LPIPS"}
    columns = [key for key in perceptual if key in measured or key == "vgg19"]
    titles = ["dataset", "network", "PSNR-Y", "SSIM-Y", *(perceptual[key] for key in columns)]
    titles += ["paper's PSNR", "paper's SSIM"]
    lines = [_row(titles), _row(["---"] * 2 + ["---:"] * (len(titles) - 2))]
    for dataset, networks in evaluation.items():
        for network, metrics in networks.items():
            cells = [dataset, LABELS[network]]
            cells += [f"{metrics['psnr_y']:.2f}", f"{metrics['ssim_y']:.4f}"]
            cells += [f"{metrics[key]:.4f}" if key in metrics else "–" for key in columns]
            psnr, ssim = PAPER.get(dataset, {}).get(network, (None, None))
            cells += [f"{psnr:.2f}", f"{ssim:.4f}"] if psnr else ["–", "–"]
            lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = tyro.cli(EvaluateConfig, description=__doc__)
    try:
        results = evaluate(config)
        if config.json:
            config.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, SRGANError, VGGError, LPIPSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(table(results["evaluation"]))
    print()
    print(artefact_table(results["artefacts"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
