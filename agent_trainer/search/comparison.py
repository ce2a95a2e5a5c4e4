"""Methods of search side by side: the best so far against the jobs spent, over seeds. Records in, numbers out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from agent_trainer.search.journal import Record
from agent_trainer.search.leaderboard import rewards
from agent_trainer.search.spec import SearchSpec

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """One search, job after job as they were launched; NaN before the first job with a reward.

    best  float64[jobs]  the best reward so far
    test  float64[jobs]  the test figure of the job that holds it; all NaN where nothing was tested
    """

    method: str
    seed: int
    best: Floats
    test: Floats

    @property
    def routine(self) -> tuple[float, float]:
        """Reward and test figure of the first job, the routine strategy."""
        return float(self.best[0]), float(self.test[0])


def course(spec: SearchSpec, records: Sequence[Record]) -> Course:
    """Follow a search; its test figure is negated where its reward is."""
    size = max((record.job for record in records), default=-1) + 1
    best, tested = np.full(size, np.nan), np.full(size, np.nan)
    figures = {record.job: record.figures for record in records}
    of_job = dict(rewards(records))
    holder: tuple[float, float] | None = None
    for job in range(size):
        if job in of_job and (holder is None or of_job[job] > holder[0]):
            figure = figures[job].get(spec.test_metric, np.nan)
            holder = of_job[job], figure if spec.goal.larger_is_better else -figure
        if holder is not None:
            best[job], tested[job] = holder
    return Course(spec.method, spec.seed, best, tested)


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds.

    sd  None of a single one
    """

    mean: float
    sd: float | None
    least: float
    most: float
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """Sum up the numbers that are no NaN; None where there is none."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None, min(known), max(known), len(known))


def by_method(courses: Sequence[Course]) -> Mapping[str, list[Course]]:
    """Put the courses of each method together, in the order in which the methods come."""
    found: dict[str, list[Course]] = {}
    for one in courses:
        found.setdefault(one.method, []).append(one)
    return found


def compared(courses: Sequence[Course], at: int | None = None) -> list[dict[str, Any]]:
    """Return a row a method as JSON can say it: the best reward and its test figure, and both over the routine's.

    at  jobs spent; None all
    A search that ended before, with nothing left to try, keeps what it had found.
    """
    rows = []
    for method, of_it in by_method(courses).items():
        ends = [_at(one, at) for one in of_it if len(one.best)]
        starts = [one.routine for one in of_it if len(one.best)]
        numbers = {
            "reward": [best for best, _ in ends],
            "test": [test for _, test in ends],
            "over_routine": [end[0] - start[0] for end, start in zip(ends, starts, strict=True)],
            "test_over_routine": [end[1] - start[1] for end, start in zip(ends, starts, strict=True)],
        }
        jobs = [len(one.best) for one in of_it]
        told = {name: _as_json(spread(values)) for name, values in numbers.items()}
        rows.append({"method": method, "searches": len(of_it), "jobs": [min(jobs), max(jobs)], **told})
    return rows


def _at(one: Course, jobs: int | None) -> tuple[float, float]:
    place = len(one.best) - 1 if jobs is None else min(jobs, len(one.best)) - 1
    return float(one.best[place]), float(one.test[place])


def _as_json(found: Spread | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    return {"mean": found.mean, "sd": found.sd, "min": found.least, "max": found.most, "n": found.n}


def comparison_table(rows: Sequence[Mapping[str, Any]], reward: str) -> Table:
    """Return the rows as a table for people: mean ± standard deviation over searches.

    reward  what it is
    """
    table = Table("method", "searches", "jobs", f"best {reward}", "over routine", "its test", "over routine")
    for row in rows:
        least, most = row["jobs"]
        jobs = str(most) if least == most else f"{least} to {most}"
        cells = (_said(row[name]) for name in ("reward", "over_routine", "test", "test_over_routine"))
        table.add_row(row["method"], str(row["searches"]), jobs, *cells)
    return table


def _said(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.4f}" if found["sd"] is None else f"{found['mean']:.4f} ± {found['sd']:.4f}"
