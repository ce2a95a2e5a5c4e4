"""Pictures of what a classifier's answer rests on: where it looked, what each patch said, what a mask keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from agent_trainer.explanation import (
    HALF,
    OF_HIDDEN,
    OF_KEPT,
    Attended,
    Explanation,
    Masked,
    Patch,
    Pixels,
    Subject,
)
from cairn.files import write_atomically
from cairn.palette import cluster_colour

DPI: Final = 110
GROUND: Final = "#101316"
FAINT: Final = "#66757a"
HEAT: Final = "inferno"
TALL, WIDE = 4.6, 7.0  # inches, of a panel at most
ANSWERS: Final = 3.4  # inches, width of the column with the answer
CELLS: Final = 100  # a side, of a map as it is shown
SMALL: Final = 0.015  # of the image's longer side: a box below it is drawn with a ring round it
MOST_PATCHES: Final = 24  # in the strip below; the page lists all
IN_A_ROW: Final = 12
MOST_BARS: Final = 6  # classes that have a bar under a patch, those of the highest probability
HIDDEN: Final = 0.12  # of its brightness, what a hidden pixel keeps


@dataclass(frozen=True)
class Panel:
    """One view of the image.

    title  a few words
    words  what is seen there, for a person who has read nothing of it
    paint  draws it; axes are in pixels of the image
    scale  least and greatest of the colours with a name for them, if there are any
    """

    title: str
    words: str
    paint: Callable[[Axes], None]
    scale: tuple[float, float, str] | None = None


def draw(path: Path, explanation: Explanation, label: str | None = None) -> None:
    """Write one PNG with everything: the panels, the classes' probabilities, the patches. Raises OSError.

    label  what the image is known to show
    """
    with write_atomically(path) as file:
        make_figure(explanation, label).savefig(file, format="png", metadata={"Software": None})


def make_figure(explanation: Explanation, label: str | None = None) -> Figure:
    """Lay out the whole picture."""
    views = panels(explanation)
    height, width = explanation.subject.size
    across = min(max(TALL * width / height, 2.6), WIDE)
    tall = max(min(TALL, WIDE * height / width), 1.6)
    strip = _strip_height(explanation)
    lines = -(-len(views) // 2)
    size = 2 * across + ANSWERS, (tall + 0.3) * lines + 0.8 + strip
    figure = Figure(size, DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(headline(explanation, label), x=0.012, ha="left", size=13, weight="bold")
    rows = figure.add_gridspec(2 if strip else 1, 1, height_ratios=[tall * lines, strip] if strip else [1])
    top = rows[0].subgridspec(lines, 3, width_ratios=[across, across, ANSWERS])
    for place, view in enumerate(views):
        axes = figure.add_subplot(top[divmod(place, 2)])
        view.paint(axes)
        axes.set_title(view.title, size=11, loc="left")
        if view.scale:
            low, high, name = view.scale
            bar = figure.colorbar(ScalarMappable(Normalize(low, high), HEAT), ax=axes, fraction=0.04, pad=0.02)
            bar.set_label(name, size=9)
            bar.ax.tick_params(labelsize=8)
    _draw_answers(figure.add_subplot(top[:, 2]), explanation, label, 5 * lines)
    if strip and isinstance(explanation, Attended):
        _draw_strip(figure.add_subplot(rows[1]), explanation)
    return figure


def headline(explanation: Explanation, label: str | None = None) -> str:
    """Say in a line what was found in which image."""
    best = int(explanation.probabilities.argmax())
    found = f"{explanation.classes[best]}, {explanation.probabilities[best]:.0%}"
    known = f"  ·  labelled {label}" if label is not None else ""
    return f"{explanation.subject.name}  ·  {found}{known}"


def panel_png(panel: Panel, subject: Subject, side: int = 900) -> bytes:
    """Draw a panel by itself, without frame or title: a PNG whose longer side has so many pixels."""
    height, width = subject.size
    scale = side / max(height, width)
    size = max(width * scale, 60) / DPI, max(height * scale, 60) / DPI
    figure = Figure(size, DPI, facecolor=GROUND)
    FigureCanvasAgg(figure)
    panel.paint(figure.add_axes((0, 0, 1, 1)))
    data = BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def patch_png(patch: Patch) -> bytes:
    """Write a patch's pixels as a PNG, as they are."""
    data = BytesIO()
    Image.fromarray(as_colours(patch.pixels)).save(data, "PNG")
    return data.getvalue()


