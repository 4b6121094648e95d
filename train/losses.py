"""The losses of the adversarial stage."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

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


def relative_vgg_loss(vgg: VGG19, sr: Tensor, hr: Tensor, weights: Mapping[str, float]) -> Tensor:
    """Error of VGG19 features relative to their magnitude, whatever scale the weights have.

    Several depths with weights as in Wang et al. 2021 (Real-ESRGAN), mean absolute error as in
    Wang et al. 2018 (ESRGAN); here each layer's error is divided by the mean of the original's
    features, so that no layer counts more for being large.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        weights: layer of `train.vgg.LAYERS` -> weight, at least 0 and not all 0.

    Returns:
        The weighted mean over the layers: 0 for equal images, about 1 for unrelated ones.
    """
    layers = tuple(name for name, weight in weights.items() if weight)
    with torch.no_grad():
        targets = vgg(hr, layers)
    total = sr.new_zeros(())
    for name, features, target in zip(layers, vgg(sr, layers), targets, strict=True):
        error = F.l1_loss(features.float(), target.float())
        total = total + weights[name] * error / target.float().mean()
    return total / sum(weights.values())


def discriminator_loss(real: Tensor, fake: Tensor, *, relativistic: bool) -> Tensor:
    """Binary cross-entropy of the discriminator's logits.

    Args:
        real, fake: logits (N,) of originals and of enlarged images.
        relativistic: judge each against the mean of the other kind (Jolicoeur-Martineau 2018,
            "The relativistic discriminator", RaGAN) rather than alone (Goodfellow et al. 2014).
    """
    return _cross_entropy(real, fake, relativistic, real_is=1.0)


def generator_loss(real: Tensor, fake: Tensor, *, relativistic: bool) -> Tensor:
    """How far the discriminator is from taking enlarged images for originals.

    Args:
        real, fake: logits (N,); gradients are wanted through `fake` only.
        relativistic: as in `discriminator_loss`; else the non-saturating −log D(G(lr)).
    """
    if relativistic:
        return _cross_entropy(real.detach(), fake, relativistic, real_is=0.0)
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def _cross_entropy(real: Tensor, fake: Tensor, relativistic: bool, real_is: float) -> Tensor:
    if relativistic:
        real, fake = real - fake.mean(), fake - real.mean()
    real_loss = F.binary_cross_entropy_with_logits(real, torch.full_like(real, real_is))
    fake_loss = F.binary_cross_entropy_with_logits(fake, torch.full_like(fake, 1 - real_is))
    return (real_loss + fake_loss) / 2


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
