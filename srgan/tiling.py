"""Runs the network on an image of any size in bounded memory, with the whole image's result.

A tile is computed with a halo as wide as the network sees, which is then thrown away, so no seam
can arise. The body sees 37 pixels far and takes little memory a pixel; the tail sees 3 and takes
much. So the body has large tiles, the tail small ones within them, and little is computed twice.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product

import torch.nn.functional as F
from torch import Tensor

from srgan.generator import SCALE, InferenceGenerator, Margins, Rectangle, grow, relative, scaled


def enlarge_tiled(
    network: InferenceGenerator,
    lr: Tensor,
    *,
    body_tile: int = 944,
    tail_tile: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Enlarges tile by tile; equal to `network(lr)` up to the rounding of float32.

    Args:
        network: on the device of `lr`.
        lr: (1, 3, h, w) in [0, 1].
        body_tile, tail_tile: largest side of a tile in LR pixels, halo not included; an image that
            is no longer than a tile with its halo isn't cut.
        progress: called after every tail tile and every residual block of a body tile with the
            share of the work that is done, in (0, 1]. What it raises ends the work.

    Returns:
        (1, 3, 4h, 4w), not clamped.

    Raises:
        ValueError: a tile is smaller than one pixel.
    """
    if min(body_tile, tail_tile) < 1:
        raise ValueError(f"tiles need at least 1 pixel a side, got {min(body_tile, tail_tile)}")
    height, width = lr.shape[2:]
    halo = network.tail_halo
    seen = halo + network.body_halo
    down, across = (_cover(slice(0, side), body_tile, seen) for side in (height, width))
    block_work = network.body_work // network.depth
    total = sum(_area((row, column)) for _, row in down for _, column in across)
    total *= block_work * network.depth
    total += height * width * network.tail_work
    done = 0

    def advance(work: int) -> None:
        nonlocal done
        done += work
        if progress is not None:
            progress(done / total)

    sr = lr.new_empty(1, 3, SCALE * height, SCALE * width)
    for (rows, row_window), (columns, column_window) in product(down, across):
        window = row_window, column_window
        features = network.body(_cut(lr, window), tick=partial(advance, _area(window) * block_work))
        for spans in product(_cover(rows, tail_tile), _cover(columns, tail_tile)):
            part, computed = zip(*spans, strict=True)
            around, outside = _grow(computed, halo, (height, width))
            enlarged = network.tail(
                F.pad(_cut(features, _relative(around, window)), outside), outside
            )
            _cut(sr, _scaled(computed))[:] = enlarged
            advance(_area(part) * network.tail_work)
        del features  # or there would be those of two tiles at a time
    return sr


def _cover(span: slice, side: int, halo: int = 0) -> list[tuple[slice, slice]]:
    """Cuts a span into parts, and tells of each the window that it is computed from.

    The windows are equally long, at most `side` with a halo at both ends: oneDNN compiles code for
    each length. They overlap so far that, but for the ends of the span, none needs its own halo.

    Returns:
        (part, window) from the span's start to its end.
    """
    length = span.stop - span.start
    count = max(1, -(-(length - 2 * halo) // side))
    window = -(-(length + 2 * halo * (count - 1)) // count)
    starts = [span.start + (length - window) * i // max(1, count - 1) for i in range(count)]
    edges = [span.start, *(start + halo for start in starts[1:]), span.stop]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return list(zip(parts, [slice(a, a + window) for a in starts], strict=True))


def _grow(tile: Rectangle, halo: int, size: tuple[int, int]) -> tuple[Rectangle, Margins]:
    """A tile with its halo as far as that is inside of an image, and how much of it is outside."""
    inside, outside = [], ()
    for span, length in zip(tile, size, strict=True):
        inside.append(grow(span, halo, length))
        outside = (max(0, halo - span.start), max(0, span.stop + halo - length), *outside)
    return tuple(inside), outside


def _relative(inner: Rectangle, outer: Rectangle) -> Rectangle:
    return tuple(relative(i, o) for i, o in zip(inner, outer, strict=True))


def _scaled(tile: Rectangle) -> Rectangle:
    return tuple(scaled(span) for span in tile)


def _area(tile: Rectangle) -> int:
    rows, columns = tile
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def _cut(tensor: Tensor, tile: Rectangle) -> Tensor:
    return tensor[(slice(None), slice(None), *tile)]
