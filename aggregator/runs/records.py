"""What is known of training runs in the database, each change in a session of the caller's.

queued ──claim──► running ──report──► done | failed | stopped        stop:   queued ──► stopped
  ▲                  └──stop──► stopping ──report, claim──► stopped             running ──► stopping
  └───────────────────── resume ──── stopped | failed
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake import closing
from aggregator.study.plans_service import plain_text
from aggregator.study.records import check_name
from aggregator.tables import RunState
from cairn.errors import StudyError, TrainingError
from cairn.rpc import NAME
from cairn.run import GOALS, RunSpec
from cairn.v1 import training_pb2

TRAINER: Final = "trainer/trainer"  # the actor in the audit
AT_WORK: Final[tuple[RunState, ...]] = ("running", "stopping")
ENDED: Final[tuple[RunState, ...]] = ("stopped", "done", "failed")
SENTENCE = 500  # characters of a message
LINE = 2000  # characters of a line of the log
METRICS = 2000  # numbers of one site and round
METRIC_NAME = 100
LAST_ROUND = 100_000
COUNT_LIMIT = 2**62


@dataclass(frozen=True)
class Reported:
    """What comes of a report.

    stop     the run should end
    seconds  that a round took which was not known before
    """

    stop: bool
    seconds: float | None = None


def find_run(session: Session, name: str) -> tables.Run:
    """Read a run. Raises StudyError when there is none of this name."""
    run = session.get(tables.Run, name)
    if run is None:
        raise StudyError(f"there is no run {name[:80]!r}; `cairn runs list` shows all")
    return run


def spec_of(run: tables.Run) -> RunSpec:
    """Read what a run was asked for; one that was stored before there were masked runs goes on in plain."""
    return RunSpec.model_validate({"masking": "off", **run.spec})


def best_values(session: Session, *names: str) -> dict[str, float]:
    """Find the best validation of these runs, or of all, by their algorithm's figure; runs without are left out."""
    found: dict[str, float] = {}
    for algorithm, goal in GOALS.items():
        value = tables.RunRound.metrics[goal.metric].as_float()
        query = (
            select(tables.RunRound.run, (func.max if goal.larger_is_better else func.min)(value))
            .join(tables.Run, tables.Run.name == tables.RunRound.run)
            .where(tables.Run.spec["algorithm"].as_string() == algorithm, value.is_not(None))
            .group_by(tables.RunRound.run)
        )
        if names:
            query = query.where(tables.RunRound.run.in_(names))
        found |= {run: float(best) for run, best in session.execute(query)}
    return found


def count_runs(session: Session, state: RunState) -> int:
    """Count the runs in a state."""
    return session.scalar(select(func.count()).select_from(tables.Run).filter_by(state=state)) or 0


def rounds(session: Session, run: str, after: int, most: int) -> Sequence[tables.RunRound]:
    """List a run's rounds after one of them, rising, at most so many."""
    query = select(tables.RunRound).filter_by(run=run).where(tables.RunRound.round > after)
    return session.scalars(query.order_by(tables.RunRound.round).limit(most)).all()


def create(session: Session, spec: RunSpec, actor: str, now: datetime) -> None:
    """Put a new run into the queue. Raises StudyError when the name is taken, TrainingError for NaN."""
    check_name(session, spec.name)
    try:
        json.dumps([spec.settings, spec.strategy_options, spec.search], allow_nan=False)
    except ValueError as error:
        raise TrainingError("settings: a number in them is not finite") from error
    values = spec.model_dump(mode="json")
    session.add(tables.Run(name=spec.name, spec=values, state="queued", round=0, created_at=now, queued_at=now))
    database.audit(session, now, actor, "create-run", spec.name, rounds=spec.rounds, algorithm=spec.algorithm)


def claim(session: Session, now: datetime) -> tables.Run | None:
    """Give the run to work on now to the trainer: one that was begun before any that is queued.

    Who asks works on nothing, so a run that was to stop has stopped.
    """
    for left in session.scalars(select(tables.Run).filter_by(state="stopping")):
        end(session, left, "stopped", left.message, now)
    begun = select(tables.Run).filter_by(state="running").order_by(tables.Run.started_at, tables.Run.name)
    queued = select(tables.Run).filter_by(state="queued").order_by(tables.Run.queued_at, tables.Run.name)
    run = session.scalar(begun.limit(1)) or session.scalar(queued.limit(1))
    if run is not None and run.state == "queued":
        run.state, run.started_at, run.ended_at, run.message = "running", run.started_at or now, None, ""
        database.audit(session, now, TRAINER, "begin-run", run.name, round=run.round)
    return run


