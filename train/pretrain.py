"""Stage 1: trains the generator on pixel error alone (SRResNet).

    python -m train.pretrain --data prepared --out runs/srresnet --minutes 60

Ledig et al. 2017, §3.2. Deviations, each an option: L1 instead of MSE (Lim et al. 2017, EDSR), the
start as bilinear enlargement instead of random weights, BN with fixed statistics, and the moving
average of the weights as the result. Running the same command again resumes.
"""

import json
import logging
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from srgan.errors import SRGANError
from srgan.generator import Generator, GeneratorConfig
from srgan.weights import load_generator, save_generator
from train.checkpoint import LAST_FILE, CheckpointError, load_checkpoint, save_checkpoint
from train.data import CropSampler, load_packed
from train.loop import (
    Schedule,
    StopOnSignal,
    Stopwatch,
    choose_device,
    choose_precision,
    fix_batch_norm,
    validation_psnr,
)

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "srresnet-x4.safetensors"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of stage 1."""

    data: Path
    """Folder made by train.prepare."""
    out: Path
    """Folder of the run: checkpoint, log and weights. If it holds a checkpoint, the run resumes."""
    steps: int | None = None
    """Length of the training in steps; either this or --minutes."""
    minutes: float | None = None
    """Length of the training by the clock; the learning rate is planned to end with it."""
    init: Path | None = None
    """Weights (.safetensors) to start from, instead of a new network."""
    start: Literal["interpolation", "random"] = "interpolation"
    """A new network's first weights: bilinear enlargement, or PyTorch's random ones."""
    batch_norm: Literal["fixed", "batch"] = "fixed"
    """Statistics of BN: fixed at mean 0, variance 1 (or those of --init), or of each batch as in
    the paper."""
    loss: Literal["l1", "mse"] = "l1"
    """Pixel error."""
    crop: int = 96
    """Side of the HR crops in pixels."""
    batch: int = 16
    """Crops a step."""
    learning_rate: float = 5e-4
    """Adam's, at the top of its curve."""
    warmup: int = 200
    """Steps in which the learning rate rises."""
    ema: float = 0.999
    """Decay of the moving average of the weights, a step."""
    clip: float = 1.0
    """Largest gradient norm; longer gradients are shortened to it."""
    validate_every: int = 500
    """Steps between validations; each also writes the checkpoint and, if it is the best so far,
    the weights."""
    validation_images: int = 16
    """Held-out images to validate on."""
    seed: int = 0
    """Of the first weights and of the crops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 …"""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Of the convolutions; auto is bf16 where the hardware has it."""
    compile: bool = False
    """torch.compile the network."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """Size of the network."""

    def __post_init__(self):
        _ = self.schedule  # raises where steps and minutes don't fit
        for name in ("batch", "validate_every", "warmup", "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def schedule(self) -> Schedule:
        return Schedule(steps=self.steps, minutes=self.minutes, warmup=self.warmup)


def pretrain(config: PretrainConfig) -> float:
    """Trains, from the checkpoint in `config.out` if there is one.

    Returns:
        The best validation PSNR-Y in dB.

    Raises:
        ValueError: the data don't fit the settings.
        CheckpointError: a checkpoint can't be read or written.
        SRGANError: `init` can't be read.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    training_images, validation_images = load_packed(config.data, device)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str))

    # ------------------------------------------------------------------ model
    torch.manual_seed(config.seed)
    if config.init:
        generator = load_generator(config.init)
    else:
        generator = Generator(config.generator)
        if config.start == "interpolation":
            generator.initialize_as_interpolation()
    generator.reindexed_head = True
    generator.to(device, memory_format=torch.channels_last).train()
    if config.batch_norm == "fixed":
        fix_batch_norm(generator)
    average = AveragedModel(
        generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
    )
    optimizer = torch.optim.Adam(
        generator.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=True
    )
    forward = torch.compile(generator) if config.compile else generator
    pixel_loss = {"l1": F.l1_loss, "mse": F.mse_loss}[config.loss]
    random = torch.Generator().manual_seed(config.seed)
    sampler = CropSampler(training_images, crop=config.crop, batch=config.batch, generator=random)

    # ----------------------------------------------------------------- resume
    step, best, stopwatch = 0, float("-inf"), Stopwatch()
    checkpoint = config.out / LAST_FILE
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, device)
        generator.load_state_dict(state["generator"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        random.set_state(state["random"].cpu())
        step, best, stopwatch = state["step"], state["best"], Stopwatch(state["seconds"])
        logger.info("resumed at step %d", step)

    def save() -> None:
        save_checkpoint(
            {
                "generator": generator.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": random.get_state(),
                "step": step,
                "best": best,
                "seconds": stopwatch.seconds,
            },
            checkpoint,
        )

    def validate(rate: float) -> None:
        """Validates the average, keeps it if it is the best so far, logs and saves."""
        nonlocal best, losses
        mean_loss = torch.stack(losses).mean().item()
        losses = []
        if not math.isfinite(mean_loss):
            raise CheckpointError(
                f"the loss is {mean_loss} at step {step}: lower --learning-rate. "
                f"The last good checkpoint is {checkpoint}."
            )
        psnr = validation_psnr(average.module, validation_images, count=config.validation_images)
        if psnr > best:
            best = psnr
            metadata = {"stage": "srresnet", "step": str(step)}
            save_generator(average.module, config.out / WEIGHTS_FILE, metadata)
        save()
        entry = {"step": step, "seconds": round(stopwatch.seconds), "loss": mean_loss}
        entry |= {"psnr_y": psnr, "learning_rate": rate}
        with (config.out / LOG_FILE).open("a") as log:
            log.write(json.dumps(entry) + "\n")
        progress.set_postfix(loss=f"{mean_loss:.4f}", psnr=f"{psnr:.2f}", best=f"{best:.2f}")

    # ------------------------------------------------------------------- loop
    schedule = config.schedule
    losses: list[Tensor] = []  # since the last validation, on the device
    with (
        StopOnSignal() as signal,
        tqdm(total=config.steps, initial=step, unit="step", dynamic_ncols=True) as progress,
    ):
        while schedule.progress(step, stopwatch.seconds) < 1 and not signal.stopped:
            rate = config.learning_rate * schedule.rate(step, stopwatch.seconds)
            for group in optimizer.param_groups:
                group["lr"] = rate
            lr, hr = sampler.next()
            lr = lr.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                sr = forward(lr)
            loss = pixel_loss(sr.float(), hr)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(generator.parameters(), config.clip)
            optimizer.step()
            average.update_parameters(generator)
            losses.append(loss.detach())
            step += 1
            progress.update()
            if step % config.validate_every == 0:
                validate(rate)
        if losses:
            validate(rate)
    return best


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        best = pretrain(tyro.cli(PretrainConfig, description=__doc__))
    except (ValueError, CheckpointError, SRGANError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    logger.info("best validation PSNR-Y %.2f dB", best)
    return 0


if __name__ == "__main__":
    sys.exit(main())