def panels(explanation: Explanation) -> tuple[Panel, ...]:
    """List the views of an explanation, the most telling first."""
    match explanation:
        case Attended():
            return _attended(explanation)
        case Masked():
            return _masked(explanation)


def as_colours(pixels: Pixels) -> Pixels:
    """Bring uint8[c, h, w] of one or three channels to uint8[h, w, 3]."""
    return np.ascontiguousarray(np.broadcast_to(np.moveaxis(pixels, 0, -1), (*pixels.shape[1:], 3)))


def _attended(found: Attended) -> tuple[Panel, ...]:
    heat, most = found.map * found.map.size, float(found.map.max() * found.map.size)  # 1 is an even share

    def boxes(axes: Axes) -> None:
        _show(axes, as_colours(found.subject.pixels), found.subject.size)
        _draw_boxes(axes, found)

    def attention(axes: Axes) -> None:
        _show(axes, _grey(found.subject.pixels), found.subject.size)
        _overlay(axes, *_coarse(heat, found.subject.size), most, 0.75)

    def inside(axes: Axes) -> None:
        _show(axes, _grey(found.subject.pixels), found.subject.size)
        for patch in found.patches:
            if patch.cam is not None:
                low, left = patch.row + found.side, patch.column
                axes.imshow(
                    patch.cam,
                    HEAT,
                    vmin=0,
                    vmax=1,
                    alpha=0.75 * np.sqrt(patch.cam),
                    extent=(left, left + found.side, low, patch.row),
                    interpolation="nearest",
                )

    named = found.classes[int(found.probabilities.argmax())]
    cams = (
        Panel(
            "Grad-CAM in the patches",
            f"How much each place of the patches speaks for {named}, as the gradient of the classifier tells.",
            inside,
            (0.0, 1.0, f"for {named}, of the most"),
        ),
    )
    return (
        Panel(
            "What it looked at",
            "The patches that the answer was made of, numbered by weight; a frame's colour is the class that the patch "
            "speaks for, thicker is weightier.",
            boxes,
        ),
        Panel(
            "Attention",
            "How likely each place was to be looked at; 1 is an even share of the image.",
            attention,
            (0.0, most, "times an even share"),
        ),
        *(cams if any(patch.cam is not None for patch in found.patches) else ()),
    )


def _masked(found: Masked) -> tuple[Panel, ...]:
    size, colours = found.subject.size, as_colours(found.subject.pixels)
    named = found.classes[found.cam_of]

    def plain(axes: Axes) -> None:
        _show(axes, colours, size)

    def cam(axes: Axes) -> None:
        _show(axes, _grey(found.subject.pixels), size)
        _overlay(axes, found.cam, size, 1.0, 0.75)

    views = [
        Panel("The image", "The image as the classifier gets it, brought to its proportions again.", plain),
        Panel(
            "Grad-CAM",
            f"How much each place speaks for {named}, as the gradient of the classifier's last layers tells.",
            cam,
            (0.0, 1.0, f"for {named}, of the most"),
        ),
    ]
    if (kept := found.kept) is None:
        return tuple(views)

    def mask(axes: Axes) -> None:
        _show(axes, _grey(found.subject.pixels), size)
        _overlay(axes, kept, size, 1.0, 0.75)

    def seen(axes: Axes) -> None:
        dimmed = np.where(kept[..., None] > HALF, colours, colours * HIDDEN).astype(np.uint8)
        _show(axes, dimmed, size)

    return (
        views[0],
        Panel(
            "Mask",
            "The masker's probability that a pixel matters for the answer.",
            mask,
            (0.0, 1.0, "probability that a pixel matters"),
        ),
        Panel(
            "What the mask keeps",
            "Bright: kept, with probability over ½. Dark: hidden; the classifier gets the mean colour there.",
            seen,
        ),
        views[1],
    )


def _show(axes: Axes, colours: Pixels, size: tuple[int, int]) -> None:
    axes.imshow(colours, extent=(0, size[1], size[0], 0), interpolation="antialiased", vmin=0, vmax=255)
    axes.set_xlim(0, size[1])
    axes.set_ylim(size[0], 0)
    axes.set_axis_off()


