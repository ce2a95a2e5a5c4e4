"""What the pages show of training runs, read from the database into small records."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from aggregator.dashboard.views import Notice, tone
from aggregator.tables import Run, RunLog, RunRound
from cairn.figures import OF_CLASSES, OVERALL, by_class, goal_of
from cairn.palette import cluster_colour
from cairn.run import GOALS, Goal

POINTS: Final = 500  # of a curve; of a longer run every so many-th round is drawn
STRIP: Final = 40  # rounds in a site's row of squares
LINES: Final = 200
TAIL: Final = 20  # rounds in which the newest of each number is looked for: a round is validated after the next began
AT_WORK: Final = ("queued", "running", "stopping")


@dataclass(frozen=True)
class RunView:
    """A run in a list: how far it is and how well.

    value     of the goal's figure in the last validation
    measures  what else a classifier's validation tells, by its words
    classes   each class with its sensitivity and specificity
    """

    name: str
    state: str
    round: int
    rounds: int
    algorithm: str
    strategy: str
    created: datetime
    started: datetime | None
    ended: datetime | None
    message: str
    spec: dict[str, Any]
    loss: float | None
    goal: Goal
    value: float | None
    measures: tuple[tuple[str, float], ...] = ()
    classes: tuple[tuple[str, float | None, float | None], ...] = ()

    @property
    def tone(self) -> str:
        """Return how the state should look: bad, attention, good or busy."""
        return tone(self.state)

    @property
    def link(self) -> str:
        """Its own page."""
        return f"/runs/{self.name}"

    @property
    def search(self) -> str:
        """The method of a search, whose rounds are jobs at some of the sites; "" of a run of rounds."""
        search = self.spec.get("search")
        return str(search.get("method", "a method of another version")) if search else ""


@dataclass(frozen=True)
class SiteView:
    """A site in a run: its last round, all its rounds' states, and what it has exchanged.

    strip     state of the site in each of the last rounds, "" where it was not there
    value     of the goal's figure on its own validation images
    measures  what else a classifier's validation tells, in the order of OVERALL
    """

    name: str
    colour: str
    state: str
    reason: str
    trained: int
    strip: tuple[tuple[int, str], ...]
    examples: float | None
    loss: float | None
    value: float | None
    measures: tuple[float | None, ...]
    seconds: float | None
    bytes: int


@dataclass(frozen=True)
class LineView:
    """A line of the log."""

    number: int
    at: datetime
    text: str


def runs(session: Session) -> list[RunView]:
    """Read all runs, newest first."""
    rows = session.scalars(select(Run).order_by(Run.created_at.desc(), Run.name)).all()
    latest = select(RunRound.run, func.max(RunRound.round).label("round")).group_by(RunRound.run).subquery()
    last: dict[str, dict[str, float]] = {}
    query = (
        select(RunRound.run, RunRound.metrics)
        .join(latest, (latest.c.run == RunRound.run) & (RunRound.round > latest.c.round - TAIL))
        .order_by(RunRound.round)
    )
    for row in session.execute(query):
        last[row.run] = {**last.get(row.run, {}), **row.metrics}
    return [_run(row, last.get(row.name, {})) for row in rows]


def run(session: Session, name: str) -> RunView | None:
    """Read one run."""
    row = session.get(Run, name)
    if row is None:
        return None
    query = select(RunRound.metrics).where(RunRound.run == name).order_by(RunRound.round.desc()).limit(TAIL)
    newest: dict[str, float] = {}
    for metrics in session.scalars(query):
        newest = {**metrics, **newest}
    return _run(row, newest)


def rounds(session: Session, name: str) -> list[RunRound]:
    """Read a run's rounds, rising; of a long run so many of them as a curve can show, the last always."""
    last = session.scalar(select(func.max(RunRound.round)).where(RunRound.run == name)) or 0
    step = math.ceil(last / POINTS) or 1
    some = (RunRound.round % step == last % step) if step > 1 else (RunRound.round > 0)
    return list(session.scalars(select(RunRound).where(RunRound.run == name, some).order_by(RunRound.round)))


