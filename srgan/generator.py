"""The generator of SRGAN, and the form in which it runs.

Ledig et al. 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative
Adversarial Network" (https://arxiv.org/abs/1609.04802), §2.1 and figure 4: `SRResNet` is this
network trained on pixel error, `SRGAN` the same network trained against a discriminator.

Images are RGB float32 in [0, 1], NCHW. `h` and `w` below are the sides of the low-res image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCALE = 4
#: Rows and columns of a picture.
Rectangle = tuple[slice, slice]
#: How far something goes beyond a picture at the left, the right, the top and the bottom.
Margins = tuple[int, int, int, int]
#: Pixels of the features that are computed at a time where they stay in a processor's cache.
BAND = 2**16


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Size of a generator; the defaults are the paper's, 1.55 million parameters."""

    channels: int = 64
    blocks: int = 16

    def __post_init__(self):
        if self.channels < 3:
            raise ValueError(f"channels must be at least 3, got {self.channels}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {self.blocks}")


class _LeakyReLU(torch.autograd.Function):
    """PReLU with one slope, whose gradient takes PyTorch's own several times as long on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        of_x = torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False)
        return of_x, x.clamp(max=0).mul_(gradient).sum().to(slope.dtype).view_as(slope)


class PReLU(nn.PReLU):
    """PReLU with one slope; in training on a CPU with a faster gradient, once differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _LeakyReLU.apply(x, self.weight)
        return super().forward(x)


def fold_batch_norm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what both do. Differentiable."""
    scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), (conv.bias - bn.running_mean) * scale + bn.bias


def convolve_normalized(conv: nn.Conv2d, bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The convolution and its BN, in one where it is trained with fixed statistics."""
    if bn.training or not conv.training:
        return bn(conv(x))
    return F.conv2d(x, *fold_batch_norm(conv, bn), padding=conv.padding)


class ResidualBlock(nn.Module):
    """conv, BN, PReLU, conv, BN, and the identity added."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, h, w)
        y = self.prelu(convolve_normalized(self.conv1, self.bn1, x))
        return x + convolve_normalized(self.conv2, self.bn2, y)


class UpsampleBlock(nn.Module):
    """Sub-pixel convolution: conv to 4 × channels, PixelShuffle 2, PReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.prelu = PReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, 2h, 2w)
        return self.prelu(self.shuffle(self.conv(x)))


