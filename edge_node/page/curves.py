"""Curves of a run's rounds, as points of small drawings that need no script."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_node.status import RoundNote

WIDTH, HEIGHT = 240.0, 72.0  # of the drawing; it is stretched to its place
TITLES = {
    "loss": "Loss",
    "reward": "Reward a step, mm",
    "replay/unique_share": "Unique share of the replay",
    "replay/effective": "Effective sample size",
}
ERROR_MM = "Error on this site's validation images, mm"


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
    """Draw what the rounds have figures of: the error in mm by task, loss, reward and the replay's figures."""
    names = {name for note in rounds for name in note.metrics}
    errors = sorted(name for name in names if name.startswith("validation/") and name.endswith("/mean_mm"))
    drawn = [_curve(ERROR_MM, {name.split("/")[1]: _values(rounds, name) for name in errors})] if errors else []
    drawn += [_curve(title, {"": _values(rounds, name)}) for name, title in TITLES.items() if name in names]
    return drawn


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
        title, tuple(Line(name, points(line), line[-1][1]) for name, line in lines.items()), low, high, first, last
    )
