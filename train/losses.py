"""The losses of the adversarial stage."""

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from srgan.generator import SCALE
from train.vgg import VGG19

#: Ledig et al. 2017, §3.2: VGG features of the Caffe release are divided by this, which brings
#: their squared error to the magnitude of the pixels'.
PAPER_VGG_SCALE = 12.75
#: Rows down and columns right, of the autocovariances in `stationarity_loss`; at most SCALE.
LAGS = ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0))
#: Contrast that can be seen: half a step of 8 bits.
VISIBLE = 0.5 / 255
#: Largest side in pixels of the windows whose spectra are compared, and between which frequencies,
#: in cycles a pixel: below, LR decides; above, photographs hold next to nothing but noise.
SPECTRUM_WINDOW, SPECTRUM_BAND = 32, (0.1, 0.5)


def batch_mean(values: Tensor) -> Tensor:
    """The mean over the first dimension."""
    return values.mean(0)


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
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> Tensor:
    """Error of VGG19 features relative to their magnitude, whatever scale the weights have.

    Several depths with weights as in Wang et al. 2021 (Real-ESRGAN), mean absolute error as in
    Wang et al. 2018 (ESRGAN); here each layer's error is divided by the mean of the original's
    features, so that no layer counts more for being large.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        weights: layer of `train.vgg.LAYERS` -> weight, at least 0 and not all 0.
        mean: over the whole batch, where this is a process's share of it.

    Returns:
        The weighted mean over the layers: 0 for equal images, about 1 for unrelated ones.
    """

    def error(features: Tensor, target: Tensor) -> Tensor:
        features, target = features.float(), target.float()
        return F.l1_loss(features, target) / mean(target.flatten())

    return _mean_over_layers(vgg, sr, hr, weights, error)


