"""The figures of a dataset report: plots and grids of photos."""

import io
from collections import Counter
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageOps

from train.measure import CROP, RATIOS, SCALE, Measure, centre, low_res

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
    # Of each photo only what is shown is kept.
    photos, crops = [], []
    for measure in spread(measures, grid):
        image = measure.photo.open()
        photos.append(fit(image))
        crops.append(centre(image))
    ranked = sorted(measures, key=lambda measure: measure.fine)
    few = min(2 * COLUMNS, max(1, len(ranked) // 2))
    softest, sharpest = (
        [centre(measure.photo.open()) for measure in part] for part in (ranked[:few], ranked[-few:])
    )
    return [
        *plots,
        ReportFigure(
            "photos.png",
            "Photos",
            f"{len(photos)} of {len(measures)}, spread evenly over the dataset.",
            draw_grid(photos),
        ),
        ReportFigure(
            "hr.png",
            "High-res crops",
            f"The centre {CROP} × {CROP} pixels of the same photos: what training aims at.",
            draw_grid(crops),
        ),
        ReportFigure(
            "lr.png",
            "Their low-res counterparts",
            f"Bicubic ÷{SCALE}, so {CROP // SCALE} × {CROP // SCALE} pixels, shown enlarged "
            f"without smoothing: what the network is given.",
            draw_grid([low_res(image) for image in crops]),
        ),
        ReportFigure(
            "softest.png",
            "The softest photos",
            "Centre crops with the smallest share of energy above the low-res Nyquist frequency: "
            "there is little to learn from them.",
            draw_grid(softest),
        ),
        ReportFigure(
            "sharpest.png",
            "The sharpest photos",
            "Centre crops with the largest share. Noise and compression artefacts show up here.",
            draw_grid(sharpest),
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


def fit(image: Image.Image) -> Image.Image:
    """Reduces a photo, where it is larger, to CROP pixels on its longer side."""
    if max(image.size) <= CROP:
        return image
    return ImageOps.contain(image, (CROP, CROP), Image.Resampling.LANCZOS)


def draw_grid(images: list[Image.Image]) -> bytes:
    """Images in rows, each in a square of CROP pixels; small ones keep their pixels visible.

    Args:
        images: of at most CROP pixels a side.
    """
    gap = 8
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    pitch = CROP + gap
    sheet = Image.new("RGB", (columns * pitch - gap, rows * pitch - gap), "white")
    for number, image in enumerate(images):
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