class Generator(nn.Module):
    """The paper's generator, ×4: the form that is trained and stored.

    Args:
        config: size of the network; None for the paper's.
        reindexed_head: compute the last convolution before the last PixelShuffle
            (`reindex_head`): the same function of the same parameters at less than half the cost.
    """

    def __init__(self, config: GeneratorConfig | None = None, *, reindexed_head: bool = False):
        super().__init__()
        self.config = config = config or GeneratorConfig()
        channels = config.channels
        self.reindexed_head = reindexed_head
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(config.blocks)))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.upsample1 = UpsampleBlock(channels)
        self.upsample2 = UpsampleBlock(channels)
        self.head = nn.Conv2d(channels, 3, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarges.

        Args:
            lr: (N, 3, h, w), in [0, 1].

        Returns:
            (N, 3, 4h, 4w), not clamped.
        """
        stem = self.stem(lr)  # (N, C, h, w)
        x = stem + convolve_normalized(self.conv, self.bn, self.blocks(stem))  # (N, C, h, w)
        x = self.upsample1(x)  # (N, C, 2h, 2w)
        if self.reindexed_head:
            x = self.upsample2.prelu(self.upsample2.conv(x))  # (N, 4C, 2h, 2w)
            x = F.conv2d(x, *reindex_head(self.head.weight, self.head.bias), padding=2)
            return F.pixel_shuffle(x, 2)
        return self.head(self.upsample2(x))

    @torch.no_grad()
    def initialize_as_interpolation(self) -> None:
        """Makes the untrained network bilinear ×4 enlargement, so that training adds the detail.

        Channels 0–2 carry R, G, B: the stem passes them on, every residual branch starts at zero
        (gamma of its last BN), the up-convolutions hold the bilinear ×2 phases, the head picks
        them up. All other weights keep PyTorch's default initialisation.
        A deviation from the paper in the start only: it saves the many steps in which random
        weights learn to enlarge at all.
        """
        delta = torch.eye(3)  # one filter for each of R, G, B
        stem = self.stem[0]
        stem.weight[:3] = 0
        stem.weight[:3, :, 4, 4] = delta
        stem.bias[:3] = 0
        for block in self.blocks:
            nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(self.bn.weight)
        # Output pixel 2i + phase of a bilinear ×2 lies ¼ before or after input pixel i.
        taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # (phase, tap)
        for upsample in (self.upsample1, self.upsample2):
            conv = upsample.conv
            conv.weight[:12] = 0
            conv.bias[:12] = 0
            for colour in range(3):
                for row in range(2):
                    for column in range(2):
                        kernel = torch.outer(taps[row], taps[column])
                        conv.weight[4 * colour + 2 * row + column, colour] = kernel
        self.head.weight.zero_()
        self.head.weight[:, :3, 4, 4] = delta
        self.head.bias.zero_()


def reindex_head(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Moves a 9×9 convolution from behind a PixelShuffle 2 to before it.

    Output pixel 2y + p needs input pixels 2y + p + d, d = −4 … 4, which the shuffle took from
    pixels y + floor((p + d) / 2) of phase (p + d) mod 2: a 5×5 convolution from all phases of all
    channels to all phases of the colours, followed by the shuffle. Differentiable.

    Args:
        weight: (3, C, 9, 9).
        bias: (3,).

    Returns:
        Weight (12, 4C, 5, 5) and bias (12,) of the equivalent convolution, padding 2.
    """
    colours, channels = weight.shape[:2]
    # Rows and columns 2i + a − p, i = 0 … 4, run from −1 to 9: one zero on each side.
    padded = F.pad(weight, (1, 1, 1, 1))  # (3, C, 11, 11)
    phases = [
        padded[:, :, 1 - p : 11 - p, 1 - q : 11 - q]  # (3, C, 10, 10): rows 2i + a − p
        .reshape(colours, channels, 5, 2, 5, 2)
        .permute(0, 1, 3, 5, 2, 4)  # (3, C, a, b, 5, 5)
        for p in range(2)
        for q in range(2)
    ]
    reindexed = torch.stack(phases, dim=1)  # (3, 4, C, 2, 2, 5, 5)
    return reindexed.reshape(4 * colours, 4 * channels, 5, 5), bias.repeat_interleave(4)


def fold(generator: Generator) -> dict[str, Tensor]:
    """The generator's weights with every BN folded into the convolution before it.

    This is the space in which two networks are interpolated (`InferenceGenerator`).

    Returns:
        `<convolution>.weight` and `.bias` in float32, and one `.slope` (a scalar) for each PReLU,
        of `stem`, `blocks.<i>.conv1`, `blocks.<i>.conv2`, `conv`, `upsample1`, `upsample2`, `head`
        (re-indexed).
    """
    state: dict[str, Tensor] = {}

    def add(
        name: str,
        conv: nn.Conv2d,
        bn: nn.BatchNorm2d | None = None,
        prelu: nn.PReLU | None = None,
    ):
        weight, bias = (conv.weight, conv.bias) if bn is None else fold_batch_norm(conv, bn)
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
        if prelu is not None:
            state[f"{name}.slope"] = prelu.weight[0]

    add("stem", generator.stem[0], prelu=generator.stem[1])
    for i, block in enumerate(generator.blocks):
        add(f"blocks.{i}.conv1", block.conv1, block.bn1, block.prelu)
        add(f"blocks.{i}.conv2", block.conv2, block.bn2)
    add("conv", generator.conv, generator.bn)
    add("upsample1", generator.upsample1.conv, prelu=generator.upsample1.prelu)
    add("upsample2", generator.upsample2.conv, prelu=generator.upsample2.prelu)
    head = generator.head
    state["head.weight"], state["head.bias"] = reindex_head(head.weight, head.bias)
    return {name: tensor.detach().float().clone() for name, tensor in state.items()}


class InferenceGenerator(nn.Module):
    """The form of a generator that is run: the same numbers, sooner.

    BN is folded, memory is channels_last by default, the head is re-indexed, PReLUs and sums work
    in place. `body` and `tail` are two functions because they are tiled differently: the body sees
    far and takes little memory, the tail the other way round.

    Args:
        state: what `fold` returns, or an interpolation of two of those.
        memory_format: of weights and features.

    Attributes:
        depth: number of residual blocks.
        body_halo, tail_halo: LR pixels around one that decide over its features, and features
            around one that decide over its 4×4 pixels.
        body_work, tail_work: multiplications an LR pixel.
    """

    #: `upsample1` sees 1, `upsample2` ½, the head 1: rounded up.
    tail_halo = 3

    def __init__(
        self, state: dict[str, Tensor], memory_format: torch.memory_format = torch.channels_last
    ):
        super().__init__()
        self.memory_format = memory_format
        self.depth = sum(name.endswith("conv1.weight") for name in state)
        self.body_halo = 4 + 2 * self.depth + 1  # the stem sees 4, each 3×3 convolution 1
        work = {name: value.numel() for name, value in state.items() if value.dim() == 4}
        self.tail_work = work.pop("upsample1.weight")
        self.tail_work += 4 * (work.pop("upsample2.weight") + work.pop("head.weight"))
        self.body_work = sum(work.values())
        self.slopes = {
            name.removesuffix(".slope"): float(value)
            for name, value in state.items()
            if name.endswith(".slope")
        }
        for name, value in state.items():
            if value.dim() > 0:
                if value.dim() == 4:
                    value = value.contiguous(memory_format=memory_format)
                self.register_buffer(name.replace(".", "_"), value)

    def convolve(self, name: str, x: Tensor, part: Rectangle | None = None) -> Tensor:
        """The named convolution and, where one follows, its PReLU.

        Args:
            x: (N, C, h, w), zero outside.
            part: rows and columns of the result that are wanted; None for all h × w.
        """
        key = name.replace(".", "_")
        weight = getattr(self, f"{key}_weight")
        reach = weight.shape[-1] // 2
        part = part or (slice(0, x.shape[2]), slice(0, x.shape[3]))
        down, across = (_seen(*ends, reach) for ends in zip(part, x.shape[2:], strict=True))
        x = x[:, :, down.inside, across.inside].contiguous(memory_format=self.memory_format)
        padding = down.padding, across.padding
        x = F.conv2d(x, weight, getattr(self, f"{key}_bias"), padding=padding)
        x = x[:, :, down.result, across.result]
        return F.leaky_relu_(x, self.slopes[name]) if name in self.slopes else x

    def drop(self, name: str) -> None:
        """Frees the named convolution's parameters: a subclass has them in another form."""
        key = name.replace(".", "_")
        del self._buffers[f"{key}_weight"], self._buffers[f"{key}_bias"]

    def body(self, lr: Tensor, tick: Callable[[], None] | None = None) -> Tensor:
        """(N, 3, h, w) in [0, 1] -> features (N, C, h, w); `tick` is called after each block."""
        stem = self.convolve("stem", lr.to(self.stem_weight.dtype))
        x = stem.clone()
        for i in range(self.depth):
            self.add_block(i, x)
            if tick is not None:
                tick()
        self.add_convolution("conv", x, stem)
        return stem

    def add_block(self, i: int, x: Tensor) -> None:
        """Adds residual block i to its input (N, C, h, w), in place."""
        first, second = f"blocks.{i}.conv1", f"blocks.{i}.conv2"
        height, columns, waiting = x.shape[2], slice(0, x.shape[3]), None
        for band in bands(x):
            # The rows next to the band too, where there are some: the second one needs them.
            seen = grow(band, 1, height)
            y = self.convolve(first, x, (seen, columns))
            y = self.convolve(second, y, (relative(band, seen), columns))
            if waiting:  # till the rows that this band and the one before both need were read
                x[:, :, waiting[0]] += waiting[1]
            waiting = band, y
        x[:, :, waiting[0]] += waiting[1]

    def add_convolution(self, name: str, x: Tensor, total: Tensor) -> None:
        """Adds the named convolution of x (N, C, h, w) to total, in place."""
        for band in bands(x):
            total[:, :, band] += self.convolve(name, x, (band, slice(0, x.shape[3])))

    def tail(self, features: Tensor, outside: Margins = (0, 0, 0, 0)) -> Tensor:
        """Enlarges features, without those at the edges, which are only seen.

        Args:
            features: (N, C, h + 2 halo, w + 2 halo) with halo = `tail_halo`.
            outside: how many of those are not of the image; they are zero.

        Returns:
            (N, 3, 4h, 4w), not clamped.
        """
        x = self.convolve("upsample1", features, _inner(features, 1))
        x = F.pixel_shuffle(x, 2)[:, :, 1:-1, 1:-1]
        # Each convolution sees zeros around the image, not what the one before made of them.
        first, second = tail_margins(outside)
        clear(x, first)
        x = self.convolve("upsample2", x, _inner(x, 1))
        clear(x, second)
        return F.pixel_shuffle(self.convolve("head", x, _inner(x, 2)), 2)

    def forward(self, lr: Tensor) -> Tensor:
        """(N, 3, h, w) in [0, 1] -> (N, 3, 4h, 4w), not clamped."""
        outside = (self.tail_halo,) * 4
        return self.tail(F.pad(self.body(lr), outside), outside)


class _Seen(NamedTuple):
    """Of rows or columns: what a convolution is computed from, and where its result lies."""

    inside: slice
    padding: int
    result: slice


def _seen(part: slice, length: int, reach: int) -> _Seen:
    inside = grow(part, reach, length)
    if inside.stop - inside.start == part.stop - part.start + 2 * reach:
        return _Seen(inside, 0, slice(None))
    return _Seen(inside, reach, relative(part, inside))


def _inner(x: Tensor, margin: int) -> Rectangle:
    height, width = x.shape[2:]
    return slice(margin, height - margin), slice(margin, width - margin)


def grow(span: slice, by: int, length: int) -> slice:
    """A span of so many rows or columns with its neighbours, as far as there are any."""
    return slice(max(0, span.start - by), min(length, span.stop + by))


def scaled(span: slice) -> slice:
    """A span of the low-res image in the enlarged one."""
    return slice(SCALE * span.start, SCALE * span.stop)


def relative(inner: slice, outer: slice) -> slice:
    """Where a part lies within a larger one."""
    return slice(inner.start - outer.start, inner.stop - outer.start)


def tail_margins(outside: Margins) -> tuple[list[int], list[int]]:
    """What is outside of the image in the inputs of the tail's second and third convolution.

    Each loses a pixel at every side; between the first two PixelShuffle doubles the rest, and one
    more is cut off.
    """
    first = [max(0, 2 * (margin - 1) - 1) for margin in outside]
    return first, [max(0, margin - 1) for margin in first]


def clear(x: Tensor, outside: Sequence[int], value: int = 0) -> None:
    """Sets what is outside of the image, `Margins`, in place."""
    left, right, top, bottom = outside
    height, width = x.shape[2:]
    x[:, :, :top], x[:, :, height - bottom :] = value, value
    x[..., :left], x[..., width - right :] = value, value


def split(span: slice, count: int) -> list[slice]:
    """So many parts of a span, as equal as can be."""
    length = span.stop - span.start
    edges = [span.start + length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def bands(features: Tensor) -> list[slice]:
    """Rows of features (N, C, h, w) that together have about `BAND` pixels, two rows at least if
    there are so many; all of them where there is no cache to stay in, outside of a CPU."""
    height, width = features.shape[2:]
    count = -(-height * width // BAND) if features.device.type == "cpu" else 1
    return split(slice(0, height), max(1, min(height // 2, count)))
