"""The replay plans of a run's rounds: published to the sites, closed when the trainer asks, merged once."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake import closing
from aggregator.intake.store import BlobStore
from aggregator.intake.uploads import Uploads
from aggregator.runs import records
from aggregator.runs.bell import Bell
from aggregator.study.board import Board
from aggregator.study.records import publish
from aggregator.telemetry import Metrics
from cairn import codec
from cairn.errors import PlanError, UnknownPlan, Unreachable
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint

LONGEST = timedelta(days=30)  # that a plan may be open


class ReplayPlans:
    """Publishes and merges replay plans.

    spool  folder for a merged file until it is in the store
    bell   rung when an upload or an answer came
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        board: Board,
        uploads: Uploads,
        spool: Path,
        bell: Bell,
        *,
        now: Callable[[], datetime],
        log: structlog.typing.FilteringBoundLogger,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._store = store
        self._board = board
        self._uploads = uploads
        self._spool = spool
        self._bell = bell
        self._now = now
        self._log = log
        self._metrics = metrics
        self._merging = threading.Lock()

    def publish(self, published: bytes, open_for: timedelta) -> None:
        """Offer a plan to the sites; one that they have stays open for as long again. Raises PlanError.

        A plan that closed with its run and was not merged is opened again for the run that was resumed.
        """
        plan, now = codec.decode_plan(published), self._now()
        if not isinstance(plan.stage, ReplayPlan | ReplayRangesPlan):
            raise PlanError(
                f"a plan of the stage {plan.stage.stage} was to be published as a run's; replay is expected"
            )
        if codec.encode_plan(plan) != published:
            raise PlanError("the replay plan is written in other bytes than this version writes; update the older side")
        if not timedelta(0) < open_for <= LONGEST:
            raise PlanError(f"a replay plan was to be open for {open_for}; up to {LONGEST.days} days can be")
        with database.writing(self._engine) as session:
            run = session.get(tables.Run, plan.study)
            if run is None or run.state not in records.AT_WORK:
                raise PlanError(f"the replay plan is of {plan.study[:80]!r}, which is no run that is running")
            row = session.get(tables.Plan, fingerprint(published).hex())
            if row is None:
                publish(session, plan, now + open_for, now)
            elif row.state != "done":
                row.state, row.closed_at, row.sites_expected = "open", None, None
                row.deadline = max(row.deadline, now + open_for)
        self._board.refresh()

    def merge(self, plan: str, sites: Sequence[str], patience: timedelta, active: Callable[[], bool]) -> str:
        """Close a plan, merge the uploads in the ledger and return the merged file's digest; again: the same.

        plan      fingerprint in hex
        sites     waited for, up to `patience`, unless they have refused the plan or left the federation
        active    tells whether the caller is there
        Raises UnknownPlan, StorageFull; Unreachable when the caller is gone or the aggregator stops: nothing is closed.
        """
        self._find(plan)
        self._bell.wait_until(lambda: not self._awaited(plan, sites), patience.total_seconds(), active)
        if self._bell.stopped or not active():
            raise Unreachable("the aggregator stops; ask for the merged replay again")
        with self._merging:  # two calls at once would write one file
            row = self._close(plan)
            if row.state == "closed":
                self._merge(row)
        with database.reading(self._engine) as session:
            return session.get_one(tables.Merge, plan).digest

    def _find(self, plan: str) -> tables.Plan:
        with database.reading(self._engine) as session:
            row = session.get(tables.Plan, plan)
        if row is None or row.stage not in {ReplayPlan.stage, ReplayRangesPlan.stage}:
            raise UnknownPlan(f"no replay plan {plan[:12]} was published here")
        return row

    def _awaited(self, plan: str, sites: Sequence[str]) -> set[str]:
        with database.reading(self._engine) as session:
            row = session.get_one(tables.Plan, plan)
            if row.state != "open":
                return set()
            here = select(tables.Member.name).where(tables.Member.name.in_(sites), tables.Member.state == "enrolled")
            sent = select(tables.Upload.site).filter_by(plan=plan)
            refused = select(tables.Answer.site).filter_by(plan=plan, accepted=False)
            return set(session.scalars(here)) - set(session.scalars(sent)) - set(session.scalars(refused))

    def _close(self, plan: str) -> tables.Plan:
        with database.writing(self._engine) as session:
            row = session.get_one(tables.Plan, plan)
            closes = row.state == "open"
            if closes:
                closing.close(session, row, records.counted_sites(session, plan), records.TRAINER, self._now())
        if closes:
            self._uploads.forget(plan)
            self._board.refresh()
        return row

    def _merge(self, row: tables.Plan) -> None:
        merged = closing.merge_closed(self._engine, self._store, self._spool, row, records.TRAINER, self._now)
        if merged is None:
            return
        self._metrics.merges.inc()
        seconds = (self._now() - row.opened_at).total_seconds()
        self._metrics.stage_seconds.labels(row.stage).observe(seconds)
        self._log.info("replay merged", run=row.study, stage=row.stage, round=row.window, sites=len(merged))
