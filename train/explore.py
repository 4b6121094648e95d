"""Shows what is in a dataset: sizes, shapes, sharpness, and the photos themselves.

    python -m train.explore prepared report

Reads a dataset of train.prepare, or any folder or archive of photos, and writes one PNG for each
figure and `index.html`, which holds them all and needs no other file. The tables also go to the
terminal.
"""

import base64
import html
import io
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageOps

from train.prepare import (
    IMAGES_FILE,
    INDEX_FILE,
    JOURNAL_FILE,
    MANIFEST_FILE,
    Entry,
    PrepareError,
    Rejected,
    cores,
    decode,
    list_sources,
    map_in_order,
    progress,
)

logger = logging.getLogger(__name__)

SCALE = 4  # as in srgan.generator, which would load torch in every worker process
#: Side, in pixels, of the centre crop that is measured and shown: the HR side of the original
#: project.
CROP = 256
#: Aspect ratios of cameras and screens, long side to short.
RATIOS = {"1:1": 1.0, "5:4": 5 / 4, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2.0}
COLUMNS = 6
INK, SOFT, ACCENT = "#222222", "#8a8a8a", "#2b6a99"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e6e6",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}


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


# ------------------------------------------------------------------------------- photos


@dataclass(frozen=True, slots=True)
class PackedPhoto:
    """An image of a prepared dataset.

    Attributes:
        name: where it came from.
        path: images.bin.
        offset: its first byte there.
        height, width: of the packed image.
        original: width and height before it was prepared.
    """

    name: str
    path: Path
    offset: int
    height: int
    width: int
    original: tuple[int, int]

    def open(self) -> Image.Image:
        """The image, RGB."""
        shape = (self.height, self.width, 3)
        pixels = np.fromfile(self.path, np.uint8, int(np.prod(shape)), offset=self.offset)
        return Image.fromarray(pixels.reshape(shape))


@dataclass(frozen=True, slots=True)
class FilePhoto:
    """An image file in a folder or archive."""

    entry: Entry
    max_pixels: int

    @property
    def name(self) -> str:
        """Where it came from."""
        return self.entry.name

    def open(self) -> Image.Image:
        """The image, upright, RGB.

        Raises:
            Rejected: it is no photo.
        """
        return decode(self.entry, min_side=16, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class Dataset:
    """Photos, and what is known of them without looking.

    Attributes:
        name: of the folder or archive.
        photos: all of them.
        left_out: how many files preparing it has left out, by reason.
        splits: how many photos each split has; empty where there are no splits.
    """

    name: str
    photos: list[PackedPhoto | FilePhoto]
    left_out: Counter[str]
    splits: Counter[str]


def open_dataset(path: Path, scratch: Path, max_pixels: int) -> Dataset:
    """Lists the photos of a prepared dataset, a folder or an archive.

    Raises:
        PrepareError: there are none.
    """
    name = path.resolve().name
    if (path / MANIFEST_FILE).is_file():
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        rows = np.load(path / INDEX_FILE).tolist()
        photos = [
            PackedPhoto(
                name=image["name"],
                path=path / IMAGES_FILE,
                offset=offset,
                height=height,
                width=width,
                original=(image["original_width"], image["original_height"]),
            )
            for image, (offset, height, width, _) in zip(manifest["images"], rows, strict=True)
        ]
        return Dataset(
            name=name,
            photos=photos,
            left_out=Counter(manifest["counts"]["rejected"]),
            splits=Counter(image["split"] for image in manifest["images"]),
        )
    if (path / JOURNAL_FILE).is_file():
        raise PrepareError(f"{path} is unfinished: give its train.prepare command again first")
    entries, _ = list_sources([path], scratch)
    if not entries:
        raise PrepareError(f"no image files in {path}")
    photos = [FilePhoto(entry, max_pixels) for entry in entries]
    return Dataset(name=name, photos=photos, left_out=Counter(), splits=Counter())


@dataclass(frozen=True, slots=True)
class Measure:
    """What looking at a photo gives.

    Attributes:
        photo: the photo.
        width, height: its original size, in pixels.
        laplacian: variance of the Laplacian of the luma, in squared 8-bit levels.
        fine: share, in [0, 1], of the energy that lies above the Nyquist frequency of the LR
            image: what ×4 enlargement has to invent.
    """

    photo: PackedPhoto | FilePhoto
    width: int
    height: int
    laplacian: float
    fine: float


def measure_all(dataset: Dataset, workers: int) -> tuple[list[Measure], list[str]]:
    """Looks at every photo.

    Returns:
        A measure of each, and the reasons for which files had none.
    """
    measures: list[Measure] = []
    failures: list[str] = []
    total = len(dataset.photos)
    with progress(total, 0, "explore", unit="image") as bar:
        for result in map_in_order(measure, dataset.photos, min(workers, total)):
            if isinstance(result, Measure):
                measures.append(result)
            else:
                failures.append(result)
            bar.update()
    return measures, failures


def measure(photo: PackedPhoto | FilePhoto) -> Measure | str:
    """Looks at one photo; returns the reason where it can't."""
    try:
        image = photo.open()
    except Rejected as rejection:
        return rejection.reason
    width, height = photo.original if isinstance(photo, PackedPhoto) else image.size
    luma = np.asarray(centre(image).convert("L"), np.float32)
    return Measure(photo, width, height, laplacian_variance(luma), fine_energy(luma))


def centre(image: Image.Image) -> Image.Image:
    """The middle of an image: a square of CROP pixels, or what there is of it.

    Its corner and sides are multiples of SCALE, so that its LR counterpart is whole pixels.
    """
    side = min(CROP, *image.size) // SCALE * SCALE
    left, top = ((length - side) // 2 // SCALE * SCALE for length in image.size)
    return image.crop((left, top, left + side, top + side))


def low_res(image: Image.Image) -> Image.Image:
    """The LR counterpart: bicubic ÷4, as in training."""
    width, height = (length // SCALE * SCALE for length in image.size)
    whole = image.crop((0, 0, width, height))
    return whole.resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC)


def laplacian_variance(luma: np.ndarray) -> float:
    """Variance of the four-neighbour Laplacian.

    Args:
        luma: (H, W), 8-bit levels.
    """
    middle = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(edges.var())


def fine_energy(luma: np.ndarray) -> float:
    """Share of the energy, mean excluded, at frequencies that the LR image can't hold.

    Args:
        luma: (H, W).
    """
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width))  # no energy from the borders
    energy = np.abs(np.fft.fft2((luma - luma.mean()) * window)) ** 2
    nyquist = 0.5 / SCALE  # cycles a pixel
    above_y = np.abs(np.fft.fftfreq(height)) > nyquist
    above_x = np.abs(np.fft.fftfreq(width)) > nyquist
    total = energy.sum()
    return float(energy[above_y[:, None] | above_x].sum() / total) if total else 0.0


