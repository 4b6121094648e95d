"""Stage 2: trains the generator of stage 1 against a discriminator (SRGAN).

    python -m train.adversarial ours --data prepared --out runs/srgan \\
        --init runs/srresnet/srresnet-x4.safetensors --vgg vgg19.safetensors --minutes 60
    python -m train.adversarial paper …

Ledig et al. 2017, §2.2 and §3.2. `paper` is their recipe; `ours` puts together what made later GANs
better, Muon, and losses of our own against texture that is locked to the low-res grid or runs along
its axes; the balance was found on a CPU, in runs of three hours at most. Every difference between
the two is an option. The same command again resumes a run that was stopped.
"""

import copy
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.nn.utils.parametrize import cached

from srgan.errors import SRGANError
from srgan.generator import Generator
from srgan.weights import SRGAN_FILE, SRGAN_STAGE, load_generator, save_generator
from train.checkpoint import CheckpointError
from train.discriminator import Discriminator
from train.loop import (
    TrainingConfig,
    TrainingError,
    autocast,
    center_colors,
    finish,
    fix_batch_norm,
    join_world,
    load_data,
    make_adam,
    make_optimizers,
    make_sampler,
    mean_psnr,
    run,
    update,
    use_bf16,
)
from train.losses import (
    batch_mean,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    normalized_vgg_loss,
    paper_vgg_loss,
    r1_penalty,
    relative_vgg_loss,
    spectrum_loss,
    stationarity_loss,
)
from train.metrics import feature_distances
from train.vgg import LAYERS, TORCHVISION, VGG19, VGGError

logger = logging.getLogger(__name__)

#: Pixels a side of which VGG's last features are one.
VGG_SIDE = 16
#: Batches by which the colours of the result are set.
CENTERING_BATCHES = 48
LAYERED_LOSSES = {"normalized": normalized_vgg_loss, "relative": relative_vgg_loss}


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(TrainingConfig):
    """Settings of stage 2."""

    ON_CPU = 8, 1e-4
    ON_GPU = 16, 1e-4

    candidates: int = 1
    init: Path
    """Weights of stage 1 (.safetensors)."""
    vgg: str = TORCHVISION
    """VGG19: a .safetensors file with torchvision's names, or torchvision (its download)."""
    perceptual: Literal["normalized", "relative", "paper"] = "normalized"
    """VGG loss: of several layers the squared error of the features' directions, or the mean
    absolute error relative to their magnitude, both for any VGG weights; or the paper's squared
    error of φ5,4 / 12.75, for the Caffe release's."""
    perceptual_weight: float = 1.0
    """Weight of the VGG loss."""
    perceptual_layers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LAYERS, 1.0))
    """Layers of the VGG loss, unless it is the paper's, and their weights (Wang et al. 2021,
    Real-ESRGAN: 0.1, 0.1, 1, 1, 1); those above the last with a weight are not computed."""
    perceptual_shift: int = 16
    """Largest random shift of what VGG sees of a crop, whose side is smaller by as much, so that
    the positions of its pooling can't be learnt (Kettunen et al. 2019, E-LPIPS)."""
    pixel_weight: float = 2.0
    """Weight of the mean absolute error of the pixels (Wang et al. 2018, ESRGAN)."""
    stationarity_weight: float = 5.0
    """Weight against texture that is locked to the low-res grid, checkerboards and hatching
    (`train.losses.stationarity_loss`)."""
    spectrum_weight: float = 0.5
    """Weight against texture of another spectrum than that of originals, as horizontal and vertical
    strokes (`train.losses.spectrum_loss`)."""
    adversarial_weight: float = 0.005
    """Weight of the adversarial loss."""
    feature_matching_weight: float = 0.0
    """Weight of the discriminator's feature matching (Wang et al. 2018, pix2pixHD)."""
    relativistic: bool = True
    """Relativistic average discriminator (Jolicoeur-Martineau 2018)."""
    normalization: Literal["batch", "spectral", "none"] = "spectral"
    """In the discriminator: BN as in the paper, or spectral (Miyato et al. 2018)."""
    r1: float = 0.0
    """γ of the gradient penalty on originals (Mescheder et al. 2018)."""
    discriminator_width: float = 1.0
    """Channels of the discriminator relative to the paper's."""
    batch_norm: Literal["fixed", "batch"] = "fixed"
    """Statistics of the generator's BN: those of stage 1, or of each batch as in the paper."""
    back_projection: bool = True
    """Judge results as Upscaler gives them, after `srgan.back_projection`; the pixels' error stays
    that of the network's own. Not with --degradation photo, whose results go without."""

    def weight(self, loss: str) -> float:
        """Of one of `generator_losses`."""
        return getattr(self, f"{loss}_weight")

    def finish(self, sr: Tensor, lr: Tensor) -> Tensor:
        """What is judged of the network's result."""
        return finish(sr, lr, self.degradation) if self.back_projection else sr

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.perceptual_shift <= self.crop - VGG_SIDE:
            raise ValueError(
                f"perceptual_shift must leave VGG {VGG_SIDE} of the crop's {self.crop} pixels, "
                f"got {self.perceptual_shift}"
            )
        unknown = self.perceptual_layers.keys() - LAYERS.keys()
        if unknown:
            raise ValueError(
                f"perceptual_layers must be some of {', '.join(LAYERS)}, got {', '.join(unknown)}"
            )
        weights = self.perceptual_layers.values()
        if min(weights, default=0) < 0 or not sum(weights) > 0:
            raise ValueError("perceptual_layers must have weights of at least 0, not all of them 0")


