"""A run's curves as Plotly JSON, a figure for each number: round by round, each site and all of them together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aggregator.dashboard.plots import Json
from aggregator.dashboard.runs import ERROR, error_mm, site_colours
from aggregator.tables import RunRound
from cairn.palette import cluster_colour

Metrics = Mapping[str, float]
Read = Callable[[Metrics], float | None]
TASKS_IN_LEGEND: Final = 6


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


def _named(name: str) -> Read:
    return lambda metrics: metrics.get(name)


CURVES: Final = (
    Curve("error", "Error on validation images", "mm", error_mm),
    Curve("loss", "Loss", "", _named("loss")),
    Curve("reward", "Reward a step", "mm", _named("reward")),
    Curve("unique", "Replay: unique transitions", "share", _named("replay/unique_share"), share=True),
    Curve("effective", "Replay: effective sample size", "transitions", _named("replay/effective")),
    Curve("fill", "Replay: table fill", "share", _named("replay/fill"), share=True),
    Curve("seconds", "Time a round", "s", _named("seconds")),
)


def curves(rounds: Sequence[RunRound]) -> list[Json]:
    """Draw every number that the rounds have; each figure has id, title, data and layout."""
    colours = site_colours({site["site"] for row in rounds for site in row.sites})
    found = [made for made in (_figure(curve, rounds, colours) for curve in CURVES) if made["data"]]
    tasks = _by_task(rounds)
    if len(tasks["data"]) > 1:
        found.insert(1, tasks)
    return found


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
    return row.seconds if curve.id == "seconds" else curve.read(row.metrics)


def _by_task(rounds: Sequence[RunRound]) -> Json:
    found: dict[str, dict[int, float]] = {}
    for row in rounds:
        for name, value in row.metrics.items():
            if name.startswith("validation/") and name.endswith("/mean_mm") and name != ERROR:
                task = name.removeprefix("validation/").removesuffix("/mean_mm")
                found.setdefault(task, {})[row.round] = value
    data = [_line(task, found[task], "mm", cluster_colour(n)) for n, task in enumerate(sorted(found))]
    layout = _layout("mm", share=False)
    if len(data) <= TASKS_IN_LEGEND:
        layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": -0.25}}
    return {"id": "tasks", "title": "Error by task, all sites", "data": data, "layout": layout}


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
