"""A search as one picture: reward over jobs, parameters over time, and what mattered. Records in, one PNG out."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agent_trainer.search.comparison import Course, Floats, by_method
from agent_trainer.search.journal import Record
from agent_trainer.search.leaderboard import rewards
from agent_trainer.search.space import Parameter
from agent_trainer.search.spec import SearchSpec
from agent_trainer.search.tpe import importance
from cairn.errors import TrainingError
from cairn.files import write_atomically
from cairn.palette import cluster_colour

DPI: Final = 150
COLUMNS: Final = 4  # of parameters
WIDE: Final = 3.2  # inches of one
TALL: Final = 2.2
TOP: Final = 3.4  # inches
GRID: Final = "#e4e6ea"
FAINT: Final = "#8a8f98"
BEST: Final = cluster_colour(0)
COLOURS: Final = "viridis"  # of rewards


def draw_course(path: Path, spec: SearchSpec, records: Sequence[Record], reward: str = "validation Dice") -> None:
    """Write a PNG of a search. Raises TrainingError when no job has finished yet, OSError.

    reward  what it is, for the axes
    Importance is by fANOVA, and left out while there are too few jobs for it.
    """
    if not rewards(records):
        raise TrainingError("no job of this search has finished yet, so there is nothing to draw; wait for one")
    parameters = spec.space.parameters
    rows = -(-len(parameters) // COLUMNS)
    figure = Figure(figsize=(WIDE * COLUMNS, TOP + TALL * rows), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[TOP, TALL * rows])
    above, below = parts[0, 0], parts[1, 0]  # two, so that long names above move no columns below
    left, right = above.subplots(1, 2)
    _draw_rewards(left, records, reward)
    _draw_importance(right, _importance(spec, records))
    panels = below.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, parameter) in zip(panels, parameters.items(), strict=False):
        dots = _draw_parameter(axes, name, parameter, records)
    for axes in panels[len(parameters) :]:
        axes.set_axis_off()
    below.colorbar(dots, ax=panels, label=reward, aspect=15 * rows, pad=0.01)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def draw_comparison(path: Path, courses: Sequence[Course], reward: str = "validation Dice") -> None:
    """Write a PNG of methods side by side: the best so far against the jobs spent, and what it is worth on test images.

    A line is a method's mean over its searches; at its end, every search is a dot and one standard deviation a bar. A
    search that ended with nothing left to try stays where it was. Raises TrainingError when nothing has finished,
    OSError.
    """
    methods = {name: [one for one in of_it if len(one.best)] for name, of_it in by_method(courses).items()}
    if not any(np.isfinite(one.best).any() for of_it in methods.values() for one in of_it):
        raise TrainingError("no job of these searches has finished yet, so there is nothing to draw; wait for one")
    tested = any(np.isfinite(one.test).any() for of_it in methods.values() for one in of_it)
    figure = Figure(figsize=(6.4 * (1 + tested), 4.2), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + tested, squeeze=False)[0]
    whats = [("best", f"best {reward} so far"), ("test", "the same job on test images")]
    size = max(len(one.best) for of_it in methods.values() for one in of_it)
    for axes, (what, title) in zip(panels, whats, strict=False):
        for place, (name, of_it) in enumerate(methods.items()):
            lines = [np.pad(getattr(one, what), (0, size - len(one.best)), mode="edge") for one in of_it]
            end = size * (1.02 + 0.025 * place)
            _draw_method(axes, f"{name} ({len(of_it)})", np.array(lines), end, cluster_colour(place))
        _frame(axes, title, x="jobs launched")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8, frameon=False
    )
    with write_atomically(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _draw_method(axes: Axes, name: str, lines: Floats, end: float, colour: str) -> None:
    """Draw one method's searches, float64[searches, jobs]; `end` is where the last values stand side by side."""
    lines = lines[np.isfinite(lines).any(1)] if len(lines) else lines
    if not len(lines):
        return
    known = np.isfinite(lines).all(0)  # a mean of some searches only would jump where the others begin
    jobs, middle = np.arange(1, lines.shape[1] + 1)[known], lines[:, known].mean(0)
    axes.step(jobs, middle, "o-", where="post", color=colour, linewidth=1.8, markersize=3, label=name)
    if len(lines) > 1:
        last = lines[:, -1]
        axes.plot([end] * len(last), last, "o", color=colour, markersize=2.5, alpha=0.5, markeredgewidth=0)
        axes.errorbar(end, last.mean(), last.std(ddof=1), color=colour, linewidth=1.4, capsize=2, marker="_")


