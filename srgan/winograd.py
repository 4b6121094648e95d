"""3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (§4.3): 6×6 pixels of the
input are transformed, multiplied with the transformed kernel number by number, and transformed back
to 4×4 pixels of the output. The products of all tiles are 36 products of matrices. What usually
eats up the gain is the traffic of the transforms; here they are done for a few hundred tiles at a
time, which stay in the cache, by additions of whole rows of pixels.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from srgan.generator import InferenceGenerator, Rectangle, split

#: Pixels a side of a tile of the output, and of the input that it needs.
OUT, IN = 4, 6
#: Tiles that are transformed at a time, about: all, and for each thread; and least in a row. Less
#: would leave threads idle: MKL computes products of matrices with under some 150 rows in one.
TILES, THREAD_TILES, LEAST_COLUMNS = 256, 128, 16
#: How often it is tried against PyTorch's own convolution.
TRIALS = 20
#: Kernel -> transformed kernel, for the points 0, 1, −1, 2, −2, ∞.
_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)


@cache
def pays() -> bool:
    """Whether it is faster here than PyTorch's own convolutions: tried once, in some 0.05 s.

    That depends on MKL, whose products of matrices reach the processor's peak on Intel's, but half
    of it or less on others. The results differ by some 1e-6, so the answer should be the same at
    each start: what is tried is short, and often enough to find the processor free.
    """
    if not torch.backends.mkl.is_available():
        return False
    with torch.inference_mode():
        weight, bias = torch.ones(64, 64, 3, 3), torch.ones(64)
        x = torch.ones(1, 64, 64, 64).contiguous(memory_format=torch.channels_last)
        ours, theirs = WinogradConvolution(weight, bias), partial(F.conv2d, padding=1)
        seconds = [(_seconds(ours, x), _seconds(theirs, x, weight, bias)) for _ in range(TRIALS)]
    return min(ours for ours, _ in seconds) < min(theirs for _, theirs in seconds)


def _seconds(function: Callable, *arguments: Tensor) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


class WinogradConvolution:
    """A 3×3 convolution, padding 1, with bias and perhaps a leaky ReLU, float32 on the CPU.

    Args:
        weight: (O, C, 3, 3), O a multiple of C.
        bias: (O,).
        slope: of the leaky ReLU; 1 for none.
    """

    def __init__(self, weight: Tensor, bias: Tensor, slope: float = 1.0):
        kernel = torch.einsum("ar,ocrs,bs->abco", _KERNEL, weight.double(), _KERNEL)
        kernel = kernel.flatten(0, 1).float()  # (36, C, O)
        channels = kernel.shape[1]
        # As many outputs at a time as there are inputs: all share their room.
        parts = kernel.split(channels, 2), bias.split(channels)
        self._parts = [(part.contiguous(), bias) for part, bias in zip(*parts, strict=True)]
        self._outputs = len(bias)
        self._slope = slope

    def __call__(self, x: Tensor, part: Rectangle | None = None) -> Tensor:
        """Convolves.

        Args:
            x: (N, C, h, w).
            part: rows and columns of the result that are wanted; None for all h × w.

        Returns:
            (N, O, height, width), channels_last but for gaps between the rows.
        """
        channels, height, width = x.shape[1:]
        wanted = part or (slice(0, height), slice(0, width))
        height, width = (span.stop - span.start for span in wanted)
        first_row, first_column = (span.start - 1 for span in wanted)  # with padding
        rows, columns = -(-height // OUT), -(-width // OUT)  # of tiles
        tiles = max(TILES, THREAD_TILES * torch.get_num_threads())
        result = x.new_empty(len(x), OUT * rows, OUT * columns, self._outputs)
        blocks: dict[tuple[int, int], _Block] = {}
        for pixels, out in zip(x.permute(0, 2, 3, 1), result, strict=True):
            for across in split(slice(0, columns), max(1, columns // LEAST_COLUMNS)):
                left, right = across.start, across.stop
                count = max(1, round(rows * (right - left) / tiles))
                for down in split(slice(0, rows), count):
                    top, bottom = down.start, down.stop
                    size = bottom - top, right - left
                    block = blocks.get(size) or blocks.setdefault(size, _Block(*size, channels))
                    block.read(pixels, first_row + OUT * top, first_column + OUT * left)
                    written = out[OUT * top : OUT * bottom, OUT * left : OUT * right]
                    for i, (kernel, bias) in enumerate(self._parts):
                        block.write(kernel, bias, written[:, :, i * channels : (i + 1) * channels])
                    if self._slope != 1:
                        F.leaky_relu_(written, self._slope)
        return result.permute(0, 3, 1, 2)[:, :, :height, :width]


class _Room(threading.local):
    """Memory of a thread, used again and again: new memory would cost as much as the transforms."""

    numbers = torch.empty(0)

    def take(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of these shapes, valid until the next call."""
        sizes = [math.prod(shape) for shape in shapes]
        if sum(sizes) > len(self.numbers):
            with torch.inference_mode(False):
                self.numbers = torch.empty(sum(sizes))
        parts = self.numbers[: sum(sizes)].split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


_ROOM = _Room()


