"""Views of an image that show what a classifier's answer rests on: where it looked, what a mask keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from agent_trainer.explanation import (
    HALF,
    Attended,
    Explanation,
    Masked,
    Patch,
    Pixels,
    Subject,
)
from cairn.palette import cluster_colour

DPI: Final = 110
GROUND: Final = "#101316"
FAINT: Final = "#66757a"
HEAT: Final = "inferno"
CELLS: Final = 100  # a side, of a map as it is shown
SMALL: Final = 0.015  # of the image's longer side: a box below it is drawn with a ring round it
MOST_PATCHES: Final = 24  # in the strip below; the page lists all
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
