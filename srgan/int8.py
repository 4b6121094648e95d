"""The generator computed with 8-bit integers, on processors that multiply those faster.

Weights are rounded to int8 with a scale for each output channel, the inputs of convolutions to
uint8 with a scale and a zero point for each convolution (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"), by oneDNN's
convolutions within PyTorch. Float32 remain the stem, whose input are the pixels, the features that
the residual blocks add to, and the head's few inputs of large weight. In the tail the channels are
made more alike in size first (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", §4.1).
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.back_projection import back_project
from srgan.generator import InferenceGenerator, Margins, Rectangle, bands, clear, tail_margins
from srgan.metrics import psnr_y

#: Inputs of the head with the largest weights, which stay float32: the channels that carry the
#: colours themselves have weights that would leave next to no digits for those of the others.
FLOAT_HEAD_INPUTS = 16
CL = torch.channels_last
#: Numbers that are rounded at a time, so that they stay in a core's cache.
STRIP = 2**19
#: Of the values between a convolution and its rounding.
BETWEEN = torch.bfloat16
#: Largest integer, and largest value that is told from a larger one before PReLU and rounding.
TOP, LIMIT = 255, 2**14

#: Share of the ranges that grids hold: what goes beyond is rare, and finer steps are worth more.
#: Not where the features enter the tail, which carry the colours themselves.
KEPT = 0.9

#: The convolutions outside of the body, in their order.
TAIL = "upsample1", "upsample2", "head"
#: Convolution -> smallest and largest value of each channel of its input, (channels,).
Ranges = dict[str, tuple[Tensor, Tensor]]


class _Grid(NamedTuple):
    """The numbers that an input's integers stand for: scale · (q − zero)."""

    scale: float
    zero: int


class _Convolution(NamedTuple):
    weight: Tensor  # packed for oneDNN
    scales: Tensor  # (out,)
    zeros: Tensor  # (out,)
    bias: Tensor  # (out,)
    zero: int  # of the input
    padding: list[int]


@cache
def available() -> bool:
    """Whether PyTorch and the processor here multiply 8-bit integers fast and exactly.

    x86 without VNNI adds pairs of products in 16 bits, which can overflow.
    """
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        q = torch.full((1, 64, 4, 4), TOP, dtype=torch.uint8)
        q = q.contiguous(memory_format=torch.channels_last)
        conv = _pack(torch.full((16, 64, 3, 3), 127.0), torch.zeros(16), zero=0, padding=[1, 1])
        result = _convolve(q, conv, BETWEEN)
        total = torch.zeros_like(result, dtype=torch.float32)
        _add_convolution(total, q, conv)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(result[0, 0, 1, 1] == LIMIT and total[0, 0, 1, 1] == TOP * 127 * 64 * 9)


class _Watch(InferenceGenerator):
    """Widens `ranges` to hold all that goes into its convolutions."""

    def __init__(self, state: dict[str, Tensor], ranges: Ranges):
        super().__init__(state)
        self.ranges = ranges

    def convolve(self, name: str, x: Tensor, part: Rectangle | None = None) -> Tensor:
        low, high = x.amin((0, 2, 3)).clamp_max(0), x.amax((0, 2, 3)).clamp_min(0)
        lowest, highest = self.ranges.get(name, (low, high))
        self.ranges[name] = low.minimum(lowest), high.maximum(highest)
        return super().convolve(name, x, part)


