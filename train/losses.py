"""The losses of the adversarial stage."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE
from train.vgg import VGG19

#: Ledig et al. 2017, §3.2: VGG features of the Caffe release are divided by this, which brings
#: their squared error to the magnitude of the pixels'.
PAPER_VGG_SCALE = 12.75


def paper_vgg_loss(vgg: VGG19, sr: Tensor, hr: Tensor) -> Tensor:
    """The paper's content loss: mean squared error of φ5,4, the last features of VGG19.

    Meant for the Caffe release's weights; features of torchvision's have another scale.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
    """
    layers = ("relu5_4",)
    with torch.no_grad():
        (target,) = vgg(hr, layers)
    (features,) = vgg(sr, layers)
    return F.mse_loss(features.float() / PAPER_VGG_SCALE, target.float() / PAPER_VGG_SCALE)


def relative_vgg_loss(
    vgg: VGG19,
    sr: Tensor,
    hr: Tensor,
    weights: Mapping[str, float],
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Error of VGG19 features relative to their magnitude, whatever scale the weights have.

    Several depths with weights as in Wang et al. 2021 (Real-ESRGAN), mean absolute error as in
    Wang et al. 2018 (ESRGAN); here each layer's error is divided by the mean of the original's
    features, so that no layer counts more for being large.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        weights: layer of `train.vgg.LAYERS` -> weight, at least 0 and not all 0.
        mean: of features over the whole batch, where this is a process's share of it.

    Returns:
        The weighted mean over the layers: 0 for equal images, about 1 for unrelated ones.
    """

    def error(features: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(features, target) / mean(target)

    return _mean_over_layers(vgg, sr, hr, weights, error)


def normalized_vgg_loss(
    vgg: VGG19,
    sr: Tensor,
    hr: Tensor,
    weights: Mapping[str, float],
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Squared error of VGG19 features scaled to length 1 at each position.

    The form of LPIPS (Zhang et al. 2018) without its calibration, and of the distance by which
    `train.evaluate` measures: weights trained with it are no longer judged by it independently.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        weights: layer of `train.vgg.LAYERS` -> weight, at least 0 and not all 0.
        mean: of features over the whole batch, where this is a process's share of it.

    Returns:
        The weighted mean over the layers: 0 for equal images, at most 2.
    """

    def error(features: Tensor, target: Tensor) -> Tensor:
        # Where there is next to no feature, its direction means nothing.
        least = 0.01 * mean(target.square().sum(1))
        direction, wanted = (
            x * (x.square().sum(1, keepdim=True) + least).rsqrt() for x in (features, target)
        )
        return (direction - wanted).square().sum(1).mean()

    return _mean_over_layers(vgg, sr, hr, weights, error)


def _mean_over_layers(
    vgg: VGG19,
    sr: Tensor,
    hr: Tensor,
    weights: Mapping[str, float],
    error: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The weighted mean of an error of features, (N, C, h, w) float32, over those of hr."""
    layers = tuple(name for name, weight in weights.items() if weight)
    with torch.no_grad():
        targets = vgg(hr, layers)
    total = sr.new_zeros(())
    for name, features, target in zip(layers, vgg(sr, layers), targets, strict=True):
        total = total + weights[name] * error(features.float(), target.float())
    return total / sum(weights.values())


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    *,
    relativistic: bool,
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Binary cross-entropy of the discriminator's logits.

    Args:
        real, fake: logits (N,) of originals and of enlarged images.
        relativistic: judge each against the mean of the other kind (Jolicoeur-Martineau 2018,
            "The relativistic discriminator", RaGAN) rather than alone (Goodfellow et al. 2014).
        mean: of logits over the whole batch, where this is a process's share of it.
    """
    return _cross_entropy(real, fake, mean if relativistic else None, real_is=1.0)


def generator_loss(
    real: Tensor,
    fake: Tensor,
    *,
    relativistic: bool,
    mean: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """How far the discriminator is from taking enlarged images for originals.

    Args:
        real, fake: logits (N,); gradients are wanted through `fake` only.
        relativistic, mean: as in `discriminator_loss`; else the non-saturating −log D(G(lr)).
    """
    if relativistic:
        return _cross_entropy(real.detach(), fake, mean, real_is=0.0)
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def _cross_entropy(
    real: Tensor, fake: Tensor, mean: Callable[[Tensor], Tensor] | None, real_is: float
) -> Tensor:
    if mean is not None:
        real, fake = real - mean(fake), fake - mean(real)
    real_loss = F.binary_cross_entropy_with_logits(real, torch.full_like(real, real_is))
    fake_loss = F.binary_cross_entropy_with_logits(fake, torch.full_like(fake, 1 - real_is))
    return (real_loss + fake_loss) / 2


def phase_loss(sr: Tensor, hr: Tensor, *, window: int = 8) -> Tensor:
    """Mean squared error of what repeats from one LR pixel to the next.

    The generator sees no noise: over even areas the only texture it can make is one that repeats
    with the LR grid, and perceptual and adversarial losses at first reward that checkerboard as
    they would any texture. So the error is divided into its SCALE² phases within an LR pixel, and
    each phase averaged over windows, where the grid and shifts of colour remain and true texture
    vanishes. Ours.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        window: side in LR pixels; smaller images are averaged as a whole.
    """
    phases = F.pixel_unshuffle(sr - hr, SCALE)  # (N, 3 · SCALE², H / SCALE, W / SCALE)
    window = min(window, *phases.shape[2:])
    return F.avg_pool2d(phases, window, stride=max(1, window // 2)).square().mean()


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean absolute error of the discriminator's activations, mean over its layers.

    Wang et al. 2018, "High-Resolution Image Synthesis … with Conditional GANs" (pix2pixHD), eq. 4.
    """
    errors = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(errors).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared gradient of the discriminator at the originals, mean over the batch.

    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", without γ/2.

    Args:
        logits: (N,), computed from `images`.
        images: (N, 3, H, W), requiring gradients.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
