"""What sites tell of how far they are, written for many of them at once.

A report is little, and a transaction is much: it ends with the disk. So of the calls that wait for the database, the
first one writes what all of them have to say; each is answered when it is written.
"""

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from cairn.errors import NotEnrolled, UnknownPlan


@dataclass(frozen=True)
class Report:
    """How far a site is.

    plan      fingerprint in hex of what it counts, None when it counts nothing
    problems  sentences, fit to be shown
    progress  numbers by the names of `tables.Progress`
    """

    site: str
    plan: str | None
    problems: list[str]
    progress: dict[str, int]
    at: datetime


class Reports:
    """Takes reports of many threads at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[Report, Future[None]]] = []

    def note(self, report: Report) -> None:
        """Keep a report; it is in the database when this returns.

        Raises UnknownPlan, NotEnrolled; StorageFull, Unreachable, and then nothing of it was kept.
        """
        kept: Future[None] = Future()
        with self._lock:
            self._waiting.append((report, kept))
        with self._turn:
            if not kept.done():  # by who had the turn before
                with self._lock:
                    together, self._waiting = self._waiting, []
                self._keep(together)
        kept.result()

    def _keep(self, together: list[tuple[Report, Future[None]]]) -> None:
        try:
            with database.writing(self._engine) as session:
                failures = write(session, [report for report, _ in together])
        except BaseException as error:  # noqa: BLE001 - raised in every thread that waits for it
            for _, kept in together:
                kept.set_exception(error)
            return
        for (_, kept), failure in zip(together, failures, strict=True):
            if failure is None:
                kept.set_result(None)
            else:
                kept.set_exception(failure)


def write(session: Session, reports: list[Report]) -> list[NotEnrolled | UnknownPlan | None]:
    """Write reports in the order given; returns for each why it was left out, None when it was not."""
    sites, plans = {report.site for report in reports}, {report.plan for report in reports if report.plan}
    members = {row.name: row for row in session.scalars(select(tables.Member).where(tables.Member.name.in_(sites)))}
    known = set(session.scalars(select(tables.Plan.fingerprint).where(tables.Plan.fingerprint.in_(plans))))
    found = select(tables.Progress).where(tables.Progress.plan.in_(plans), tables.Progress.site.in_(sites))
    progress = {(row.plan, row.site): row for row in session.scalars(found)}
    failures: list[NotEnrolled | UnknownPlan | None] = []
    for report in reports:
        member = members.get(report.site)
        if member is None:
            failures.append(no_site(report.site))
        elif report.plan is not None and report.plan not in known:
            failures.append(no_plan(report.plan))
        else:
            failures.append(None)
            member.last_seen, member.working_fingerprint, member.problems = report.at, report.plan, report.problems
            if report.plan is not None:
                key = report.plan, report.site
                if key not in progress:
                    progress[key] = tables.Progress(plan=report.plan, site=report.site)
                    session.add(progress[key])
                for name, value in (report.progress | {"at": report.at}).items():
                    setattr(progress[key], name, value)
    return failures


def no_site(name: str) -> NotEnrolled:
    """Say that a site is not of the federation."""
    return NotEnrolled(f"there is no site {name} in this federation; enrol first")


def no_plan(fingerprint: str) -> UnknownPlan:
    """Say that a plan is not of this aggregator."""
    return UnknownPlan(f"no plan {fingerprint[:12]} was published here; ask for the open plans again")
