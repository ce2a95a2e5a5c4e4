"""Pictures of what a classifier's answer rests on: where it looked, what each patch said, what a mask keeps."""

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agent_trainer.explanation import (
    HALF,
    OF_HIDDEN,
    OF_KEPT,
    Attended,
    Explanation,
    Masked,
)
from agent_trainer.explanation_panels import DPI, FAINT, HEAT, MOST_PATCHES, as_colours, panels
from cairn.files import write_atomically
from cairn.palette import cluster_colour

TALL, WIDE = 4.6, 7.0  # inches, of a panel at most
ANSWERS: Final = 3.4  # inches, width of the column with the answer
IN_A_ROW: Final = 12
MOST_BARS: Final = 6  # classes that have a bar under a patch, those of the highest probability


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