@dataclass(frozen=True, kw_only=True)
class PaperConfig(AdversarialConfig):
    """Settings of stage 2, with the defaults of Ledig et al. 2017.

    Deviations: warm-up and half a cosine instead of 1e5 steps at a learning rate of 1e-4 and 1e5 at
    1e-5; the result is a moving average of the weights, with its colours centred
    (`train.loop.center_colors`). In several processes the statistics of BN are each one's own.
    """

    ON_CPU = ON_GPU = 16, 1e-4

    perceptual: Literal["normalized", "relative", "paper"] = "paper"
    perceptual_shift: int = 0
    pixel_weight: float = 0.0
    stationarity_weight: float = 0.0
    spectrum_weight: float = 0.0
    adversarial_weight: float = 1e-3
    relativistic: bool = False
    normalization: Literal["batch", "spectral", "none"] = "batch"
    batch_norm: Literal["fixed", "batch"] = "batch"
    back_projection: bool = False
    optimizer: Literal["muon", "adam"] = "adam"
    beta2: float = 0.999
    clip: float | None = None


def generator_losses(
    config: AdversarialConfig,
    vgg: VGG19,
    raw: Tensor,
    sr: Tensor,
    hr: Tensor,
    seen: Sequence[Tensor],
    real: tuple[Tensor, list[Tensor]],
    fake: tuple[Tensor, list[Tensor]],
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> dict[str, Tensor]:
    """Those of the generator's losses that have a weight, by name.

    Args:
        config: names the weights.
        vgg: in the precision that is multiplied in.
        raw: the network's own result.
        sr, hr: (N, 3, H, W) float32 in [0, 1].
        seen: what VGG sees of these.
        real, fake: what the discriminator returns for hr and for sr.
        mean: over the whole batch, where this is a process's share of it.
    """

    def perceptual() -> Tensor:
        with autocast(config, sr.device):
            if config.perceptual == "paper":
                return paper_vgg_loss(vgg, *seen)
            return LAYERED_LOSSES[config.perceptual](vgg, *seen, config.perceptual_layers, mean)

    def adversarial() -> Tensor:
        logits = real[0].float(), fake[0].float()
        return generator_loss(*logits, relativistic=config.relativistic, mean=mean)

    losses = {
        "perceptual": perceptual,
        "pixel": lambda: F.l1_loss(raw, hr),
        "stationarity": lambda: stationarity_loss(sr, mean),
        "spectrum": lambda: spectrum_loss(sr, hr, mean),
        "adversarial": adversarial,
        "feature_matching": lambda: feature_matching_loss(real[1], fake[1]),
    }
    return {name: loss() for name, loss in losses.items() if config.weight(name)}


def adversarial(config: AdversarialConfig) -> float:
    """Trains; `config.out` then holds the best weights as `srgan-x4.safetensors`.

    Returns:
        The smallest VGG19 feature distance on the validation images.

    Raises:
        ValueError: the data don't fit the settings.
        TrainingError: a loss is not finite.
        CheckpointError: a checkpoint can't be read or written.
        SRGANError: `init` can't be read.
        VGGError: VGG19's weights can't be had.
    """
    with join_world(config.device) as world:
        device = world.device
        config = config.on(device)
        sampler, validation_images = load_data(config, world)
        torch.manual_seed(config.seed)
        generator = load_generator(config.init)
        generator.reindexed_head = True
        discriminator = Discriminator(
            config.crop, normalization=config.normalization, width=config.discriminator_width
        )
        vgg = VGG19(config.vgg)
        for network in (generator, discriminator, vgg):
            network.to(device, memory_format=torch.channels_last)
        loss_vgg = vgg
        if use_bf16(config, device):  # once: autocast does it at each call
            loss_vgg = copy.deepcopy(vgg)  # validation measures in float32
            loss_vgg.features.to(torch.bfloat16)
        generator.train()
        discriminator.train()
        if config.batch_norm == "fixed":
            fix_batch_norm(generator)
        optimizers = make_optimizers(config, generator, device)
        discriminator_optimizer = make_adam(config, discriminator.parameters())
        ddp_generator = world.wrap(torch.compile(generator) if config.compile else generator)
        ddp_discriminator = world.wrap(discriminator)

        def step() -> dict[str, Tensor]:
            lr, hr = sampler.next()
            lr, hr = (x.contiguous(memory_format=torch.channels_last) for x in (lr, hr))

            # -------------------------------------------------------- generator
            discriminator.requires_grad_(False)
            with autocast(config, device), cached():  # spectral weights are computed once
                raw = ddp_generator(lr).float()
                sr = config.finish(raw, lr)
                fake = discriminator(sr)
                with torch.no_grad():
                    real = discriminator(hr)
            seen = sampler.shifted(sr, hr, by=config.perceptual_shift)
            losses = generator_losses(config, loss_vgg, raw, sr, hr, seen, real, fake, world.mean)
            loss = sum(config.weight(name) * value for name, value in losses.items())
            norm = update(optimizers.values(), loss, generator, config.clip)

            # ---------------------------------------------------- discriminator
            discriminator.requires_grad_(True)
            hr.requires_grad_(config.r1 > 0)
            with autocast(config, device), cached():
                real = ddp_discriminator(hr)[0].float()
                fake = ddp_discriminator(sr.detach())[0].float()
            relativistic = config.relativistic
            against = discriminator_loss(real, fake, relativistic=relativistic, mean=world.mean)
            if config.r1 > 0:
                against = against + config.r1 / 2 * r1_penalty(real, hr)
            discriminator_norm = update(
                [discriminator_optimizer], against, discriminator, config.clip
            )

            # Share of its right answers: at 1 the generator learns nothing from it.
            right = ((real > fake.mean()).float().mean() + (fake < real.mean()).float().mean()) / 2
            logged = {"loss": loss, "gradient_norm": norm, "discriminator": against}
            logged |= {"discriminator_gradient_norm": discriminator_norm}
            logged |= {"discriminator_right": right}
            return {name: value.detach() for name, value in (losses | logged).items()}

        def measure(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
            distance = sum(feature_distances(vgg, [sr], hr)[0] for _, sr, hr in pairs) / len(pairs)
            return {"psnr_y": mean_psnr(pairs), "vgg19": distance, "likeness": -distance}

        def save_best(average: Generator, number: int) -> None:
            result = copy.deepcopy(average)
            # Of its own: training's goes on as if there were no validation.
            crops = make_sampler(config, sampler.images)
            center_colors(result, (crops.next() for _ in range(CENTERING_BATCHES)))
            metadata = {"stage": SRGAN_STAGE, "step": str(number)}
            save_generator(result, config.out / SRGAN_FILE, metadata)

        return -run(
            config,
            world,
            generator=generator,
            stateful={
                "discriminator": discriminator,
                "discriminator_optimizer": discriminator_optimizer,
                "sampler": sampler,
                **optimizers,
            },
            optimizers=[*optimizers.values(), discriminator_optimizer],
            step=step,
            validation_images=validation_images,
            measure=measure,
            save_best=save_best,
            score="likeness",
        )


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    presets = {"ours": AdversarialConfig, "paper": PaperConfig}
    try:
        config = tyro.extras.subcommand_cli_from_dict(presets, description=__doc__)
        distance = adversarial(config)
    except (ValueError, OSError, TrainingError, CheckpointError, SRGANError, VGGError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    logger.info("best validation VGG19 distance %.4f", distance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