class Int8Generator(InferenceGenerator):
    """`InferenceGenerator` in 8-bit integers, on a CPU where they are `available`; takes one image
    at a time.

    Args:
        state: as for `InferenceGenerator`.
        ranges: of the inputs, from `calibrate`; what exceeds `KEPT` of them is clamped.
    """

    def __init__(self, state: dict[str, Tensor], ranges: Ranges):
        super().__init__(state)
        for first, second in pairwise(TAIL):
            state, ranges = _equalize(state, ranges, first, second)
        order = state["head.weight"].abs().amax((0, 2, 3)).argsort(descending=True)
        head = state["head.weight"][:, order]
        floats = self._float_inputs = min(FLOAT_HEAD_INPUTS, len(order))
        self._float_head = head[:, :floats].contiguous(memory_format=CL)
        state = {
            **state,
            "upsample2.weight": state["upsample2.weight"][order],
            "upsample2.bias": state["upsample2.bias"][order],
            "head.weight": F.pad(head[:, floats:], (0, 0, 0, 0, floats, 0)),
        }
        follower = {f"blocks.{i}.conv1": f"blocks.{i}.conv2" for i in range(self.depth)}
        self._follower = follower | dict(pairwise(TAIL))
        self._grids = {
            name: _grid(kept * low.min().item(), kept * high.max().item())
            for name, (low, high) in ranges.items()
            if name != "stem"
            for kept in [1 if name == "upsample1" else KEPT]
        }
        self._convolutions: dict[str, _Convolution] = {}
        for name, grid in self._grids.items():
            weight, bias = state[f"{name}.weight"] * grid.scale, state[f"{name}.bias"]
            if name in self._follower:  # then the result counts in steps of that one's grid
                step = self._grids[self._follower[name]].scale
                weight, bias = weight / step, bias / step
            # Rows of zeros are there where they are needed, in the tail columns too.
            padding = [0, 0] if name in TAIL else [0, 1]
            self._convolutions[name] = _pack(weight, bias, grid.zero, padding)
            self.drop(name)

    def add_block(self, i: int, x: Tensor) -> None:
        first, second = f"blocks.{i}.conv1", f"blocks.{i}.conv2"
        height, waiting = x.shape[2], None
        for band in bands(x):
            y = self._convolve(first, self._round(first, x, _grow(band, 2)))
            q = self._activate(first, y)  # of the rows next to the band too
            if band.start == 0:
                q[:, :, 0] = self._grids[second].zero
            if band.stop == height:
                q[:, :, -1] = self._grids[second].zero
            if waiting:  # till the rows that this band and the one before both need were read
                self._add(second, *waiting)
            waiting = q, x[:, :, band]
        self._add(second, *waiting)

    def add_convolution(self, name: str, x: Tensor, total: Tensor) -> None:
        for band in bands(x):
            self._add(name, self._round(name, x, _grow(band, 1)), total[:, :, band])

    def tail(self, features: Tensor, outside: Margins = (0, 0, 0, 0)) -> Tensor:
        y = self._convolve("upsample1", self._round("upsample1", features))
        q = F.pixel_shuffle(self._activate("upsample1", y), 2)[:, :, 1:-1, 1:-1]
        q = q.contiguous(memory_format=CL)
        first, second = tail_margins(outside)
        clear(q, first, self._grids["upsample2"].zero)
        y = self._convolve("upsample2", q)
        q = self._activate("upsample2", y)
        clear(q, second, self._grids["head"].zero)
        clear(y, second)
        large = y[:, : self._float_inputs].float().mul_(self._grids["head"].scale)
        x = F.conv2d(large.contiguous(memory_format=CL), self._float_head)
        self._add("head", q, x)
        return F.pixel_shuffle(x, 2)

    def _round(self, name: str, x: Tensor, rows: slice | None = None) -> Tensor:
        """These rows of the named convolution's input in integers; those outside of x are zero."""
        scale, zero = self._grids[name]
        rows = rows or slice(0, x.shape[2])
        inside = slice(max(0, rows.start), min(x.shape[2], rows.stop))
        above, below = inside.start - rows.start, inside.stop - rows.start
        size = (*x.shape[:2], rows.stop - rows.start, x.shape[3])
        q = torch.empty(size, dtype=torch.uint8, memory_format=CL)
        q[:, :, :above], q[:, :, below:] = zero, zero
        for part, rounded in _strips(x[:, :, inside], q[:, :, above:below]):
            _copy(part.mul(1 / scale).add_(zero + 0.5).clamp_(0, TOP), rounded)
        return q

    def _convolve(self, name: str, q: Tensor) -> Tensor:
        """The result before its PReLU, in steps of the grid of the convolution that follows."""
        return _convolve(q, self._convolutions[name], BETWEEN)

    def _activate(self, name: str, y: Tensor) -> Tensor:
        """The PReLU, in place; returns the result, which stays as it is, in integers too."""
        zero = self._grids[self._follower[name]].zero
        q = torch.empty_like(y, dtype=torch.uint8)
        for part, rounded in _strips(y, q):
            part = F.leaky_relu_(part, self.slopes[name]).round().to(torch.int16)
            _copy(part.add_(zero).clamp_(0, TOP), rounded)
        return q

    def _add(self, name: str, q: Tensor, x: Tensor) -> None:
        """Adds the named convolution to x."""
        _add_convolution(x, q, self._convolutions[name])