def version(shown: Sequence[RunRound]) -> str:
    """Name what the curves are drawn of: it changes when a round comes, or is reported again with its validation."""
    if not shown:
        return ""
    text = json.dumps([(row.round, row.metrics) for row in shown[-2:]] + [len(shown)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sites(session: Session, name: str, goal: Goal, *, search: bool = False) -> list[SiteView]:
    """Read how a run's sites do, by name.

    search  whether not every site has a part in every round, as in a search's jobs
    """
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    exchanged: dict[str, int] = {}
    trained: dict[str, int] = {}
    query = select(RunRound.round, RunRound.sites).where(RunRound.run == name).order_by(RunRound.round)
    for row in session.execute(query):
        for site in row.sites:
            found.setdefault(site["site"], {})[row.round] = site
            exchanged[site["site"]] = exchanged.get(site["site"], 0) + int(site["bytes"])
            trained[site["site"]] = trained.get(site["site"], 0) + (site["state"] == "trained")
    last = max((number for rows in found.values() for number in rows), default=0)
    numbers = range(max(1, last - STRIP + 1), last + 1)
    colours = site_colours(found)
    return [
        SiteView(
            name=site,
            colour=colours[site],
            state=(now := rows.get(max(rows) if search else last, {})).get("state", "absent"),
            reason=now.get("reason", ""),
            trained=trained[site],
            strip=tuple((number, rows[number]["state"] if number in rows else "") for number in numbers),
            examples=_known(rows, "examples"),
            loss=_known(rows, "loss"),
            value=goal_of(newest := _latest(rows), goal),
            measures=tuple(newest.get(figure.name) for figure in OVERALL),
            seconds=_known(rows, "seconds"),
            bytes=exchanged[site],
        )
        for site, rows in sorted(found.items())
    ]


def lines(session: Session, name: str) -> list[LineView]:
    """Read the last lines of a run's log, newest first."""
    query = select(RunLog).where(RunLog.run == name).order_by(RunLog.line.desc()).limit(LINES)
    return [LineView(row.line, row.at, row.text) for row in session.scalars(query)]


def goal_named(algorithm: str) -> Goal:
    """Return an algorithm's goal; that of the DQN for a run of another version's."""
    return next((goal for name, goal in GOALS.items() if name == algorithm), GOALS["dqn"])


def site_colours(names: Mapping[str, Any] | set[str]) -> dict[str, str]:
    """Give each site of a run its colour, by the order of names."""
    return {name: cluster_colour(number) for number, name in enumerate(sorted(names))}


def remaining(shown: RunView, recent: Sequence[float]) -> timedelta | None:
    """Estimate how long a running run still takes, from the seconds of its last rounds."""
    if shown.state != "running" or not recent or shown.round >= shown.rounds:
        return None
    return timedelta(seconds=sum(recent) / len(recent) * (shown.rounds - shown.round))


def notices(all_runs: Sequence[RunView], training: Mapping[str, bool] | None) -> list[Notice]:
    """Gather what a person should see of training."""
    found = [
        Notice("bad" if view.state == "failed" else "attention", view.name, view.message, view.link)
        for view in all_runs
        if view.message and view.state in {"failed", "queued", "running"}
    ]
    waiting = any(view.state in AT_WORK for view in all_runs)
    for process, up in (training or {}).items():
        if not up and waiting:
            found.append(
                Notice("bad", process, f"the {process} does not answer; the aggregator starts it again", "/runs")
            )
    return found


def _run(row: Run, metrics: Mapping[str, float]) -> RunView:
    goal = goal_named(str(row.spec["algorithm"]))
    sensitivity, specificity = (by_class(metrics, figure) for figure in OF_CLASSES)
    names = sorted({*sensitivity, *specificity})
    return RunView(
        name=row.name,
        state=row.state,
        round=row.round,
        rounds=int(row.spec["rounds"]),
        algorithm=str(row.spec["algorithm"]),
        strategy=str(row.spec["strategy"]),
        created=row.created_at,
        started=row.started_at,
        ended=row.ended_at,
        message=row.message,
        spec=row.spec,
        loss=metrics.get("loss"),
        goal=goal,
        value=goal_of(metrics, goal),
        measures=tuple((figure.words, metrics[figure.name]) for figure in OVERALL if figure.name in metrics),
        classes=tuple((name, sensitivity.get(name), specificity.get(name)) for name in names),
    )


def _latest(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number in sorted(rows)[-TAIL:]:
        found |= rows[number]["metrics"]
    return found


def _known(rows: Mapping[int, Mapping[str, Any]], name: str) -> float | None:
    return _latest(rows).get(name)
