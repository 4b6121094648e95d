"""Makes a weights folder with its model card from finished runs, and puts it on the Hub.

    python -m train.publish build --out weights --srresnet runs/srresnet --srgan runs/srgan \\
        --data "what it was trained on" --hardware "what it was trained with"
    python -m train.evaluate --weights weights --vgg vgg19.safetensors --json results.json Set5 …
    python -m train.publish build … --evaluations results.json
    python -m train.publish push weights user/srgan-x4 --dry-run
    python -m train.publish push weights user/srgan-x4

The second `build` writes what was measured into `config.json` and the card. Without --srgan the
SRGAN weights are those of SRResNet, and config and card say so; with --photo the folder also holds
weights for photographs (`train.photograph`). `push` takes any weights folder,
checks it, and makes one commit of what differs, with the token in HF_TOKEN or that of
`hf auth login`.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from srgan.errors import SRGANError
from srgan.weights import (
    CONFIG_FILE,
    PHOTO_FILE,
    SRGAN_FILE,
    SRRESNET_FILE,
    load_generator,
    load_weights,
    save_weights,
)
from train import loop
from train.evaluate import LABELS, table
from train.push import CARD_FILE, MAIN, SAME, Pushed, PushError, push

COMPARISON_FILE = "comparison.png"
#: What a weights folder consists of; other files in it stay where they are.
FILES = (CARD_FILE, COMPARISON_FILE, CONFIG_FILE, SRRESNET_FILE, SRGAN_FILE, PHOTO_FILE)
#: Stands in a card for the repository, until it is pushed to one.
EXAMPLE_NAME = "user/srgan-x4"
#: Of the commits, and by it a card is known again as not edited since.
TITLE = "Weights, config and card by train.publish"
#: Settings that say nothing about the weights.
_INCIDENTAL = {
    *("data", "out", "init", "vgg", "device", "validate_every", "validation_images"),
    *("push_to", "push_every"),
}


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Makes the folder, or makes it again."""

    out: Path
    """The weights folder to write."""
    srresnet: Path
    """Run folder of stage 1."""
    srgan: Path | None = None
    """Run folder of stage 2."""
    photo: Path | None = None
    """Run folder of a stage 2 with --degradation photo."""
    detail: float = 1.0
    """Recommended detail, in [0, 1]."""
    evaluations: tuple[Path, ...] = ()
    """What train.evaluate --json wrote for these very weights: a file for each run of it."""
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


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Puts a weights folder on the Hub."""

    folder: tyro.conf.Positional[Path]
    """The weights folder."""
    repository: tyro.conf.Positional[str]
    """user/repo on the Hub; made if it doesn't exist."""
    revision: str = MAIN
    """Branch; a new one starts where the main branch is."""
    private: bool = False
    """Make a new repository private, and refuse one that is public."""
    tag: str | None = None
    """Name to give to the result, v1 say."""
    dry_run: bool = False
    """Show what would go up, and write nothing."""
    force: bool = False
    """Overwrite a README.md that was edited on the Hub."""


def build(config: BuildConfig) -> None:
    """Writes the folder: both weights, `config.json`, the card.

    Raises:
        ValueError: a run folder lacks what is needed, or the evaluation is of other weights.
        SRGANError: a run's weights can't be read.
    """
    runs = {"srresnet": config.srresnet}
    if config.srgan is not None:
        runs["srgan"] = config.srgan
    if config.photo is not None:
        runs["photo"] = config.photo
    srresnet = load_generator(config.srresnet / SRRESNET_FILE)
    srgan = load_generator(config.srgan / SRGAN_FILE) if config.srgan else srresnet
    save_weights(
        config.out,
        srresnet,
        srgan,
        photo=load_generator(config.photo / SRGAN_FILE) if config.photo else None,
        adversarial=config.srgan is not None,
        detail=config.detail,
    )
    path = config.out / CONFIG_FILE
    contents = json.loads(path.read_text(encoding="utf-8"))
    for evaluation in config.evaluations:
        contents["evaluation"] |= _read_evaluation(evaluation, contents["files"])
    contents["training"] = {
        "data": config.data,
        "hardware": config.hardware,
        "notes": config.notes,
        **{stage: _describe(folder, stage) for stage, folder in runs.items()},
    }
    path.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if config.comparison:
        shutil.copyfile(config.comparison, config.out / COMPARISON_FILE)
    picture = COMPARISON_FILE if (config.out / COMPARISON_FILE).exists() else None
    make_card(contents, config.license, picture).save(config.out / CARD_FILE)


def _read_evaluation(path: Path, files: dict) -> dict:
    results = json.loads(path.read_text(encoding="utf-8"))
    measured = results["weights"]["checksums"]  # perhaps before there were weights for photographs
    have = {name: file["sha256"] for name, file in files.items()}
    if not measured or not measured.items() <= have.items():
        raise ValueError(f"{path} was measured with other weights: run train.evaluate again")
    return results["evaluation"]


def _describe(folder: Path, stage: str) -> dict:
    """Settings and length of a run, and the step of its weights where they tell it."""
    with safe_open(folder / (SRRESNET_FILE if stage == "srresnet" else SRGAN_FILE), "pt") as file:
        step = (file.metadata() or {}).get("step")
    try:
        settings = json.loads((folder / loop.CONFIG_FILE).read_text(encoding="utf-8"))
        lines = (folder / loop.LOG_FILE).read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
    except (OSError, ValueError, IndexError) as exc:
        raise ValueError(f"{folder} is not the folder of a finished run: {exc}") from exc
    kept = {name: value for name, value in settings.items() if name not in _INCIDENTAL}
    return {
        "steps": last["step"],
        **({"weights_step": int(step)} if step else {}),
        "seconds": last["seconds"],
        "settings": kept,
    }