# ------------------------------------------------------------------------------- tables


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


def shape_of(width: int, height: int) -> str:
    """Names an aspect ratio: "3:2 landscape", "1:1", "other portrait"."""
    ratio = max(width, height) / min(width, height)
    names = [name for name, value in RATIOS.items() if abs(ratio / value - 1) <= 0.02]
    if names == ["1:1"]:
        return "1:1"
    return f"{names[0] if names else 'other'} {'landscape' if width > height else 'portrait'}"


# ------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        file: its name.
        title: what it shows.
        caption: how to read it.
        png: the encoded image.
    """

    file: str
    title: str
    caption: str
    png: bytes


def make_figures(measures: list[Measure], grid: int) -> list[ReportFigure]:
    """Draws everything: plots first, then photos."""
    with matplotlib.rc_context(STYLE):
        plots = [
            ReportFigure(
                "sizes.png",
                "Sizes",
                "A disc for each original size, its area proportional to the number of photos, "
                "and the distributions of width and height. The dotted line is square.",
                draw_sizes(measures),
            ),
            ReportFigure(
                "common-sizes.png",
                "Most common sizes",
                "Width × height of the original photos.",
                draw_common_sizes(measures),
            ),
            ReportFigure(
                "aspect-ratios.png",
                "Aspect ratios",
                "Width divided by height of the original photos, on a logarithmic axis.",
                draw_aspect_ratios(measures),
            ),
            ReportFigure(
                "sharpness.png",
                "Sharpness",
                f"Of the brightness of the centre {CROP} × {CROP} pixels. Right: share of the "
                f"energy, mean excluded, above the Nyquist frequency of the low-res image (1/8 "
                f"cycle a pixel): what enlargement has to invent.",
                draw_sharpness(measures),
            ),
        ]
    chosen = [measure.photo.open() for measure in spread(measures, grid)]
    ranked = sorted(measures, key=lambda measure: measure.fine)
    few = min(2 * COLUMNS, max(1, len(ranked) // 2))
    softest, sharpest = (
        [measure.photo.open() for measure in part] for part in (ranked[:few], ranked[-few:])
    )
    return [
        *plots,
        ReportFigure(
            "photos.png",
            "Photos",
            f"{len(chosen)} of {len(measures)}, spread evenly over the dataset.",
            draw_grid(chosen),
        ),
        ReportFigure(
            "hr.png",
            "High-res crops",
            f"The centre {CROP} × {CROP} pixels of the same photos: what training aims at.",
            draw_grid([centre(image) for image in chosen]),
        ),
        ReportFigure(
            "lr.png",
            "Their low-res counterparts",
            f"Bicubic ÷{SCALE}, so {CROP // SCALE} × {CROP // SCALE} pixels, shown enlarged "
            f"without smoothing: what the network is given.",
            draw_grid([low_res(centre(image)) for image in chosen]),
        ),
        ReportFigure(
            "softest.png",
            "The softest photos",
            "Centre crops with the smallest share of energy above the low-res Nyquist frequency: "
            "there is little to learn from them.",
            draw_grid([centre(image) for image in softest]),
        ),
        ReportFigure(
            "sharpest.png",
            "The sharpest photos",
            "Centre crops with the largest share. Noise and compression artefacts show up here.",
            draw_grid([centre(image) for image in sharpest]),
        ),
    ]


def spread(measures: list[Measure], count: int) -> list[Measure]:
    """So many of them, evenly from first to last."""
    numbers = np.linspace(0, len(measures) - 1, min(count, len(measures))).astype(int)
    return [measures[number] for number in numbers]


def draw_sizes(measures: list[Measure]) -> bytes:
    """Discs in the plane of width and height, with a histogram of each along the edges."""
    sizes = Counter((measure.width, measure.height) for measure in measures)
    sides = np.array(list(sizes))  # (n, 2)
    counts = np.array(list(sizes.values()))
    bins, scale = bins_for(sides.ravel(), 61)

    figure = Figure(figsize=(7.5, 7.5))
    axes = figure.subplot_mosaic(
        [["top", "."], ["main", "right"]], width_ratios=(5, 1), height_ratios=(1, 5)
    )
    main, top, right = axes["main"], axes["top"], axes["right"]
    main.axline((bins[0], bins[0]), (bins[-1], bins[-1]), color=SOFT, linewidth=0.8, linestyle=":")
    areas = 8 + 600 * counts / max(counts.max(), 20)
    main.scatter(*sides.T, s=areas, color=ACCENT, alpha=0.4, linewidths=0)
    main.set(xlim=bins[[0, -1]], ylim=bins[[0, -1]])
    set_axis(main.xaxis, scale)
    set_axis(main.yaxis, scale)
    main.set(xlabel="width, pixels", ylabel="height, pixels")
    main.grid(True)
    label_sizes(main, sizes)

    top.hist([measure.width for measure in measures], bins, color=ACCENT)
    right.hist(
        [measure.height for measure in measures], bins, color=ACCENT, orientation="horizontal"
    )
    top.set(xlim=bins[[0, -1]], ylabel="photos")
    right.set(ylim=bins[[0, -1]], xlabel="photos")
    set_axis(top.xaxis, scale)
    set_axis(right.yaxis, scale)
    top.tick_params(labelbottom=False)
    right.tick_params(labelleft=False)
    top.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    right.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    return encode(figure)


def bins_for(values: np.ndarray, count: int) -> tuple[np.ndarray, str]:
    """Bin edges around all values, and the axis that suits them: "linear" or "log"."""
    low, high = float(values.min()), float(values.max())
    if high > 6 * low > 0:
        return np.geomspace(low / 1.1, high * 1.1, count), "log"
    margin = 0.06 * (high - low) or max(1.0, 0.1 * high)
    return np.linspace(low - margin, high + margin, count), "linear"


def set_axis(axis: Axis, scale: str) -> None:
    """Plain numbers at round places, on a linear or logarithmic axis."""
    axis.axes.set(**{f"{axis.axis_name}scale": scale})
    if scale == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def label_sizes(axes: Axes, sizes: Counter[tuple[int, int]]) -> None:
    """Names the sizes that many photos have, where no label covers another one."""
    few = sizes.total() / 50
    outline = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    taken: list[tuple[float, float]] = []  # middles of labels, as shares of the axes
    for (width, height), count in sizes.most_common(6):
        display = axes.transData.transform((width, height))
        x, y = axes.transAxes.inverted().transform(display)
        inner = min(max(x, 0.11), 0.89)
        for place in ((x + 0.14, y), (x - 0.14, y), (inner, y + 0.05), (inner, y - 0.05)):
            inside = 0.1 < place[0] < 0.9 and 0.02 < place[1] < 0.98
            clear = all(abs(place[0] - a) > 0.2 or abs(place[1] - b) > 0.035 for a, b in taken)
            if count > few and inside and clear:
                taken.append(place)
                axes.text(
                    *place,
                    f"{width} × {height}: {count}",
                    transform=axes.transAxes,
                    ha="center",
                    va="center",
                    fontsize=9,
                    path_effects=outline,
                )
                break


def draw_common_sizes(measures: list[Measure]) -> bytes:
    """Bars of the ten most common sizes, the most common on top."""
    sizes = Counter((measure.width, measure.height) for measure in measures).most_common(10)[::-1]
    figure = Figure(figsize=(7.5, 0.9 + 0.33 * len(sizes)))
    axes = figure.add_subplot()
    counts = [count for _, count in sizes]
    bars = axes.barh([f"{width} × {height}" for (width, height), _ in sizes], counts, color=ACCENT)
    labels = [f"{count} ({100 * count / len(measures):.1f} %)" for count in counts]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set(xlabel="photos", ylabel="width × height, pixels", xlim=(0, 1.18 * max(counts)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    return encode(figure)


def draw_aspect_ratios(measures: list[Measure]) -> bytes:
    """Histogram of width / height, with the usual ratios marked."""
    ratios = np.array([measure.width / measure.height for measure in measures])
    # Bins of a tenth of 4:3 have 1:1, 4:3 and 16:9 in the middle of one, and 3:2 nearly so.
    step = np.log(4 / 3) / 10
    reach = int(max(0.8, *np.abs(np.log(ratios))) / step) + 1
    bins = np.exp(step * (np.arange(-reach, reach + 2) - 0.5))
    figure = Figure(figsize=(7.5, 3.8))
    axes = figure.add_subplot()
    axes.hist(ratios, bins, color=ACCENT)
    axes.set(xscale="log", xlim=bins[[0, -1]], ylabel="photos")
    axes.set_xlabel("width / height: portrait left of 1:1, landscape right of it")
    marks = {name: value for name, value in RATIOS.items() if name not in ("5:4", "2:1")}
    turned = {":".join(name.split(":")[::-1]): 1 / value for name, value in marks.items()}
    marks = turned | marks
    axes.set_xticks(list(marks.values()), list(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(True)
    return encode(figure)


def draw_sharpness(measures: list[Measure]) -> bytes:
    """Histograms of both measures of sharpness, with their medians."""
    figure = Figure(figsize=(7.5, 3.6))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values, label in (
        (left, [measure.laplacian for measure in measures], "variance of the Laplacian, levels²"),
        (right, [100 * measure.fine for measure in measures], "energy above LR Nyquist, %"),
    ):
        # A flat crop has none of either; it goes into the first bin.
        values = np.maximum(values, max(values) * 1e-5 or 1e-5)
        bins, scale = bins_for(values, 46)
        axes.hist(values, bins, color=ACCENT)
        axes.set_xlim(bins[[0, -1]])
        set_axis(axes.xaxis, scale)
        median = np.median(values)
        axes.axvline(median, color=INK, linewidth=1)
        axes.annotate(
            f"median {median:.0f}" if median >= 100 else f"median {median:.2g}",
            (median, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, -10),
            textcoords="offset points",
            fontsize=9,
        )
        axes.set(xlabel=label)
        axes.grid(True)
    left.set(ylabel="photos")
    left.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return encode(figure)


def encode(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_grid(images: list[Image.Image]) -> bytes:
    """Images in rows, each in a square of CROP pixels; small ones keep their pixels visible."""
    gap = 8
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    pitch = CROP + gap
    sheet = Image.new("RGB", (columns * pitch - gap, rows * pitch - gap), "white")
    for number, image in enumerate(images):
        if max(image.size) > CROP:
            image = ImageOps.contain(image, (CROP, CROP), Image.Resampling.LANCZOS)
        else:
            factor = CROP // max(image.size)
            image = image.resize(
                (factor * image.width, factor * image.height), Image.Resampling.NEAREST
            )
        row, column = divmod(number, columns)
        left = column * pitch + (CROP - image.width) // 2
        sheet.paste(image, (left, row * pitch + (CROP - image.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


# --------------------------------------------------------------------------------- page

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
