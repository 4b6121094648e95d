"""Draws pages of words, lines and shapes to train on beside photographs.

    python -m train.pages pages
    python -m train.prepare photos/ pages/ prepared

Photographs have little writing, and an adversary that never saw letters puts grain around them.
"""

import math
import random
import string
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

#: Pages are drawn so many times larger and then reduced, so that no edge is a staircase.
OVERSAMPLING = 4
FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
#: Those that come with Matplotlib and have letters. "Display" ones have a few signs only.
FAMILIES = "DejaVuSans", "DejaVuSerif", "STIXGeneral"
FONTS = {
    family: [font for font in sorted(FOLDER.glob(f"{family}*.ttf")) if "Display" not in font.stem]
    for family in FAMILIES
}
#: Sizes of letters, and widths of lines, in pixels.
LETTERS, LINES = (7, 64), (0.5, 4)
CHARACTERS = string.ascii_lowercase * 6 + string.ascii_uppercase + string.digits + ".,:;-()&%"
#: Of the pages: dark ones, coloured ones, tilted ones.
DARK, COLORED, TILTED = 0.2, 0.3, 0.25

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PagesConfig:
    """Draws pages of words, lines and shapes to train on beside photographs.

    Args:
        out: Folder for the PNGs.
        count: Pages.
        side: Width and height in pixels.
        seed: Of the pages: the same one gives the same pages.
    """

    out: tyro.conf.Positional[Path]
    count: int = 150
    side: int = 512
    seed: int = 0

    def __post_init__(self):
        for name, least in (("count", 1), ("side", 64)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def draw_pages(config: PagesConfig) -> None:
    """Writes page-000.png and so on; raises OSError."""
    config.out.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(config.count), desc="pages", unit="page"):
        page = draw_page(config.side, random.Random(f"{config.seed} {i}"))
        page.save(config.out / f"page-{i:03}.png")


def draw_page(side: int, draw: random.Random) -> Image.Image:
    """One page, RGB, side × side."""
    paper, ink = _colors(draw)
    large = OVERSAMPLING * side
    page = Image.new("RGB", (large, large), paper)
    pen = ImageDraw.Draw(page)
    for _ in range(draw.randint(0, 4)):
        _draw_shape(pen, large, ink if draw.random() < 0.5 else _any_color(draw), draw)
    if draw.random() < 0.3:
        _draw_table(pen, large, ink, draw)
    _draw_text(pen, large, ink, draw)
    if draw.random() < TILTED:
        page = page.rotate(draw.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor=paper)
    return page.reduce(OVERSAMPLING)


def _colors(draw: random.Random) -> tuple[Color, Color]:
    """Of paper and ink."""
    paper, ink = (draw.randint(215, 255),) * 3, (draw.randint(0, 70),) * 3
    if draw.random() < COLORED:
        tint, shade = _any_color(draw), _any_color(draw)
        paper = tuple(round(0.7 * a + 0.3 * b) for a, b in zip(paper, tint, strict=True))
        ink = tuple(round(0.4 * a + 0.4 * b) for a, b in zip(ink, shade, strict=True))
    return (ink, paper) if draw.random() < DARK else (paper, ink)


def _any_color(draw: random.Random) -> Color:
    return tuple(draw.randint(0, 255) for _ in range(3))


def _draw_text(pen: ImageDraw.ImageDraw, side: int, ink: Color, draw: random.Random) -> None:
    """Paragraphs from the top to the bottom, each in a font and size of its own."""
    top = draw.uniform(0, 0.1) * side
    while top < side:
        least, most = (math.log(OVERSAMPLING * size) for size in LETTERS)
        size = round(math.exp(draw.uniform(least, most)))
        font = ImageFont.truetype(draw.choice(FONTS[draw.choice(FAMILIES)]), size)
        color = _any_color(draw) if draw.random() < 0.15 else ink
        left = draw.uniform(0, 0.3) * side
        for _ in range(draw.randint(1, 6)):
            words = (_word(draw) for _ in range(side // size))
            pen.text((left, top), " ".join(words), color, font)
            top += draw.uniform(1.2, 1.5) * size
        top += draw.uniform(0, 1) * size


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(CHARACTERS, k=draw.randint(1, 9)))


def _draw_table(pen: ImageDraw.ImageDraw, side: int, ink: Color, draw: random.Random) -> None:
    """Lines from edge to edge, equally far from each other, one way or both."""
    width = _line_width(draw)
    for vertical in draw.choice([(False,), (True,), (False, True)]):
        step = OVERSAMPLING * draw.randint(5, 60)
        for at in range(draw.randint(0, step), side, step):
            ends = ((at, 0), (at, side)) if vertical else ((0, at), (side, at))
            pen.line(ends, ink, width)


def _draw_shape(pen: ImageDraw.ImageDraw, side: int, color: Color, draw: random.Random) -> None:
    left, right = sorted(draw.sample(range(side), 2))
    top, bottom = sorted(draw.sample(range(side), 2))
    filled = draw.random() < 0.5
    options = {"fill": color} if filled else {"outline": color, "width": _line_width(draw)}
    match draw.choice(["ellipse", "rectangle", "triangle", "line"]):
        case "ellipse":
            pen.ellipse((left, top, right, bottom), **options)
        case "rectangle":
            pen.rectangle((left, top, right, bottom), **options)
        case "triangle":
            corners = [(draw.randrange(side), draw.randrange(side)) for _ in range(3)]
            pen.polygon(corners, **options)
        case "line":
            pen.line((left, top, right, bottom), color, _line_width(draw))


def _line_width(draw: random.Random) -> int:
    return max(1, round(OVERSAMPLING * draw.uniform(*LINES)))


def main() -> None:
    """The command line."""
    config = tyro.cli(PagesConfig, prog="python -m train.pages")
    try:
        draw_pages(config)
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