class _Block:
    """The transforms of rows × columns tiles. All blocks of a thread have the same memory."""

    def __init__(self, rows: int, columns: int, channels: int):
        height, width = self._size = OUT * rows + 2, OUT * columns + 2
        whole = IN, IN, rows, columns, channels
        self._padded, half, transformed, product, room = _ROOM.take(
            (height, width, channels),
            # The rows of each tile transformed; later the columns of the products back.
            (IN, rows, width, channels),
            whole,
            whole,
            (4, IN, rows, width, channels),
        )
        back = half.flatten()[: IN * rows * columns * OUT * channels]
        back = back.view(IN, rows, columns, OUT, channels)
        self._half = half.unbind()
        self._columns = [half[:, :, k : k + OUT * columns - 3 : OUT] for k in range(IN)]
        self._transformed = transformed.view(IN * IN, rows * columns, channels)
        self._transformed_columns = transformed.unbind(1)
        self._product = product.view(IN * IN, rows * columns, channels)
        self._product_columns = product.unbind(1)
        self._back, self._back_columns = back.flatten(2, 3).unbind(), back.unbind(3)
        # Four tensors of the size of what is added at each of the steps.
        like = half[0], transformed[0], self._back[0]
        room = [part.flatten() for part in room]
        self._room = [[part[: x.numel()].view(x.shape) for part in room] for x in like]

    def read(self, pixels: Tensor, top: int, left: int) -> None:
        """Transforms what begins at (top, left) of pixels (h, w, C), zeros around them."""
        (height, width), end = self._size, pixels.shape
        if top < 0 or left < 0 or top + height > end[0] or left + width > end[1]:
            inside = pixels[max(0, top) : top + height, max(0, left) : left + width]
            y, x = max(0, -top), max(0, -left)
            pixels = self._padded.zero_()
            pixels[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        else:
            pixels = pixels[top : top + height, left : left + width]
        rows = [pixels[k : k + height - 5 : OUT] for k in range(IN)]
        _transform(rows, self._half, self._room[0])
        _transform(self._columns, self._transformed_columns, self._room[1])

    def write(self, kernel: Tensor, bias: Tensor, out: Tensor) -> None:
        """Multiplies what was read with a kernel (36, C, C) and transforms it back.

        Args:
            kernel: transformed.
            bias: (C,).
            out: (4 rows, 4 columns, C), written to.
        """
        torch.bmm(self._transformed, kernel, out=self._product)
        self._product[IN + 1] += bias  # that of the points 1 and 1 goes into every pixel once
        _transform_back(self._product_columns, self._back_columns, self._room[1])
        _transform_back(self._back, [out[k::OUT] for k in range(OUT)], self._room[2])


def _transform(d: Sequence[Tensor], out: Sequence[Tensor], room: list[Tensor]) -> None:
    """Six rows (or columns) of the input -> the six of its transform.

    4 d₀ − 5 d₂ + d₄, ∓4 d₁ − 4 d₂ ± d₃ + d₄, ∓2 d₁ − d₂ ± 2 d₃ + d₄, 4 d₁ − 5 d₃ + d₅.
    """
    a, b, c, e = room
    torch.sub(d[4], d[2], alpha=4, out=a)
    torch.sub(d[3], d[1], alpha=4, out=b)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.sub(d[4], d[2], out=c)
    torch.sub(d[3], d[1], out=e)
    torch.add(c, e, alpha=2, out=out[3])
    torch.sub(c, e, alpha=2, out=out[4])
    torch.sub(c, d[2], alpha=4, out=a)
    torch.add(a, d[0], alpha=4, out=out[0])
    torch.sub(d[5], d[3], out=c)
    torch.sub(c, e, alpha=4, out=out[5])


def _transform_back(m: Sequence[Tensor], out: Sequence[Tensor], room: list[Tensor]) -> None:
    """Six rows (or columns) of the products -> four of the output.

    m₀ + (m₁ + m₂) + (m₃ + m₄), (m₁ − m₂) + 2 (m₃ − m₄), (m₁ + m₂) + 4 (m₃ + m₄),
    (m₁ − m₂) + 8 (m₃ − m₄) + m₅.
    """
    s, d, p, q = room
    torch.add(m[1], m[2], out=s)
    torch.sub(m[1], m[2], out=d)
    torch.add(m[3], m[4], out=p)
    torch.sub(m[3], m[4], out=q)
    torch.add(d, q, alpha=2, out=out[1])
    torch.add(s, p, alpha=4, out=out[2])
    torch.add(d, m[5], out=d)
    torch.add(d, q, alpha=8, out=out[3])
    torch.add(s, m[0], out=s)
    torch.add(s, p, out=out[0])


class WinogradGenerator(InferenceGenerator):
    """`InferenceGenerator` with its 3×3 convolutions by Winograd's algorithm; on a CPU, float32.

    The numbers are the same up to some 1e-5.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__(state)
        self._convolutions: dict[str, WinogradConvolution] = {}
        for name in [key.removesuffix(".weight") for key in state if key.endswith(".weight")]:
            weight = state[f"{name}.weight"]
            if weight.shape[-1] == 3:
                bias, slope = state[f"{name}.bias"], self.slopes.get(name, 1.0)
                self._convolutions[name] = WinogradConvolution(weight, bias, slope)
                self.drop(name)

    def convolve(self, name: str, x: Tensor, part: Rectangle | None = None) -> Tensor:
        if name in self._convolutions:
            return self._convolutions[name](x, part)
        return super().convolve(name, x, part)
