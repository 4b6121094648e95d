"""Stage 1: trains the generator on pixel error alone (SRResNet).

    python -m train.pretrain --data prepared --out runs/srresnet --minutes 60

Ledig et al. 2017, §3.2. Deviations, each an option: L1 instead of MSE (Lim et al. 2017, EDSR), the
start as bilinear enlargement instead of random weights, BN with fixed statistics, Muon, and the
moving average of the weights as the result. The same command again resumes a run that was stopped.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from srgan.errors import SRGANError
from srgan.generator import Generator, GeneratorConfig
from srgan.weights import SRRESNET_FILE, SRRESNET_STAGE, load_generator, save_generator
from train.checkpoint import CheckpointError
from train.loop import (
    TrainingConfig,
    TrainingError,
    autocast,
    fix_batch_norm,
    join_world,
    load_data,
    make_optimizers,
    make_sampler,
    mean_psnr,
    measure_batch_norm,
    run,
    update,
)

logger = logging.getLogger(__name__)

#: Batches on which a new network's BN statistics are measured.
MEASURED_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of stage 1."""

    ON_CPU = 8, 5e-4
    ON_GPU = 32, 5e-4

    init: Path | None = None
    """Weights (.safetensors) to start from, instead of a new network."""
    start: Literal["interpolation", "random"] = "interpolation"
    """A new network's first weights: bilinear enlargement, or PyTorch's random ones."""
    batch_norm: Literal["fixed", "batch"] = "fixed"
    """Statistics of BN: fixed (at those of --init, or of a new network's first crops), or of each
    batch as in the paper."""
    loss: Literal["l1", "mse"] = "l1"
    """Pixel error; the paper's is mse."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """Size of a new network."""


def pretrain(config: PretrainConfig) -> float:
    """Trains; `config.out` then holds the best weights as `srresnet-x4.safetensors`.

    Returns:
        The best validation PSNR-Y in dB.

    Raises:
        ValueError: the data don't fit the settings.
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint can't be read or written.
        SRGANError: `init` can't be read.
    """
    with join_world(config.device) as world:
        config = config.on(world.device)
        sampler, validation_images = load_data(config, world)
        generator = _make_generator(config).to(world.device, memory_format=torch.channels_last)
        generator.train()
        if config.batch_norm == "fixed":
            if not config.init:
                # Not the sampler's own shares: all processes must measure the same.
                crops = make_sampler(config, sampler.images)
                measure_batch_norm(generator, (crops.next()[0] for _ in range(MEASURED_BATCHES)))
            fix_batch_norm(generator)
        optimizers = make_optimizers(config, generator, world.device)
        forward = world.wrap(torch.compile(generator) if config.compile else generator)
        pixel_loss = {"l1": F.l1_loss, "mse": F.mse_loss}[config.loss]

        def step() -> dict[str, Tensor]:
            lr, hr = sampler.next()
            with autocast(config, world.device):
                sr = forward(lr.contiguous(memory_format=torch.channels_last))
            loss = pixel_loss(sr.float(), hr)
            norm = update(optimizers.values(), loss, generator, config.clip)
            return {"loss": loss.detach(), "gradient_norm": norm}

        def measure(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
            return {"psnr_y": mean_psnr(pairs)}

        def save_best(average: Generator, number: int) -> None:
            metadata = {"stage": SRRESNET_STAGE, "step": str(number)}
            save_generator(average, config.out / SRRESNET_FILE, metadata)

        return run(
            config,
            world,
            generator=generator,
            stateful={"sampler": sampler, **optimizers},
            optimizers=list(optimizers.values()),
            step=step,
            validation_images=validation_images,
            measure=measure,
            save_best=save_best,
            score="psnr_y",
        )


def _make_generator(config: PretrainConfig) -> Generator:
    torch.manual_seed(config.seed)
    if config.init:
        generator = load_generator(config.init)
    else:
        generator = Generator(config.generator)
        if config.start == "interpolation":
            generator.initialize_as_interpolation()
    generator.reindexed_head = True
    return generator


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        best = pretrain(tyro.cli(PretrainConfig, description=__doc__))
    except (ValueError, OSError, TrainingError, CheckpointError, SRGANError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    logger.info("best validation PSNR-Y %.2f dB", best)
    return 0


if __name__ == "__main__":
    sys.exit(main())
