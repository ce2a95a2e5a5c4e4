"""A run's curves as Plotly JSON, a figure for each number: round by round, each site and all of them together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aggregator.dashboard.plots import Json
from aggregator.dashboard.runs import goal_named, site_colours
from aggregator.dashboard.words import sentence
from aggregator.tables import RunRound
from cairn.figures import OF_CLASSES, OVERALL, TRAINING, Figure, by_class, goal_by_task, goal_of
from cairn.palette import cluster_colour
from cairn.run import Goal

Metrics = Mapping[str, float]
Read = Callable[[Metrics], float | None]
LINES_IN_LEGEND: Final = 6
SECONDS: Final = Figure("seconds", "Time a round", "s")


@dataclass(frozen=True)
class Curve:
    """One number of a round.

    unit    written at the axis
    read    finds it among a site's numbers, or those of all sites together
    share   whether it is one, from 0 to 1
    """

    id: str
    title: str
    unit: str
    read: Read
    share: bool = False


def curves(algorithm: str, rounds: Sequence[RunRound]) -> list[Json]:
    """Draw every number that the rounds have; each figure has id, title, data and layout."""
    colours = site_colours({site["site"] for row in rounds for site in row.sites})
    goal = goal_named(algorithm)
    words, share = sentence(goal.words), not goal.unit
    first = Curve("goal", f"{words} on validation images", goal.unit, lambda metrics: goal_of(metrics, goal), share)
    drawn = [_figure(first, rounds, colours), _tasks(rounds, goal, words)]
    drawn += [_classes(rounds, figure) for figure in OF_CLASSES]
    told = next((figures for name, figures in TRAINING.items() if name == algorithm), ())
    drawn += [_figure(_curve(figure), rounds, colours) for figure in (*OVERALL, *told, SECONDS)]
    return [figure for figure in drawn if figure["data"]]


def _curve(figure: Figure) -> Curve:
    name = figure.name
    unit = "share" if figure.share else figure.unit
    return Curve(name.replace("/", "-"), sentence(figure.words), unit, lambda metrics: metrics.get(name), figure.share)


def _figure(curve: Curve, rounds: Sequence[RunRound], colours: Mapping[str, str]) -> Json:
    data = []
    for site, colour in colours.items():
        of_site = {
            row.round: value
            for row in rounds
            for one in row.sites
            if one["site"] == site and (value := curve.read(one["metrics"])) is not None
        }
        data.append(_line(site, of_site, curve.unit, colour))
    of_all = {row.round: value for row in rounds if (value := _of_all(curve, row)) is not None}
    if len(colours) != 1:  # one site is all sites
        data.append(_line("all sites", of_all, curve.unit, ""))
    return {
        "id": curve.id,
        "title": curve.title,
        "data": [line for line in data if line["x"]],
        "layout": _layout(curve.unit, share=curve.share),
    }


def _of_all(curve: Curve, row: RunRound) -> float | None:
    return row.seconds if curve.id == SECONDS.name else curve.read(row.metrics)


def _tasks(rounds: Sequence[RunRound], goal: Goal, words: str) -> Json:
    """Draw the goal's figure of each task, where there are several."""
    made = _several(rounds, lambda metrics: goal_by_task(metrics, goal), goal.unit, share=not goal.unit)
    return {"id": "tasks", "title": f"{words} by task, all sites", **made}


def _classes(rounds: Sequence[RunRound], figure: Figure) -> Json:
    """Draw a figure of each class."""
    made = _several(rounds, lambda metrics: by_class(metrics, figure), "share", share=True)
    return {"id": figure.words, "title": f"{sentence(figure.words)} by class, all sites", **made}


def _several(
    rounds: Sequence[RunRound], read: Callable[[Metrics], Mapping[str, float]], unit: str, *, share: bool
) -> Json:
    found: dict[str, dict[int, float]] = {}
    for row in rounds:
        for name, value in read(row.metrics).items():
            found.setdefault(name, {})[row.round] = value
    data = [_line(name, found[name], unit, cluster_colour(n)) for n, name in enumerate(sorted(found))]
    layout = _layout(unit, share=share)
    if len(data) <= LINES_IN_LEGEND:
        layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": -0.25}}
    return {"data": data if len(data) > 1 else [], "layout": layout}


def _line(name: str, points: Mapping[int, float], unit: str, colour: str) -> Json:
    # Without a colour it is that of the page's text, which the browser knows.
    line: dict[str, Any] = {"color": colour, "width": 1.5} if colour else {"width": 2.5}
    x = sorted(points)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) < 30 else "lines",
        "name": name.replace("<", "‹"),  # Plotly reads markup in names, and a site may send any
        "x": x,
        "y": [float(f"{points[number]:.6g}") for number in x],
        "line": line,
        "marker": {"size": 5},
        "hovertemplate": f"round %{{x}}: %{{y:.4~g}}{f' {unit}' if unit else ''}<extra>%{{fullData.name}}</extra>",
    }


def _layout(unit: str, *, share: bool) -> Json:
    y: Json = {"title": {"text": unit}, "rangemode": "tozero", "automargin": True}
    if share:
        y |= {"tickformat": ".0%", "title": {"text": ""}}
    return {
        "xaxis": {"title": {"text": "round"}, "rangemode": "tozero", "tickformat": "d"},
        "yaxis": y,
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "height": 260,
        "showlegend": False,
        "hovermode": "closest",
    }
