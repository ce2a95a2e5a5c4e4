"""A picture of a segmentation: three slices of a volume with the outlines found, and those of people beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agent_trainer.segmentation.whole import Outline
from agent_trainer.volumes.grids import to_ras
from agent_trainer.volumes.reading import axes_of
from agent_trainer.volumes.settings import Modality
from cairn.files import write_atomically
from cairn.palette import cluster_colour

DPI: Final = 130
HEIGHT: Final = 3.6  # inches
VIEWS: Final = ((2, "axial"), (1, "coronal"), (0, "sagittal"))  # the axis that each looks along
SIDES: Final = (("L", "R"), ("P", "A"), ("I", "S"))  # at the low and the high end of each axis
CT_SHOWN: Final = (-160.0, 240.0)  # HU; soft tissue
PERCENT: Final = (1.0, 99.0)


def draw_outline(path: Path, outline: Outline, classes: Sequence[str], modality: Modality) -> None:
    """Write a PNG: slices through where most of the classes' voxels are, along each axis. Raises OSError.

    Found: filled lines; by people: dashed ones of the same colour. Right and left are the patient's, as in an atlas.
    """
    values, found = (to_ras(array, outline.scan.affine) for array in (outline.scan.values, outline.found))
    true = None if outline.true is None else to_ras(outline.true, outline.scan.affine)
    steps = axes_of(outline.scan)
    low, high = CT_SHOWN if modality == "ct" else tuple(np.percentile(values, PERCENT))
    shown = (found > 0) if true is None or not true.any() else (true > 0)
    extents = [np.delete(np.array(values.shape) * steps, axis) for axis, _ in VIEWS]
    widths = [across / up for across, up in extents]
    figure = Figure(
        figsize=(HEIGHT * sum(widths) + 0.4, HEIGHT + 0.9), dpi=DPI, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    for axes, (axis, view) in zip(
        figure.subplots(1, 3, gridspec_kw={"width_ratios": widths}, squeeze=False)[0], VIEWS, strict=True
    ):
        at = _fullest(shown, axis)
        image, one, other = (None if array is None else np.take(array, at, axis).T for array in (values, found, true))
        assert image is not None
        across, up = (side for side in range(3) if side != axis)
        axes.imshow(
            image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=steps[up] / steps[across]
        )
        _contours(axes, other, len(classes), "dashed")
        _contours(axes, one, len(classes), "solid")
        axes.set_xticks([0, image.shape[1] - 1], SIDES[across])
        axes.set_yticks([0, image.shape[0] - 1], SIDES[up])
        axes.tick_params(length=0, labelsize=8)
        axes.set_title(f"{view}, slice {at + 1} of {values.shape[axis]}", size=9)
    _legend(figure, outline, classes)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _fullest(shown: npt.NDArray[np.bool_], axis: int) -> int:
    """Return the slice with most voxels of a class, the middle one where there are none."""
    counts = shown.sum(axis=tuple(side for side in range(3) if side != axis))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def _contours(axes: Axes, labels: npt.NDArray[Any] | None, classes: int, style: str) -> None:
    for number in range(1, classes + 1):
        # One voxel more on each side, so that an outline closes at the volume's edge.
        if labels is not None and (one := np.pad(labels == number, 1)).any():
            rows, columns = (np.arange(n) - 1 for n in one.shape)
            axes.contour(
                columns,
                rows,
                one.astype(float),
                [0.5],
                colors=[cluster_colour(number - 1)],
                linewidths=1.4,
                linestyles=style,
            )
    if labels is not None:
        axes.set_xlim(-0.5, labels.shape[1] - 0.5)
        axes.set_ylim(-0.5, labels.shape[0] - 0.5)


def _legend(figure: Figure, outline: Outline, classes: Sequence[str]) -> None:
    names = list(classes)
    if outline.measured is not None:
        names = [
            name if np.isnan(dice) else f"{name}, Dice {dice:.2f}"
            for name, dice in zip(classes, outline.measured[:, 0], strict=True)
        ]
    lines = [Line2D([], [], color=cluster_colour(number), label=name) for number, name in enumerate(names)]
    if outline.true is not None:
        lines.append(Line2D([], [], color="#15161a", label="found"))
        lines.append(Line2D([], [], color="#15161a", linestyle="dashed", label="by people"))
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)), fontsize=8, frameon=False)
