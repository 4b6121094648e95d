"""Runs the network on an image of any size in bounded memory, with the whole image's result.

A tile is computed with a halo as wide as the network sees, which is then thrown away, so no seam
can arise. The body sees 37 pixels far and takes little memory a pixel; the tail sees 3 and takes
much. So the body has large tiles, the tail small ones within them, and little is computed twice.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from torch import Tensor

from srgan.generator import SCALE, InferenceGenerator

Rectangle = tuple[slice, slice]
#: Pixels of the features that are computed at a time where they stay in a processor's cache.
BAND = 2**16


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
    counts = (_cuts(length, body_tile, seen) for length in (height, width))
    # (tile, the features its tail needs, the pixels its body needs)
    body_tiles = [
        (tile, _grow(tile, halo, height, width), _grow(tile, seen, height, width))
        for tile in _grid(slice(0, height), slice(0, width), *counts)
    ]
    block_work = network.body_work // network.depth
    total = sum(_area(context) for _, _, context in body_tiles) * block_work * network.depth
    total += height * width * network.tail_work
    done = 0

    def advance(work: int) -> None:
        nonlocal done
        done += work
        if progress is not None:
            progress(done / total)

    sr = lr.new_empty(1, 3, SCALE * height, SCALE * width)
    for tile, inner, context in body_tiles:
        features = network.body(
            _cut(lr, context), tick=partial(advance, _area(context) * block_work)
        )
        features = _cut(features, _relative(inner, context))
        counts = (_cuts(span.stop - span.start, tail_tile, halo) for span in tile)
        for part in _grid(*tile, *counts):
            around = _grow(part, halo, height, width)
            enlarged = network.tail(_cut(features, _relative(around, inner)))
            _cut(sr, _scaled(part))[:] = _cut(enlarged, _scaled(_relative(part, around)))
            advance(_area(part) * network.tail_work)
        del features  # or there would be those of two tiles at a time
    return sr


def _cuts(length: int, side: int, halo: int) -> int:
    """Into how many tiles a length is cut."""
    return 1 if length <= side + 2 * halo else -(-length // side)


def _grid(rows: slice, columns: slice, down: int, across: int) -> Iterator[Rectangle]:
    """Cuts a rectangle into so many tiles, as equal in size as can be."""
    for row in split(rows, down):
        for column in split(columns, across):
            yield row, column


def split(span: slice, count: int) -> list[slice]:
    """So many parts of a span, as equal as can be."""
    length = span.stop - span.start
    edges = [span.start + length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def bands(features: Tensor) -> list[slice]:
    """Rows of features (N, C, h, w) that together have about `BAND` pixels; two rows at least, if
    there are so many."""
    height, width = features.shape[2:]
    return split(slice(0, height), max(1, min(height // 2, -(-height * width // BAND))))


def _grow(tile: Rectangle, halo: int, height: int, width: int) -> Rectangle:
    """The tile with its halo, as far as the image goes: at its edges the network pads itself."""
    rows, columns = tile
    return (
        slice(max(0, rows.start - halo), min(height, rows.stop + halo)),
        slice(max(0, columns.start - halo), min(width, columns.stop + halo)),
    )


def _relative(inner: Rectangle, outer: Rectangle) -> Rectangle:
    return tuple(
        slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)
    )


def _scaled(tile: Rectangle) -> Rectangle:
    return tuple(slice(SCALE * span.start, SCALE * span.stop) for span in tile)


def _area(tile: Rectangle) -> int:
    rows, columns = tile
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def _cut(tensor: Tensor, tile: Rectangle) -> Tensor:
    return tensor[(slice(None), slice(None), *tile)]