def _grey(pixels: Pixels) -> Pixels:
    grey = (pixels.mean(0) * 0.8).astype(np.uint8)
    return as_colours(grey[None])


def _coarse(
    values: npt.NDArray[np.float32], size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
    """Bring a map to at most CELLS cells a side, the most of those in each, and say how far it reaches then.

    On the map of a slide one cell, which may have all attention, would be too small to be seen.
    """
    (rows, columns), by = values.shape, -(-max(values.shape) // CELLS)
    padded = np.pad(values, ((0, -rows % by), (0, -columns % by)))
    coarse = padded.reshape(padded.shape[0] // by, by, padded.shape[1] // by, by).max((1, 3))
    return coarse, (size[0] * padded.shape[0] / rows, size[1] * padded.shape[1] / columns)


def _overlay(axes: Axes, values: npt.NDArray[np.float32], size: tuple[float, float], most: float, alpha: float) -> None:
    """Lay colours over what is shown, the more the higher the value."""
    share = np.clip(values / max(most, 1e-12), 0, 1)
    axes.imshow(
        values,
        HEAT,
        vmin=0,
        vmax=most,
        alpha=alpha * np.sqrt(share),
        extent=(0, size[1], size[0], 0),
        interpolation="nearest",
    )


def _draw_boxes(axes: Axes, found: Attended) -> None:
    most = max((patch.weight for patch in found.patches), default=1.0)
    for number, patch in reversed(list(enumerate(found.patches, 1))):
        share = patch.weight / most if most > 0 else 1.0
        colour, wide = cluster_colour(int(patch.votes.argmax())), 0.8 + 1.7 * share
        framed = withStroke(linewidth=wide + 1.4, foreground=GROUND, alpha=0.7)
        box = Rectangle((patch.column, patch.row), found.side, found.side, fill=False, edgecolor=colour, linewidth=wide)
        box.set_path_effects([framed])
        box.set_gid(f"patch {number}")
        axes.add_patch(box)
        if found.side < SMALL * max(found.subject.size):
            middle = patch.column + found.side / 2, patch.row + found.side / 2
            axes.plot(*middle, "o", ms=13, mfc="none", mec=GROUND, mew=wide + 1.4)
            axes.plot(*middle, "o", ms=13, mfc="none", mec=colour, mew=wide)
    _number(axes, found)


def _number(axes: Axes, found: Attended) -> None:
    """Write numbers beside the boxes, from the weightiest on, where there is room for one."""
    size, taken = max(found.subject.size), list[tuple[int, int]]()
    for number, patch in enumerate(found.patches[:MOST_PATCHES], 1):
        right = patch.column + found.side < 0.96 * found.subject.size[1]  # of the box, if there is room
        x, y = patch.column + right * found.side, patch.row
        if any(abs(x - across) < 0.035 * size and abs(y - down) < 0.025 * size for across, down in taken):
            continue
        taken.append((x, y))
        axes.annotate(
            str(number),
            (x, y),
            (2 if right else -2, 0),
            textcoords="offset points",
            color="white",
            size=8,
            va="top",
            ha="left" if right else "right",
            path_effects=[withStroke(linewidth=2.5, foreground=GROUND)],
            annotation_clip=True,
        )


def _draw_answers(axes: Axes, explanation: Explanation, label: str | None, room: int) -> None:
    """Draw the probability of each class, and say what it was made of; `room` is for so many bars."""
    order = np.argsort(-explanation.probabilities, kind="stable")[:12]
    for place, k in enumerate(order.tolist()):
        value = float(explanation.probabilities[k])
        axes.barh(place, value, 0.62, color=cluster_colour(k))
        name = explanation.classes[k]
        known = "  (label)" if name == label else ""
        axes.text(0, place - 0.42, f"{name}{known}", size=10, va="bottom", weight="bold" if known else "normal")
        axes.text(min(value + 0.02, 1.0), place, f"{value:.1%}", size=9.5, va="center")
    axes.set_xlim(0, 1.2)
    axes.set_ylim(max(len(order), room) - 0.3, -0.9)
    axes.set_title("Answer", size=11, loc="left")
    axes.set_axis_off()
    words = "\n".join([*remarks(explanation), *_of_parts(explanation)])
    axes.text(0, -0.01, words, size=9, color=FAINT, va="top", transform=axes.transAxes)


def remarks(explanation: Explanation) -> list[str]:
    """Say in lines how much of the image the answer was made of."""
    match explanation:
        case Attended():
            drawn = sum(patch.times for patch in explanation.patches)
            places = len(explanation.patches)
            at = f", at {places} {'place' if places == 1 else 'places'}" if places < drawn else ""
            return [
                f"{explanation.share_read:.2%} of the pixels were read",
                f"{drawn} patches of {explanation.side} × {explanation.side} px{at}",
            ]
        case Masked():
            if explanation.kept is None:
                return []
            kept = explanation.kept > HALF
            if kept.any() and not kept.all():
                return [f"The mask keeps {kept.mean():.0%} of the pixels", *_no_reason(explanation)]
            return [f"The mask keeps {'everything' if kept.any() else 'nothing'}; the whole image is answered"]


def _no_reason(found: Masked) -> list[str]:
    """Warn of a mask that people would misread: the classifier is as sure of its answer without what is kept."""
    if not {OF_KEPT, OF_HIDDEN} <= found.on.keys():
        return []
    best = int(found.probabilities.argmax())
    if found.on[OF_HIDDEN][best] < found.on[OF_KEPT][best]:
        return []
    return ["What it hides speaks for the answer\nas much or more: it is no reason for it"]


def _of_parts(explanation: Explanation) -> list[str]:
    """Say in lines what the answer is to parts of the image."""
    if not isinstance(explanation, Masked):
        return []
    best = int(explanation.probabilities.argmax())
    return [f"{explanation.classes[best]} on {what}: {p[best]:.0%}" for what, p in explanation.on.items()]


def _strip_height(explanation: Explanation) -> float:
    if not isinstance(explanation, Attended) or not explanation.patches:
        return 0.0
    rows = -(-min(len(explanation.patches), MOST_PATCHES) // IN_A_ROW)
    return rows * (1.45 + 0.16 * min(len(explanation.classes), MOST_BARS))


def _draw_strip(axes: Axes, found: Attended) -> None:
    """Draw the patches in their own pixels, and under each its weight and a bar for each class's vote."""
    shown = found.patches[:MOST_PATCHES]
    bars = np.sort(np.argsort(-found.probabilities, kind="stable")[:MOST_BARS])
    most = max((float(np.abs(patch.votes).max()) for patch in shown), default=1.0) or 1.0
    signed = any(float(patch.votes.min()) < 0 for patch in shown)
    high = 1.38 + 0.14 * len(bars)
    for place, patch in enumerate(shown):
        x, y = 1.12 * (place % IN_A_ROW), high * (place // IN_A_ROW)
        axes.imshow(as_colours(patch.pixels), extent=(x, x + 1, y + 1, y), interpolation="nearest")
        frame = Rectangle((x, y), 1, 1, fill=False, edgecolor=cluster_colour(int(patch.votes.argmax())), linewidth=2)
        axes.add_patch(frame)
        times = f" × {patch.times}" if patch.times > 1 else ""
        axes.text(x, y + 1.06, f"{place + 1}", size=8.5, va="top", weight="bold")
        axes.text(x + 1, y + 1.06, f"{patch.weight:.3f}{times}", size=8, va="top", ha="right", color=FAINT)
        zero, wide = (x + 0.5, 0.5) if signed else (x, 1.0)
        for line, k in enumerate(bars.tolist()):
            long = float(patch.votes[k]) / most * wide
            axes.add_patch(Rectangle((zero, y + 1.22 + 0.14 * line), long, 0.1, color=cluster_colour(k), linewidth=0))
        if signed:
            axes.plot([zero, zero], [y + 1.2, y + 1.22 + 0.14 * len(bars)], color=FAINT, linewidth=0.6)
    rows = -(-len(shown) // IN_A_ROW)
    axes.set_xlim(-0.05, 1.12 * IN_A_ROW)
    axes.set_ylim(high * rows, -0.05)
    axes.set_aspect("equal")
    axes.set_anchor("W")
    axes.set_axis_off()
    rest = f"; {len(found.patches) - len(shown)} of less weight are left out" if len(found.patches) > len(shown) else ""
    axes.set_title(f"The patches: number, weight, and its vote for each class{rest}", size=11, loc="left")