def normalized_vgg_loss(
    vgg: VGG19,
    sr: Tensor,
    hr: Tensor,
    weights: Mapping[str, float],
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> Tensor:
    """Squared error of VGG19 features scaled to length 1 at each position.

    The form of LPIPS (Zhang et al. 2018) without its calibration, and of the distance by which
    `train.evaluate` measures: weights trained with it are no longer judged by it independently.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1].
        weights: layer of `train.vgg.LAYERS` -> weight, at least 0 and not all 0.
        mean: over the whole batch, where this is a process's share of it.

    Returns:
        The weighted mean over the layers: 0 for equal images, at most 2.
    """

    def error(features: Tensor, target: Tensor) -> Tensor:
        return _DirectionError.apply(features, target, mean)

    return _mean_over_layers(vgg, sr, hr, weights, error)


class _DirectionError(torch.autograd.Function):
    """Mean over the positions of the squared error of features (N, C, h, w) scaled to length 1.

    From three products of vectors, |f|², |t|² and f·t, for the result and its gradient: a third of
    the time of the same in PyTorch's operations, which write each step to memory.
    """

    @staticmethod
    def forward(ctx, features: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        def dot(a: Tensor, b: Tensor) -> Tensor:  # (N, 1, h, w)
            return (a * b).sum(1, keepdim=True, dtype=torch.float32)

        target_square = dot(target, target)
        # Where there is next to no feature, its direction means nothing.
        least = 0.01 * mean(target_square.flatten())
        square = dot(features, features) + least
        target_square += least
        scale = (square * target_square).rsqrt()
        cosine = dot(features, target) * scale
        ctx.save_for_backward(features, target, least, square, scale, cosine)
        return (
            (square - least) / square + (target_square - least) / target_square - 2 * cosine
        ).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, target, least, square, scale, cosine = ctx.saved_tensors
        gradient = 2 * gradient / square.numel()
        of_features = (gradient * (least / square + cosine) / square).to(features.dtype)
        of_target = (gradient * scale).to(features.dtype)
        return (features * of_features).addcmul_(target, of_target, value=-1), None, None


def _mean_over_layers(
    vgg: VGG19,
    sr: Tensor,
    hr: Tensor,
    weights: Mapping[str, float],
    error: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The weighted mean of an error of features, (N, C, h, w), from those of hr."""
    layers = tuple(name for name, weight in weights.items() if weight)
    with torch.no_grad():
        targets = vgg(hr, layers)
    total = sr.new_zeros(())
    for name, features, target in zip(layers, vgg(sr, layers), targets, strict=True):
        total = total + weights[name] * error(features, target)
    return total / sum(weights.values())


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    *,
    relativistic: bool,
    mean: Callable[[Tensor], Tensor] = batch_mean,
) -> Tensor:
    """Binary cross-entropy of the discriminator's logits.

    Args:
        real, fake: logits (N,) of originals and of enlarged images.
        relativistic: judge each against the mean of the other kind (Jolicoeur-Martineau 2018,
            "The relativistic discriminator", RaGAN) rather than alone (Goodfellow et al. 2014).
        mean: over the whole batch, where this is a process's share of it.
    """
    return _cross_entropy(real, fake, mean if relativistic else None, real_is=1.0)


def generator_loss(
    real: Tensor,
    fake: Tensor,
    *,
    relativistic: bool,
    mean: Callable[[Tensor], Tensor] = batch_mean,
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


def stationarity_loss(sr: Tensor, mean: Callable[[Tensor], Tensor] = batch_mean) -> Tensor:
    """How far texture depends on where in an LR pixel it lies.

    The generator sees no noise: the easiest texture it can make is one that repeats with the LR
    grid, and perceptual and adversarial losses at first reward such a checkerboard or hatching as
    they would any texture. Photographs are stationary: their detail has the same mean and
    autocovariance at each of the SCALE² positions (phases) within an LR pixel. What is locked to
    the grid is only cyclostationary (Gardner et al. 2006, "Cyclostationarity: Half a century of
    research"). So this is the variance of those moments of `normalized_detail` over the phases.
    Ours.

    Args:
        sr: (N, 3, H, W) in [0, 1], at least 8 pixels a side.
        mean: over the first dimension of the whole batch, where this is a process's share of it.

    Returns:
        About 0.001 for photographs in batches of 8 crops of 96 pixels, 0.01 for bicubic
        enlargements, 0.2 where a grid begins to show.
    """
    detail = normalized_detail(sr)
    channels = sr.shape[1]
    height, width = sr.shape[2] - SCALE, sr.shape[3] - 2 * SCALE
    here = detail[:, :, :height, SCALE:-SCALE]
    moments = [here]
    for down, right in LAGS:
        there = detail[:, :, down : down + height, SCALE + right : SCALE + right + width]
        moments.append((here * there).mean(1, keepdim=True))
    phases = F.pixel_unshuffle(torch.cat(moments, 1), SCALE).mean((2, 3))
    variances = mean(phases).view(-1, SCALE**2).var(1)  # of the mean, the autocovariance
    return variances[:channels].mean() + variances[channels:].mean()


def spectrum_loss(sr: Tensor, hr: Tensor, mean: Callable[[Tensor], Tensor] = batch_mean) -> Tensor:
    """How far the texture's power spectrum is from that of originals, over a whole batch.

    What strides, shuffles and axis-aligned kernels make most easily are horizontal and vertical
    strokes. Perceptual losses take their hatching for texture: trained without this, SRGAN had 6
    times as much power along the axes as along the diagonals, where photographs have 1.35 times as
    much. That networks which enlarge miss the spectrum is the finding of Durall et al. 2020 ("Watch
    your up-convolution"), who compare its mean over all directions; here the directions are what
    matters, and no pixel is asked to be where it was. Of `normalized_detail`. Ours.

    Args:
        sr, hr: (N, 3, H, W) in [0, 1], at least 16 pixels a side.
        mean: over the first dimension of the whole batch, where this is a process's share of it.

    Returns:
        The mean squared error of the amplitudes, relative to those of hr: 0 for equal spectra, 1
        where there is no detail at all.
    """
    side = min(SPECTRUM_WINDOW, *sr.shape[2:])
    window = torch.hann_window(side, device=sr.device)

    def power(image: Tensor) -> Tensor:  # (side, side // 2 + 1)
        blocks = normalized_detail(image).unfold(2, side, side // 2).unfold(3, side, side // 2)
        spectra = torch.fft.rfft2(blocks * window[:, None] * window)  # (N, 3, n, m, side, …)
        # Of a hundred: there may be none.
        return mean(spectra.abs().square().mean((1, 2, 3))) + 1e-3

    frequency = torch.hypot(
        torch.fft.fftfreq(side, device=sr.device)[:, None],
        torch.fft.rfftfreq(side, device=sr.device),
    )
    inside = (SPECTRUM_BAND[0] <= frequency) & (frequency <= SPECTRUM_BAND[1])
    with torch.no_grad():
        wanted = power(hr)
    errors = ((power(sr) / wanted).sqrt() - 1).square()
    return (errors * inside).sum() / inside.sum()  # to index by `inside`, a GPU would be waited for


def normalized_detail(image: Tensor) -> Tensor:
    """What a Gaussian takes away, relative to its contrast around: a faint pattern in the sky
    weighs as much as a strong one in grass.

    Args:
        image: (N, C, H, W) in [0, 1].

    Returns:
        The same shape, with a mean square near 1.
    """
    channels = image.shape[1]
    kernel = _binomial(image.device).expand(channels, 1, 5, 5)
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    detail = image - F.conv2d(padded, kernel, groups=channels)
    power = detail.square().mean(1, keepdim=True)  # (N, 1, H, W)
    power = F.avg_pool2d(power, 17, stride=1, padding=8, count_include_pad=False)
    return detail / (power + VISIBLE**2).sqrt()


@cache
def _binomial(device: torch.device) -> Tensor:
    """The smallest usual Gaussian, (5, 5); copied to a GPU once."""
    with torch.inference_mode(False):  # the first to ask may not train, the next one may
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        return torch.outer(row, row).to(device)


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
