"""Shows what is in a dataset: sizes, shapes, sharpness, and the photos themselves.

    python -m train.explore prepared report

Reads a dataset of train.prepare, or any folder or archive of photos, and writes one PNG for each
figure and `index.html`, which holds them all and needs no other file. The tables also go to the
terminal.
"""

import base64
import html
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from train.figures import ReportFigure, make_figures
from train.measure import Dataset, Measure, measure_all, open_dataset, shape_of
from train.parallel import cores
from train.sources import PrepareError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """Shows what is in a dataset: sizes, shapes, sharpness, and the photos themselves.

    Args:
        dataset: A folder made by train.prepare, or any folder or archive of photos.
        out: Folder for the figures and index.html.
        grid: Photos in each grid, drawn evenly from the whole dataset.
        max_pixels: Leave out photos that declare more pixels; for folders and archives.
        workers: Processes that read and measure; None is one a core.
    """

    dataset: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    grid: int = 24
    max_pixels: int = 64_000_000
    workers: int | None = None

    def __post_init__(self):
        for name in ("grid", "max_pixels", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def explore(config: ExploreConfig) -> Path:
    """Measures all photos, and writes the figures and the page.

    Returns:
        The page.

    Raises:
        PrepareError: there is nothing to show.
        OSError: a file can't be read or written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(config.dataset, Path(scratch), config.max_pixels)
        measures, failures = measure_all(dataset, config.workers or cores())
        if not measures:
            raise PrepareError(
                f"none of the {len(dataset.photos)} files in {dataset.name} is a photo"
            )
        left_out = dataset.left_out + Counter(failures)
        tables = make_tables(dataset, measures, left_out)
        figures = make_figures(measures, config.grid)
    config.out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (config.out / figure.file).write_bytes(figure.png)
    page = config.out / "index.html"
    page.write_text(make_page(dataset.name, tables, figures), encoding="utf-8")
    logger.info("%s\n\n%s", "\n\n".join(table.as_text() for table in tables), page)
    return page


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the first column is left-aligned, the others right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_text(self) -> str:
        """For a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in text)])

    def as_html(self) -> str:
        """For the page."""

        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "\n".join(row(cells, "td") for cells in self.rows)
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n"
            f"<thead>{row(self.header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )


def make_tables(dataset: Dataset, measures: list[Measure], left_out: Counter[str]) -> list[Table]:
    """Counts, distributions, the most common sizes and aspect ratios."""
    total = len(measures)

    def share(count: int) -> str:
        return f"{100 * count / total:.1f} %"

    counts = [("photos", f"{total}", share(total))]
    for split, use in (("train", "for training"), ("validation", "for validation")):
        if dataset.splits:
            counts.append((use, f"{dataset.splits[split]}", share(dataset.splits[split])))
    counts += [(f"left out: {reason}", f"{n}", "") for reason, n in left_out.most_common()]

    def row(title: str, values: Sequence[float], digits: int) -> list[str]:
        quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
        return [title, *(f"{value:.{digits}f}" for value in quantiles)]

    distribution = [
        row("original width, pixels", [m.width for m in measures], 0),
        row("original height, pixels", [m.height for m in measures], 0),
        row("original megapixels", [m.width * m.height / 1e6 for m in measures], 2),
        row("original width / height", [m.width / m.height for m in measures], 2),
        row("variance of the Laplacian, levels²", [m.laplacian for m in measures], 0),
        row("energy above the LR Nyquist frequency, %", [100 * m.fine for m in measures], 2),
    ]
    sizes = Counter((m.width, m.height) for m in measures)
    common = [(f"{w} × {h}", f"{n}", share(n)) for (w, h), n in sizes.most_common(10)]
    shapes = Counter(shape_of(m.width, m.height) for m in measures)
    ratios = [(shape, f"{n}", share(n)) for shape, n in shapes.most_common(8)]
    return [
        Table(f"Dataset {dataset.name}", ("", "photos", "share"), counts),
        Table("Distribution", ("", "min", "5 %", "median", "95 %", "max"), distribution),
        Table(f"Most common of {len(sizes)} original sizes", ("size", "photos", "share"), common),
        Table("Original aspect ratios, within 2 %", ("ratio", "photos", "share"), ratios),
    ]


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dataset {name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 1rem; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .2rem; }}
p {{ color: #555; margin: 0 0 .6rem; }}
img {{ max-width: 100%; height: auto; display: block; }}
.tables {{ display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: start;
           overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; white-space: nowrap; font-weight: 600; padding-bottom: .3rem; }}
th, td {{ text-align: right; padding: .15rem .7rem; border-bottom: 1px solid #e6e6e6; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ font-weight: 400; color: #666; }}
</style>
</head>
<body>
<h1>Dataset {name}</h1>
<div class="tables">
{tables}
</div>
{figures}
</body>
</html>
"""


def make_page(name: str, tables: list[Table], figures: list[ReportFigure]) -> str:
    """One HTML file with everything in it."""
    sections = [
        f"<h2>{html.escape(figure.title)}</h2>\n<p>{html.escape(figure.caption)}</p>\n"
        f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,'
        f'{base64.b64encode(figure.png).decode()}">'
        for figure in figures
    ]
    return PAGE.format(
        name=html.escape(name),
        tables="\n".join(table.as_html() for table in tables),
        figures="\n".join(sections),
    )


def main() -> None:
    """The command line."""
    config = tyro.cli(ExploreConfig, prog="python -m train.explore")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        explore(config)
    except (PrepareError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