def stop(session: Session, name: str, actor: str, now: datetime) -> None:
    """Ask a run to end after its round; one that waits in the queue ends at once. Raises StudyError."""
    run = find_run(session, name)
    if run.state in {"queued", "running"}:
        database.audit(session, now, actor, "stop-run", name, round=run.round)
    if run.state == "queued":
        end(session, run, "stopped", "", now)
    elif run.state == "running":
        run.state = "stopping"


def resume(session: Session, name: str, actor: str, now: datetime) -> None:
    """Put a run that has ended early back into the queue. Raises StudyError."""
    run = find_run(session, name)
    if run.state not in {"stopped", "failed"}:
        raise StudyError(f"{name} is {run.state}; a run that was stopped or has failed can be resumed")
    run.state, run.queued_at, run.ended_at, run.message = "queued", now, None, ""
    database.audit(session, now, actor, "resume-run", name, round=run.round)


def end(session: Session, run: tables.Run, state: RunState, message: str, now: datetime) -> None:
    """End a run: its plans take no more uploads."""
    run.state, run.ended_at, run.message = state, now, message
    for plan in session.scalars(select(tables.Plan).filter_by(study=run.name, state="open")):
        closing.close(session, plan, counted_sites(session, plan.fingerprint), TRAINER, now)
    database.audit(session, now, TRAINER, "end-run", run.name, state=state, round=run.round, message=message)


def report(session: Session, request: training_pb2.ReportRunRequest, now: datetime) -> Reported:
    """Note what the trainer reports.

    A report on a run that the trainer does not have any more changes nothing but the log. Raises StudyError.
    """
    run = find_run(session, request.name)
    if text := plain_text(request.log, LINE):
        add_line(session, run.name, text, now)
    if run.state not in AT_WORK:
        return Reported(stop=True)
    before, message = run.round, plain_text(request.message, SENTENCE)
    if request.HasField("round"):
        _note_round(session, run, request.round, now)
    if request.HasField("round") or message:
        run.message = message
    if request.ended:
        found = next((state for state in ENDED if state == request.ended), None)
        if found is None:
            raise StudyError(f"{request.ended[:40]!r} is no end of a run; {', '.join(ENDED)} are")
        end(session, run, found, message, now)
    return Reported(run.state != "running", request.round.seconds if run.round > before else None)


def add_line(session: Session, run: str, text: str, now: datetime) -> None:
    """Add a line to a run's log."""
    last = session.scalar(select(func.max(tables.RunLog.line)).filter_by(run=run)) or 0
    session.add(tables.RunLog(run=run, line=last + 1, at=now, text=text))
    session.flush()


def counted_sites(session: Session, plan: str) -> list[str]:
    """List the sites whose uploads a replay plan's merge takes: all in the ledger but those of revoked sites."""
    query = (
        select(tables.Upload.site)
        .join(tables.Member, tables.Member.name == tables.Upload.site)
        .where(tables.Upload.plan == plan, tables.Member.state == "enrolled")
    )
    return sorted(session.scalars(query))


def _note_round(session: Session, run: tables.Run, reported: training_pb2.Round, now: datetime) -> None:
    if not 1 <= reported.round <= LAST_ROUND:
        raise StudyError(f"round {reported.round} of {run.name} was reported; rounds begin with 1")
    later = (tables.RunRound.run == run.name) & (tables.RunRound.round > reported.round)
    session.execute(delete(tables.RunRound).where(later))  # of before the trainer went back to a checkpoint
    session.merge(
        tables.RunRound(
            run=run.name,
            round=reported.round,
            ended_at=reported.ended.ToDatetime(now.tzinfo) if reported.HasField("ended") else now,
            seconds=reported.seconds if math.isfinite(reported.seconds) else 0.0,
            metrics=_numbers(reported.metrics),
            sites=[_site(site) for site in reported.sites],
        )
    )
    run.round = reported.round


def _site(site: training_pb2.SiteRound) -> dict[str, Any]:
    if not NAME.fullmatch(site.site):
        raise StudyError(f"{site.site[:80]!r} is not a site's name")
    return {
        "site": site.site,
        "state": plain_text(site.state, 16),
        "reason": plain_text(site.reason, SENTENCE),
        "metrics": _numbers(site.metrics),
        "bytes": min(site.bytes, COUNT_LIMIT),
    }


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    # A database's JSON, and a browser's, know no NaN; a number that is not there is a gap in a curve.
    found = sorted((plain_text(name, METRIC_NAME), value) for name, value in metrics.items() if math.isfinite(value))
    return dict(found[:METRICS])