@torch.inference_mode()
def calibrate(
    states: list[dict[str, Tensor]], images: list[Tensor], *, back_projected: bool = True
) -> tuple[Ranges, float]:
    """Measures the ranges, and what the integers lose.

    Args:
        states: of all networks for which the ranges are to do, as for `InferenceGenerator`.
        images: photographs, each (1, 3, h, w) in [0, 1].
        back_projected: whether results will be.

    Returns:
        The ranges over all networks and images, and the smallest PSNR-Y of an image enlarged with
        integers against the same in float32, in dB.
    """

    def enlarge(network: InferenceGenerator, image: Tensor) -> Tensor:
        sr = network(image)
        if back_projected:
            back_project(sr, image)
        return sr

    ranges: Ranges = {}
    expected = [[enlarge(_Watch(state, ranges), image) for image in images] for state in states]
    likenesses = []
    for state, srs in zip(states, expected, strict=True):
        network = Int8Generator(state, ranges)
        pairs = zip(images, srs, strict=True)
        likenesses += [psnr_y(enlarge(network, image), sr) for image, sr in pairs]
    return ranges, min(likenesses)


def _equalize(
    state: dict[str, Tensor], ranges: Ranges, first: str, second: str
) -> tuple[dict[str, Tensor], Ranges]:
    """The same network with the channels between two convolutions, which share one grid, brought
    nearer to each other in size: the small ones then have more of its steps.

    A PReLU passes a factor on. To the power of ½, because a channel that fills the grid has no room
    for more than was seen in calibration.
    """
    low, high = ranges[second]
    size = torch.maximum(high, -low)
    size = (size / size.amax().clamp_min(1e-6)).clamp_min(1e-4).sqrt()
    rows = size.repeat_interleave(len(state[f"{first}.bias"]) // len(size))  # PixelShuffle's
    return {
        **state,
        f"{first}.weight": state[f"{first}.weight"] / rows.view(-1, 1, 1, 1),
        f"{first}.bias": state[f"{first}.bias"] / rows,
        f"{second}.weight": state[f"{second}.weight"] * size.view(1, -1, 1, 1),
    }, {**ranges, second: (low / size, high / size)}


def _grid(low: float, high: float) -> _Grid:
    scale = max(high - low, 1e-6) / TOP
    return _Grid(scale, round(-low / scale))


def _grow(rows: slice, by: int) -> slice:
    return slice(rows.start - by, rows.stop + by)


def _strips(x: Tensor, q: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of both, a few at a time; both have the same shape."""
    rows = max(1, STRIP // (x.numel() // x.shape[2]))
    return zip(x.split(rows, 2), q.split(rows, 2), strict=True)


def _copy(x: Tensor, q: Tensor) -> None:
    """To uint8 by way of int16: PyTorch's vector instructions know only the two halves."""
    q.copy_(x.to(torch.int16))


def _pack(weight: Tensor, bias: Tensor, zero: int, padding: list[int]) -> _Convolution:
    """A convolution of integers q, with scale 1, this zero point and so many rows and columns of
    padding."""
    scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
    rounded = _round_taps(weight / scales.view(-1, 1, 1, 1)).to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(
        rounded, scales, 1.0, zero, [1, 1], padding, [1, 1], 1, None
    )
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return _Convolution(packed, scales, zeros, bias.clone(), zero, padding)


def _round_taps(weight: Tensor) -> Tensor:
    """Rounds so that each kernel keeps its sum, and with it the picture its colours.

    What one tap loses the next gets, as in error diffusion; the sum is then off by ½ at most, where
    by rounding each for itself it would be by ½ for each tap.
    """
    rounded, lost = torch.empty_like(weight), 0.0
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            wanted = weight[:, :, row, column] + lost
            rounded[:, :, row, column] = wanted.round().clamp(-127, 127)
            lost = wanted - rounded[:, :, row, column]
    return rounded


def _convolve(q: Tensor, conv: _Convolution, dtype: torch.dtype) -> Tensor:
    """The convolution of uint8 q, clamped to what int16 holds.

    PReLU and the grid come after: with their numbers in it, oneDNN would compile the convolution
    anew for each layer.
    """
    return torch.ops.onednn.qconv_pointwise(
        *(q, 1.0, conv.zero, conv.weight, conv.scales, conv.zeros, conv.bias),
        *([1, 1], conv.padding, [1, 1], 1),  # stride, padding, dilation, groups
        *(1.0, 0, dtype, "hardtanh", [-LIMIT, LIMIT], ""),
    )


def _add_convolution(x: Tensor, q: Tensor, conv: _Convolution) -> None:
    """Adds the convolution of uint8 q to x, which is float32 and channels_last."""
    torch.ops.onednn.qconv2d_pointwise.binary(
        *(q, 1.0, conv.zero, conv.weight, conv.scales, conv.zeros, x, conv.bias),
        *([1, 1], conv.padding, [1, 1], 1),  # stride, padding, dilation, groups
        *(1.0, 0, x.dtype, 1.0, 0, "sum", 1.0, "none", [], ""),
    )
