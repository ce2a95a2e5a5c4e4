"""A picture of how good a classifier is: its confusion matrix, and how far its confidence can be believed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agent_trainer.classification import CALIBRATION, MIDDLES, Counts, measures
from cairn.files import write_atomically

DPI: Final = 150
INK: Final = "#15161a"
BAR: Final = "#0072b2"
FAINT: Final = "#c9ced6"
LONG: Final = 14  # letters of a class's name


def draw_classification(path: Path, counts: Counts, classes: Sequence[str]) -> None:
    """Write a PNG: on the left true against predicted classes, on the right confidence against share of right answers.

    Raises OSError.
    """
    side = max(3.6, 0.5 * len(classes) + 2)
    figure = Figure(figsize=(2 * side + 1.2, side + 0.5), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _confusion(left, counts, classes)
    _calibration(right, counts)
    right.set_title(_title(counts, classes), size=11, loc="left")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _title(counts: Counts, classes: Sequence[str]) -> str:
    found = measures(counts, classes)
    return f"calibration, error {found['ece']:.3f}" if found else "calibration"


def _confusion(axes: Axes, counts: Counts, classes: Sequence[str]) -> None:
    """Draw each row as shares of the true class; the numbers are images."""
    total = counts.confusion.sum(axis=1, keepdims=True)
    shares = counts.confusion / np.maximum(total, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= LONG else f"{name[: LONG - 1]}…" for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=45 if len(classes) > 3 else 0, size=9)
    axes.set_yticks(range(len(classes)), names, size=9)
    for (row, column), number in np.ndenumerate(counts.confusion):
        colour = "white" if shares[row, column] > 0.5 else INK
        said = f"{number}\n{100 * shares[row, column]:.0f} %" if len(classes) <= 6 else f"{number}"
        axes.text(column, row, said, ha="center", va="center", color=colour, size=9)
    axes.set_xlabel("predicted", size=10)
    axes.set_ylabel("true", size=10)
    axes.set_title(f"confusion, {int(counts.confusion.sum())} images", size=11, loc="left")


def _calibration(axes: Axes, counts: Counts) -> None:
    """Draw the reliability diagram, Guo et al. 2017, figure 1; below it how many images are in each bin."""
    n, correct = counts.calibration.T
    known = n > 0
    edges = np.arange(CALIBRATION) / CALIBRATION
    axes.bar(edges, n / max(1, n.sum()), width=1 / CALIBRATION, align="edge", color=FAINT, label="share of the images")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="as sure as right")
    axes.plot(
        MIDDLES[known],
        correct[known] / n[known],
        color=BAR,
        marker="o",
        markersize=5,
        linewidth=1.8,
        label="right answers",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence", size=10)
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
