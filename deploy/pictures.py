"""Draw a study's results: arrays in, one PNG out. No global state: figures are objects, and fonts are sized here."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from cairn.palette import BACKGROUND, cluster_colour

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]

INK = "#22262e"
FAINT = "#8a8f98"
DPI = 150
LONGEST_SIDE = 1600  # px of an image as drawn; a larger one is thinned first


def embedding(path: Path, xy: Floats, clusters: Integers, counts: Integers, states: Sequence[str]) -> None:
    """Draw the heavy hitters in the plane, coloured by cluster, each dot's area and weight by its count.

    xy        float[n, 2]
    clusters  int[n], an index into `states`
    counts    int[n], pixels
    states    the state of each cluster
    """
    figure = _figure(11.5, 7.2)
    places, key = figure.subplots(1, 2, width_ratios=(2.25, 1))
    strength = np.log1p(np.maximum(counts, 0)) / max(float(np.log1p(counts.max(initial=1))), 1e-9)
    order = np.argsort(-counts, kind="stable")  # large dots first, so that they hide no small ones
    colours = np.array([to_rgb(cluster_colour(i)) for i in range(len(states))]).reshape(-1, 3)
    rgba = np.column_stack([colours[clusters], 0.35 + 0.55 * strength])
    places.scatter(*xy[order].T, s=1.5 + 70 * strength[order] ** 4, c=rgba[order], linewidths=0)
    for cluster in range(len(states)):
        mine = clusters == cluster
        if mine.any():
            middle = _medoid(xy[mine], counts[mine])
            text = places.text(*middle, str(cluster), ha="center", va="center", size=11, weight="bold", color=INK)
            text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
    places.set_title(f"{len(xy):,} heavy hitters, {_count(int(counts.sum()))} pixels", size=12, loc="left", color=INK)
    _bare(places)
    places.set_aspect("equal", adjustable="datalim")
    keys, pixels = (np.bincount(clusters, weights, len(states)) for weights in (None, counts))
    _table(
        key,
        ("cluster", "state", "keys", "pixels", "share"),
        [
            (str(i), state, f"{int(keys[i]):,}", _count(int(pixels[i])), f"{pixels[i] / max(pixels.sum(), 1):.1%}")
            for i, state in enumerate(states)
        ],
    )
    _save(figure, path)


def labels(
    path: Path, tissue: Floats, label: npt.NDArray[np.uint8], names: Sequence[str], *, channels: Sequence[str] = ()
) -> None:
    """Draw an image's labels beside its tissue.

    tissue    float[h, w, 3], three bands as red, green and blue, each stretched between its 1 % and 99.7 % quantiles
    label     uint8[h, w], 0 for background, else 1 + an index into `names`
    channels  the three bands' names
    """
    height, width = label.shape
    step = -(-max(height, width) // LONGEST_SIDE)
    side = 6.2
    figure = _figure(2 * side, side * min(max(height / width, 0.4), 2.0) + 1.2)
    left, right = figure.subplots(1, 2)
    left.imshow(stretch(tissue[::step, ::step]), interpolation="antialiased")
    table = np.array([to_rgb(BACKGROUND)] + [to_rgb(cluster_colour(i)) for i in range(255)])
    right.imshow(table[label[::step, ::step]], interpolation="nearest")
    left.set_title("tissue", size=12, loc="left", color=INK)
    right.set_title("labels", size=12, loc="left", color=INK)
    for axes in (left, right):
        _bare(axes)
    if channels:
        dyes = ("#e0301e", "#1f9d3a", "#2b50e0")
        left.legend(
            handles=[Patch(color=dye, label=name) for dye, name in zip(dyes, channels, strict=True)],
            loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=10, handlelength=1,
        )  # fmt: skip
    share = np.bincount(label.ravel(), minlength=256) / max(label.size, 1)
    present = [i for i in range(len(names)) if share[i + 1] > 0]
    handles = [Patch(color=BACKGROUND, label=f"background {share[0]:.0%}")] if share[0] else []
    handles += [Patch(color=cluster_colour(i), label=f"{names[i]} {share[i + 1]:.0%}") for i in present]
    columns = min(max(len(handles), 1), 4)
    right.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=columns, frameon=False, fontsize=10,
        handlelength=1, columnspacing=1.4,
    )  # fmt: skip
    _save(figure, path)


def rank_count(path: Path, counts: Integers, total: int, *, top_k: int | None = None) -> None:
    """Draw count against rank, both logarithmic, and the share of all pixels that the ranks up to there hold.

    counts  int[n], falling
    total   foreground pixels, of which the counts are a part
    top_k   rank of the line; all of the counts if not given
    """
    counts = np.asarray(counts, np.int64)
    k = len(counts) if top_k is None else min(top_k, len(counts))
    rank = np.arange(1, len(counts) + 1)
    mass = np.cumsum(counts) / max(total, 1)
    figure = _figure(8.6, 5.4)
    axes = figure.subplots()
    shares = axes.twinx()
    blue, red = cluster_colour(5), cluster_colour(0)
    axes.loglog(rank, np.maximum(counts, 1), color=blue, linewidth=2.2)
    shares.semilogx(rank, 100 * mass, color=red, linewidth=2.2, linestyle=(0, (5, 2)))
    if k:
        axes.axvline(k, color=FAINT, linewidth=1.2)
        shares.plot([k], [100 * mass[k - 1]], "o", color=red, markersize=6)
        shares.annotate(
            f"top {k:,}: {mass[k - 1]:.2%}\nlast count {counts[k - 1]:,}",
            (k, 100 * mass[k - 1]),
            xytext=(-10, 8), textcoords="offset points", ha="right", va="bottom", size=10, color=INK,
        ).set_path_effects([patheffects.withStroke(linewidth=4, foreground="white")])  # fmt: skip
    axes.set_xlim(0.9, max(len(counts), 2) * 1.4)
    axes.set_ylim(0.8, 2.5 * max(float(counts.max(initial=1)), 4))
    shares.set_ylim(0, 114)
    shares.set_yticks(range(0, 101, 20))
    axes.set_xlabel("rank of the heavy hitter", size=11)
    axes.set_ylabel("pixels with this key", size=11, color=blue)
    shares.set_ylabel("share of the foreground up to this rank", size=11, color=red)
    shares.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    plain = FuncFormatter(lambda value, _: _count(round(value)) if value >= 1 else "")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for each in (axes, shares):
        each.tick_params(labelsize=10, color=FAINT)
        each.spines[["top"]].set_visible(False)
    axes.set_title(f"{_count(total)} foreground pixels", size=12, loc="left", color=INK)
    _save(figure, path)


def profiles(path: Path, profile: Floats, bands: Sequence[str], names: Sequence[str]) -> None:
    """Draw the clusters' mean levels as a heat map, each band in standard deviations from its mean over clusters.

    Rows are sorted by the band in which a cluster stands highest. Names as FILTER-WAVELENGTH are grouped by filter.

    profile  float[clusters, bands]
    names    of the clusters, such as "3 tumour"
    """
    z = standardise(profile)
    order = np.argsort(z.argmax(axis=1), kind="stable")
    figure = _figure(3.4 + 0.27 * len(bands), 2.0 + 0.34 * len(names))
    axes = figure.subplots()
    limit = max(float(np.percentile(np.abs(z), 98)), 1.0)
    heat = axes.imshow(z[order], cmap=mpl.colormaps["RdBu_r"], vmin=-limit, vmax=limit, aspect="auto")
    groups = _groups(bands)
    ticks = [band.rsplit("-", 1)[1] for band in bands] if groups else list(bands)
    axes.set_xticks(range(len(bands)), ticks, rotation=90, size=9)
    axes.set_yticks(range(len(order)), [names[i] for i in order], size=10)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", pad=20)
    axes.spines[:].set_visible(False)
    for first, last, name in groups:
        axes.text((first + last) / 2, -0.75, name, ha="center", va="bottom", size=10, color=INK)
        if first:
            axes.axvline(first - 0.5, color="white", linewidth=3)
    width = 0.4 * len(bands) / 30
    for row, cluster in enumerate(order.tolist()):
        axes.add_patch(
            Rectangle(
                (-0.75 - width, row - 0.32), width, 0.64, color=cluster_colour(cluster), clip_on=False, linewidth=0
            )
        )
    axes.set_xlabel("band, nm" if groups else "band", size=11)
    bar = figure.colorbar(heat, ax=axes, fraction=0.03, pad=0.015, extend="both")
    bar.set_label("standard deviations from the band's mean", size=9)
    bar.ax.tick_params(labelsize=9, length=2)
    bar.outline.set_visible(False)
    _save(figure, path)


def stretch(tissue: Floats) -> npt.NDArray[np.float32]:
    """Stretch each of the last axis's bands between its 1 % and 99.7 % quantiles; float32 in [0, 1]."""
    values = np.nan_to_num(np.asarray(tissue, np.float32))
    low, high = np.percentile(values, (1, 99.7), axis=(0, 1)).astype(np.float32)
    return np.asarray(((values - low) / np.maximum(high - low, 1e-6)).clip(0, 1) ** np.float32(0.8), dtype=np.float32)


