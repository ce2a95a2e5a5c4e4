"""What the metrics ask the database and the disk for when somebody looks at them."""

import shutil
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import get_args

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.backup.making import last_made
from aggregator.members.sites_service import connected_sites, received_bytes
from aggregator.runs.records import count_runs
from aggregator.settings import AggregatorSettings
from aggregator.study.studies import State
from aggregator.tables import RunState
from aggregator.telemetry import Metrics


def measure(metrics: Metrics, engine: Engine, settings: AggregatorSettings, now: Callable[[], datetime]) -> None:
    """Set the functions of the metrics that are what they are at the moment."""

    def ask(question: Callable[[Session], int]) -> int:
        with database.reading(engine) as session:
            return question(session)

    metrics.sites.set_function(lambda: ask(lambda session: connected_sites(session, now())))
    metrics.sites_enrolled.set_function(lambda: ask(_enrolled))
    metrics.ledger_bytes.set_function(lambda: ask(received_bytes))
    metrics.stages_overdue.set_function(lambda: ask(lambda session: _overdue(session, now())))
    metrics.disk_size.set_function(lambda: shutil.disk_usage(settings.state_dir).total)
    metrics.disk_free.set_function(lambda: shutil.disk_usage(settings.state_dir).free)
    metrics.backup.set_function(lambda: last_made(settings))
    for run_state in get_args(RunState):
        metrics.runs.labels(run_state).set_function(partial(ask, partial(count_runs, state=run_state)))
    for state in get_args(State):
        metrics.studies.labels(state).set_function(partial(ask, partial(_studies, state=state)))


def _enrolled(session: Session) -> int:
    query = select(func.count()).select_from(tables.Member).filter_by(role="site", state="enrolled")
    return session.scalar(query) or 0


def _overdue(session: Session, now: datetime) -> int:
    late = (tables.Plan.state == "open", tables.Plan.deadline < now)
    return session.scalar(select(func.count()).select_from(tables.Plan).where(*late)) or 0


def _studies(session: Session, state: str) -> int:
    return session.scalar(select(func.count()).select_from(tables.Study).filter_by(state=state)) or 0
