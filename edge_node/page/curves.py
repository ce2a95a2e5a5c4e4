"""Curves of a run's rounds, as points of small drawings that need no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cairn.figures import OF_CLASSES, OVERALL, TRAINING, VALIDATION, algorithm_of, by_class, goal_by_task
from cairn.run import GOALS
from edge_node.status import RoundNote

WIDTH, HEIGHT = 240.0, 72.0  # of the drawing; it is stretched to its place
HERE = "on this site's validation images"


@dataclass(frozen=True)
class Line:
    """One curve of a drawing; points as an SVG polyline has them."""

    name: str
    points: str
    last: float


@dataclass(frozen=True)
class Curve:
    """One drawing: lines over the rounds, with the range of both axes."""

    title: str
    lines: tuple[Line, ...]
    low: float
    high: float
    first: int
    last: int


def curves(rounds: Sequence[RoundNote]) -> list[Curve]:
    """Draw what the rounds have figures of: the validation, a line for each task or class, and then the training."""
    names = {name for note in rounds for name in note.metrics}
    algorithm = algorithm_of(names)
    goal = GOALS[algorithm]
    tasks = sorted({task for note in rounds for task in goal_by_task(note.metrics, goal)})
    last = goal.metric.removeprefix(VALIDATION)
    title = f"{goal.words} {HERE}{f', {goal.unit}' if goal.unit else ''}"
    drawn = _several(rounds, title, {task: f"{VALIDATION}{task}/{last}" for task in tasks})
    drawn += _several(rounds, title, {"": goal.metric} if goal.metric in names else {})
    for figure in OF_CLASSES:
        classes = sorted({name for note in rounds for name in by_class(note.metrics, figure)})
        drawn += _several(rounds, f"{figure.words} by class, {HERE}", {name: figure.name + name for name in classes})
    drawn += [
        _curve(figure.heading, {"": _values(rounds, figure.name)})
        for figure in (*OVERALL, *TRAINING[algorithm])
        if figure.name in names
    ]
    return drawn


def _several(rounds: Sequence[RoundNote], title: str, lines: Mapping[str, str]) -> list[Curve]:
    return [_curve(title, {name: _values(rounds, metric) for name, metric in lines.items()})] if lines else []


def _values(rounds: Sequence[RoundNote], name: str) -> list[tuple[int, float]]:
    return [(note.round, note.metrics[name]) for note in rounds if name in note.metrics]


def _curve(title: str, lines: dict[str, list[tuple[int, float]]]) -> Curve:
    every = [point for line in lines.values() for point in line]
    first, last = min(at for at, _ in every), max(at for at, _ in every)
    low, high = min(value for _, value in every), max(value for _, value in every)
    rounds, span = max(last - first, 1), high - low or 1.0

    def points(line: list[tuple[int, float]]) -> str:
        if len(line) == 1:  # a line needs two points
            line = [line[0], (line[0][0] + 1, line[0][1])]
        return " ".join(
            f"{WIDTH * (at - first) / rounds:.1f},{3 + (HEIGHT - 6) * (high - value) / span:.1f}" for at, value in line
        )

    return Curve(
        f"{title[:1].upper()}{title[1:]}",
        tuple(Line(name, points(line), line[-1][1]) for name, line in lines.items()),
        low,
        high,
        first,
        last,
    )