def standardise(profile: Floats) -> npt.NDArray[np.float64]:
    """Return each column minus its mean over rows, in its standard deviations; 0 for a column that does not vary."""
    profile = np.asarray(profile, np.float64)
    spread = profile.std(axis=0)
    return np.asarray((profile - profile.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _groups(bands: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return runs of bands of one filter as (first, last, filter); nothing unless the names tell of filters."""
    prefixes = [band.rsplit("-", 1)[0] if band.rsplit("-", 1)[-1].isdigit() else "" for band in bands]
    starts = [i for i, prefix in enumerate(prefixes) if i == 0 or prefix != prefixes[i - 1]]
    if not all(prefixes) or 2 * len(starts) > len(bands):
        return []
    ends = [*starts[1:], len(bands)]
    return [(start, end - 1, prefixes[start]) for start, end in zip(starts, ends, strict=True)]


def _medoid(xy: Floats, counts: Integers) -> Floats:
    """Return the point nearest to the weighted middle: it lies on the cluster even when that is bent."""
    middle = np.average(xy, axis=0, weights=np.sqrt(np.maximum(counts, 1)))
    return np.asarray(xy[np.argmin(((xy - middle) ** 2).sum(axis=1))])


def _table(axes: Axes, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a legend as a table: a swatch, then columns; the first two to the left, numbers to the right."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    line = min(0.052, 0.96 / (len(rows) + 1))
    at = (0.08, 0.25, 0.68, 0.86, 1.03)
    size = 10 if line > 0.04 else 8
    for number, row in enumerate((head, *rows)):
        y = 0.98 - line * number
        if number:
            axes.add_patch(Rectangle((0.0, y - 0.3 * line), 0.05, 0.6 * line, color=cluster_colour(number - 1), lw=0))
        for column, (x, text) in enumerate(zip(at, row, strict=True)):
            short = text if len(text) <= 14 else f"{text[:13]}…"
            side = "left" if column < 2 else "right"
            axes.text(x, y, short, ha=side, va="center", size=size, color=INK if number else FAINT, clip_on=False)


def _count(value: int) -> str:
    """Write a count for people: 950, 20 k, 6.98 M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#d5d8dd")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.15)