def _importance(spec: SearchSpec, records: Sequence[Record]) -> Mapping[str, float]:
    found = [(np.array(record.units), record.reward) for record in records if record.reward is not None]
    try:
        return importance(spec.space.names, [units for units, _ in found], [reward for _, reward in found])
    except TrainingError:  # too few, or all alike
        return {}


def _draw_rewards(axes: Axes, records: Sequence[Record], reward: str) -> None:
    """Draw every job's reward, the best so far, the routine's, and where jobs failed."""
    jobs, values = zip(*rewards(records), strict=True)
    axes.plot(jobs, values, "o", color=FAINT, markersize=3.5, label="a job")
    axes.step(jobs, list(accumulate(values, max)), where="post", color=BEST, linewidth=1.8, label="best so far")
    if jobs[0] == 0:
        axes.axhline(values[0], color=cluster_colour(5), linewidth=1.2, linestyle="--", label="routine")
    if failed := [record.job for record in records if record.state in ("failed", "lost")]:
        low = axes.get_ylim()[0]
        axes.plot(failed, [low] * len(failed), "x", color="black", markersize=5, label="no reward", clip_on=False)
    _frame(axes, reward)
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)


def _draw_importance(axes: Axes, shares: Mapping[str, float]) -> None:
    """Draw bars, the largest at the top."""
    _frame(axes, "importance: share in the reward's variance (fANOVA)", x="")
    if not shares:
        axes.set_axis_off()
        axes.text(0, 0.5, "too few jobs as yet", transform=axes.transAxes, color=FAINT)
        return
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=cluster_colour(1))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _draw_parameter(axes: Axes, name: str, parameter: Parameter, records: Sequence[Record]) -> Any:
    """Draw a parameter's values over jobs, coloured by reward, the best job's ringed. Returns the dots."""
    found = [record for record in records if record.reward is not None]
    values = [
        parameter.choices.index(record.strategy[name]) if parameter.choices else record.strategy[name]
        for record in found
    ]
    got = [record.reward or 0.0 for record in found]
    dots = axes.scatter([record.job for record in found], values, c=got, cmap=COLOURS, s=12, linewidths=0)
    top = max(range(len(found)), key=lambda at: (got[at], -found[at].job))
    axes.scatter([found[top].job], [values[top]], s=60, facecolors="none", edgecolors=BEST, linewidths=1.5)
    if parameter.choices:
        axes.set_yticks(range(len(parameter.choices)), [str(choice) for choice in parameter.choices])
        axes.set_ylim(-0.5, len(parameter.choices) - 0.5)
    else:
        assert parameter.low is not None  # of every parameter without choices
        assert parameter.high is not None
        if parameter.scale == "log":
            axes.set_yscale("log")
            axes.set_ylim(parameter.low / 1.15, parameter.high * 1.15)
        else:
            margin = 0.05 * (parameter.high - parameter.low)
            axes.set_ylim(parameter.low - margin, parameter.high + margin)
    _frame(axes, name)
    return dots


def _frame(axes: Axes, title: str, x: str = "job") -> None:
    axes.set_title(title, size=10, loc="left")
    axes.set_xlabel(x, size=8)
    axes.tick_params(labelsize=8)
    if x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
