"""Makes a weights folder with its model card, ready for the Hub, from finished runs.

    python -m train.publish --out weights --srresnet runs/srresnet --srgan runs/srgan \\
        --data "what it was trained on" --hardware "what it was trained with"
    python -m train.evaluate --weights weights --vgg vgg19.safetensors --json results.json Set5 …
    python -m train.publish … --evaluation results.json
    hf upload user/srgan-x4 weights

The second call writes what was measured into `config.json` and the card. Without --srgan the SRGAN
weights are those of SRResNet, and config and card say so.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from srgan.errors import SRGANError
from srgan.weights import CONFIG_FILE, SRGAN_FILE, SRRESNET_FILE, load_generator, save_weights
from train import loop
from train.evaluate import LABELS, table

CARD_FILE = "README.md"
COMPARISON_FILE = "comparison.png"
#: Settings that say nothing about the weights.
_INCIDENTAL = {"data", "out", "init", "vgg", "device", "validate_every", "validation_images"}


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """What goes into the folder."""

    out: Path
    """The weights folder to write."""
    srresnet: Path
    """Run folder of stage 1."""
    srgan: Path | None = None
    """Run folder of stage 2."""
    detail: float = 1.0
    """Recommended detail, in [0, 1]."""
    evaluation: Path | None = None
    """What train.evaluate --json wrote for these very weights."""
    comparison: Path | None = None
    """A sheet made by train.evaluate --sheets, for the card."""
    data: str = "not recorded"
    """The training data, for the card."""
    hardware: str = "not recorded"
    """The machine, for the card."""
    notes: str = ""
    """What else it takes to know how the weights came about, for the card."""
    license: str = "mit"
    """Of the weights."""


def build(config: PublishConfig) -> None:
    """Writes the folder: both weights, `config.json`, the card.

    Raises:
        ValueError: a run folder lacks what is needed, or the evaluation is of other weights.
        SRGANError: a run's weights can't be read.
    """
    runs = {"srresnet": config.srresnet}
    if config.srgan is not None:
        runs["srgan"] = config.srgan
    srresnet = load_generator(config.srresnet / SRRESNET_FILE)
    srgan = load_generator(config.srgan / SRGAN_FILE) if config.srgan else srresnet
    save_weights(
        config.out,
        srresnet,
        srgan,
        adversarial=config.srgan is not None,
        detail=config.detail,
    )
    path = config.out / CONFIG_FILE
    contents = json.loads(path.read_text(encoding="utf-8"))
    if config.evaluation:
        contents["evaluation"] = _read_evaluation(config.evaluation, contents["files"])
    contents["training"] = {
        "data": config.data,
        "hardware": config.hardware,
        "notes": config.notes,
        **{stage: _describe(folder) for stage, folder in runs.items()},
    }
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    if config.comparison:
        shutil.copyfile(config.comparison, config.out / COMPARISON_FILE)
    picture = COMPARISON_FILE if (config.out / COMPARISON_FILE).exists() else None
    make_card(contents, config.license, picture).save(config.out / CARD_FILE)


def _read_evaluation(path: Path, files: dict) -> dict:
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["weights"]["checksums"] != {name: file["sha256"] for name, file in files.items()}:
        raise ValueError(f"{path} was measured with other weights: run train.evaluate again")
    return results["evaluation"]


def _describe(folder: Path) -> dict:
    """Settings and length of a run."""
    try:
        settings = json.loads((folder / loop.CONFIG_FILE).read_text(encoding="utf-8"))
        lines = (folder / loop.LOG_FILE).read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
    except (OSError, ValueError, IndexError) as exc:
        raise ValueError(f"{folder} is not the folder of a finished run: {exc}") from exc
    kept = {name: value for name, value in settings.items() if name not in _INCIDENTAL}
    return {"steps": last["step"], "seconds": last["seconds"], "settings": kept}


def make_card(config: dict, license: str, picture: str | None = None) -> ModelCard:
    """The model card of a weights folder.

    Args:
        config: the folder's `config.json`.
        license: of the weights, as the Hub names it.
        picture: file in the folder that compares low-res, results and original.
    """
    names = {"psnr_y": "PSNR-Y", "ssim_y": "SSIM-Y", "vgg19": "VGG19 feature distance"}
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="×4 super-resolution",
            dataset_type=dataset.lower(),
            dataset_name=f"{dataset}, {LABELS[network]}",
            metric_type=metric,
            metric_name=names[metric],
            metric_value=round(value, 4),
        )
        for dataset, networks in config["evaluation"].items()
        for network, metrics in networks.items()
        if network != "bicubic"
        for metric, value in metrics.items()
    ]
    data = ModelCardData(
        license=license,
        library_name="pytorch",
        pipeline_tag="image-to-image",
        tags=["super-resolution", "image-upscaling", "srgan", "srresnet"],
        model_name="SRGAN ×4",
        eval_results=results or None,
    )
    if config["adversarial"]:
        state = (
            f"`{SRRESNET_FILE}` was trained on pixel error and is faithful; `{SRGAN_FILE}` was "
            f"then trained against a discriminator and adds texture. Their parameters can be "
            f"interpolated; the recommended detail is {config['detail']:g}."
        )
    else:
        state = (
            f"**The adversarial stage has not been run yet:** `{SRGAN_FILE}` holds the same "
            f"weights as `{SRRESNET_FILE}`, trained on pixel error alone."
        )
    training = config["training"]
    stages = "\n".join(
        f"- {LABELS[stage]}: {training[stage]['steps']:,} steps in "
        f"{training[stage]['seconds'] / 60:.0f} minutes, with "
        + ", ".join(f"{k} {v}" for k, v in training[stage]["settings"].items() if v is not None)
        for stage in ("srresnet", "srgan")
        if stage in training
    )
    shown = f"\n![Low-res, bicubic, network, original]({picture})\n" if picture else ""
    notes = f"\n- {training['notes']}" if training["notes"] else ""
    evaluation = table(config["evaluation"]) if config["evaluation"] else "Not measured yet."
    architecture = config["architecture"]
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# SRGAN ×4

Enlarges photographs four times in each direction. The generator of Ledig et al. 2017,
["Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network"](https://arxiv.org/abs/1609.04802): {architecture["blocks"]} residual blocks of
{architecture["channels"]} channels, as safetensors with their sha256 in `{CONFIG_FILE}`.

{state}
{shown}
## Use

```python
from PIL import Image
from srgan import Upscaler

large = Upscaler("user/srgan-x4").upscale(Image.open("photo.jpg"))  # or a folder with these files
large.save("large.png")
```

## Measured

{evaluation}

By `python -m train.evaluate`: images reduced with Pillow's bicubic, results rounded to 8 bits,
Y channel of BT.601, 4 border pixels cut off, SSIM with an 11×11 Gaussian window; the VGG19 feature
distance is made like LPIPS but not calibrated (smaller is better). The paper's SSIM is of another
implementation.

## Training

- Data: {training["data"]}
- Hardware: {training["hardware"]}
{stages}{notes}

LR crops are Pillow-equal bicubic reductions, rounded to 8 bits, of random crops, flipped and
transposed at random. Adam, linear warm-up, cosine to zero; the weights are a moving average.

## Intended use and limits

For enlarging clean photographs. What the network adds is plausible, not true: don't use it to read
number plates, faces or medical images. It was trained on bicubic reduction, so JPEG blocks, noise
and blur of the input are enlarged with everything else.
"""
    )


def main() -> int:
    try:
        build(tyro.cli(PublishConfig, description=__doc__))
    except (ValueError, OSError, SRGANError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