def make_card(config: dict, license: str, picture: str | None = None) -> ModelCard:
    """The model card of a weights folder.

    Args:
        config: the folder's `config.json`.
        license: of the weights, as the Hub names it.
        picture: file in the folder that compares low-res, results and original.
    """
    names = {
        "psnr_y": "PSNR-Y",
        "ssim_y": "SSIM-Y",
        "vgg19": "VGG19 feature distance",
        "lpips": "LPIPS",
    }
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="×4 super-resolution",
            dataset_type=dataset.lower().replace(", ", "-"),
            dataset_name=f"{dataset}, {LABELS[network]}",
            dataset_config=network,  # else the second network would be entered under the first
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
    photo = PHOTO_FILE in config["files"]
    if photo:
        state += (
            f" `{PHOTO_FILE}` is for photographs as cameras and websites give them: trained on "
            "reductions with blur, noise and JPEG, it removes those."
        )
    training = config["training"]
    stages = "\n".join(
        f"- {LABELS[stage]}: {_summary(training[stage])}"
        for stage in ("srresnet", "srgan", "photo")
        if stage in training
    )
    networks = "SRResNet, SRGAN" if config["adversarial"] else "SRResNet"
    shown = f"\n![Low-res, bicubic, {networks}, original]({picture})\n" if picture else ""
    notes = f"\n- {training['notes']}" if training["notes"] else ""
    evaluation = table(config["evaluation"]) if config["evaluation"] else "Not measured yet."
    architecture = config["architecture"]
    limits = (
        "The clean weights enlarge JPEG blocks, noise and blur with everything else; those for "
        "photographs smooth fine texture away with them."
        if photo
        else "It was trained on bicubic reduction, so JPEG blocks, noise and blur of the input are "
        "enlarged with everything else."
    )
    degraded = (
        "\n\nDatasets called “photo” were also blurred, made noisy and compressed before "
        "(`--degradation photo`), with fixed seeds."
        if any("photo" in networks for networks in config["evaluation"].values())
        else ""
    )
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

large = Upscaler("{EXAMPLE_NAME}").upscale(Image.open("photo.jpg"))  # or a folder with these files
large.save("large.png")
```

## Measured

{evaluation}

By `python -m train.evaluate`: images reduced with Pillow's bicubic, enlarged as `srgan.Upscaler`
does, which back-projects what SRResNet and SRGAN give, results rounded to 8 bits, Y channel of
BT.601, 4 border pixels cut off, SSIM with an 11×11 Gaussian window; the VGG19 feature distance is
made like LPIPS but not calibrated (smaller is better). The paper's SSIM is of another
implementation.{degraded}

## Training

- Data: {training["data"]}
- Hardware: {training["hardware"]}
{stages}{notes}

LR crops are Pillow-equal bicubic reductions, rounded to 8 bits, of random crops, flipped and
transposed at random. Adam, and Muon for the convolutions between hidden layers where the settings
name it; linear warm-up, cosine to zero; the weights are a moving average.

## Intended use and limits

For enlarging photographs. What the network adds is plausible, not true: don't use it to read number
plates, faces or medical images. {limits}
"""
    )


def _summary(run: dict) -> str:
    """What `_describe` told, for the card."""
    best = run.get("weights_step", run["steps"])
    weights = f", the weights those of step {best:,}" if best != run["steps"] else ""
    settings = ", ".join(f"{k} {v}" for k, v in run["settings"].items() if v is not None)
    return f"{run['steps']:,} steps in {run['seconds'] / 60:.0f} minutes{weights}, with {settings}"


def push_folder(config: PushConfig) -> Pushed:
    """Checks a weights folder and pushes it, with the repository's name in the card's example.

    Raises:
        SRGANError: the weights are damaged or incomplete.
        OSError: a file can't be read.
        PushError: the files are not on the Hub.
    """
    if not config.folder.is_dir():
        raise ValueError(f"{config.folder} is not a weights folder")
    load_weights(config.folder.resolve())
    paths = [config.folder / name for name in FILES]
    files = {path.name: path.read_bytes() for path in paths if path.exists()}
    if CARD_FILE in files:
        name = _place(config).encode()
        files[CARD_FILE] = files[CARD_FILE].replace(EXAMPLE_NAME.encode(), name)
    return push(
        files,
        config.repository,
        config.revision,
        title=TITLE,
        private=config.private,
        tag=config.tag,
        force=config.force,
        dry_run=config.dry_run,
    )


def _place(config: PushConfig) -> str:
    """As `Upscaler` takes it."""
    at = "" if config.revision == MAIN else f"@{config.revision}"
    return config.repository + at


def report(config: PushConfig, pushed: Pushed) -> str:
    """The files and what was done with them, a line each, and what it came to."""
    lines = [
        f"{change:7}  {pushed.sizes[name]:>11,} bytes  {name}"
        for name, change in pushed.changes.items()
    ]
    count = sum(change != SAME for change in pushed.changes.values())
    made = f"new {' and '.join(pushed.created)}, " if pushed.created else ""
    tagged = f", tag {config.tag}" if config.tag else ""
    files = "1 file" if count == 1 else f"{count} files"
    if config.dry_run:
        result = f"{made}{files} would go up in one commit{tagged}; nothing was written"
    elif count:
        result = f"{made}{files} in commit {pushed.commit}{tagged}"
    else:
        result = f"{made}nothing has changed since commit {pushed.commit}{tagged}"
    return "\n".join([*lines, f"{_place(config)}: {result}"])


def main() -> int:
    commands = {"build": BuildConfig, "push": PushConfig}
    try:
        config = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
        if isinstance(config, BuildConfig):
            build(config)
        else:
            print(report(config, push_folder(config)))
    except (ValueError, OSError, SRGANError, PushError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
