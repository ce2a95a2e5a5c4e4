"""The plans of a run: of its replay and of its updates. Published to the sites, closed when asked, merged once."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake import closing
from aggregator.intake.store import BlobStore
from aggregator.intake.uploads import Uploads
from aggregator.masking import ledger
from aggregator.masking.sums import Sums, Wanted
from aggregator.runs import records, worn
from aggregator.runs.bell import Bell
from aggregator.study.board import Board
from aggregator.study.records import publish
from aggregator.telemetry import Metrics
from cairn import codec
from cairn.errors import MaskingError, PlanError, PlanMismatch, UnknownPlan, Unreachable
from cairn.plan import ReplayPlan, ReplayRangesPlan, RunStage, UpdatePlan, fingerprint

LONGEST: Final = timedelta(days=30)  # that a plan may be open
OF_RUNS: Final = {ReplayPlan.stage, ReplayRangesPlan.stage, UpdatePlan.stage}
LOOK_S: Final = 0.5  # at the longest between two looks at a masked sum


class ReplayPlans:
    """Publishes and merges the plans of runs.

    spool  folder for a merged file until it is in the store
    bell   rung when an upload or an answer came
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        board: Board,
        uploads: Uploads,
        sums: Sums,
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
        self._sums = sums
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
        if not isinstance(plan.stage, RunStage):
            raise PlanError(
                f"a plan of the stage {plan.stage.stage} was to be published as a run's; replay is expected"
            )
        if isinstance(plan.stage, UpdatePlan) and plan.secrecy is None:
            raise PlanError("a plan of updates came that is not masked; in plain, updates come with Flower's messages")
        if codec.encode_plan(plan) != published:
            raise PlanError("the run's plan is written in other bytes than this version writes; update the older side")
        if not timedelta(0) < open_for <= LONGEST:
            raise PlanError(f"a replay plan was to be open for {open_for}; up to {LONGEST.days} days can be")
        name = fingerprint(published).hex()
        with database.writing(self._engine) as session:
            run = session.get(tables.Run, plan.study)
            if run is None or run.state not in records.AT_WORK:
                raise PlanError(f"the replay plan is of {plan.study[:80]!r}, which is no run that is running")
            row = session.get(tables.Plan, name)
            if row is None:
                publish(session, plan, now + open_for, now)
            elif row.state != "done":
                row.state, row.closed_at, row.sites_expected = "open", None, None
                row.deadline = max(row.deadline, now + open_for)
                ledger.wait_anew(session, name, now)
        if isinstance(plan.stage, UpdatePlan):
            worn.drop(self._engine, self._store, plan)
        self._board.refresh()

    def merge(self, plan: str, sites: Sequence[str], patience: timedelta, active: Callable[[], bool]) -> str:
        """Close a plan, merge the uploads in the ledger and return the merged file's digest; again: the same.

        plan      fingerprint in hex
        sites     waited for, up to `patience`, unless they have refused the plan or left the federation
        patience  of a masked plan also for each step of its sum
        active    tells whether the caller is there
        Raises UnknownPlan, StorageFull; Unreachable when the caller is gone or the aggregator stops: nothing is closed;
        MaskingError when a masked sum is lost: then the plan is closed without one.
        """
        if codec.decode_plan(self._find(plan).published).secrecy is not None:
            self._sum(plan, sites, patience, active)
        else:
            self._bell.wait_until(lambda: not self._awaited(plan, sites), patience.total_seconds(), active)
            self._check_wanted(active)
            with self._merging:  # two calls at once would write one file
                row = self._close(plan)
                if row.state == "closed":
                    self._merge(row)
        with database.reading(self._engine) as session:
            return session.get_one(tables.Merge, plan).digest

    def merged_sites(self, plan: str) -> list[str]:
        """List the sites that are in a merge, those alone that sent something for this very plan."""
        with database.reading(self._engine) as session:
            return list(session.get_one(tables.Plan, plan).sites_expected or [])

    def _sum(self, plan: str, sites: Sequence[str], patience: timedelta, active: Callable[[], bool]) -> None:
        """Take a masked sum to its end, one attempt. Raises MaskingError, Unreachable."""
        row, deadline = self._find(plan), self._now() + patience
        while row.state == "open":
            with database.reading(self._engine) as session:
                run = session.get_one(tables.Run, row.study)
                wanted = Wanted(
                    self._partaking(plan, sites), records.spec_of(run).min_sites, deadline, patience, once=True
                )
            rung = self._bell.times
            try:
                with self._merging:
                    turn = self._sums.turn(row, wanted)
            except (MaskingError, PlanMismatch) as error:  # too few sites, or one that dealt or added what is false
                self._close(plan)
                raise MaskingError(f"the masked sum of {row.study}, round {row.window} is lost: {error}") from error
            if turn.merged:
                self._uploads.forget(plan)
                self._board.refresh()
                self._note_merge(row, turn.merged)
            if not turn.changed:
                self._bell.wait_until(lambda: self._bell.times != rung, LOOK_S, active)  # noqa: B023 - waits here
                self._check_wanted(active)
            row = self._find(plan)
        if row.state != "done":
            raise MaskingError(f"the masked sum of {row.study}, round {row.window} was lost before")

    def _check_wanted(self, active: Callable[[], bool]) -> None:
        if self._bell.stopped or not active():
            raise Unreachable("the aggregator stops; ask for the merged replay again")

    def _find(self, plan: str) -> tables.Plan:
        with database.reading(self._engine) as session:
            row = session.get(tables.Plan, plan)
        if row is None or row.stage not in OF_RUNS:
            raise UnknownPlan(f"no replay plan {plan[:12]} was published here")
        return row

    def _partaking(self, plan: str, sites: Sequence[str]) -> set[str]:
        """Of some sites, those that are enrolled and did not refuse a plan."""
        with database.reading(self._engine) as session:
            here = select(tables.Member.name).where(tables.Member.name.in_(sites), tables.Member.state == "enrolled")
            refused = select(tables.Answer.site).filter_by(plan=plan, accepted=False)
            return set(session.scalars(here)) - set(session.scalars(refused))

    def _awaited(self, plan: str, sites: Sequence[str]) -> set[str]:
        with database.reading(self._engine) as session:
            if session.get_one(tables.Plan, plan).state != "open":
                return set()
            sent = set(session.scalars(select(tables.Upload.site).filter_by(plan=plan)))
        return self._partaking(plan, sites) - sent

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
        if merged is not None:
            self._note_merge(row, len(merged))

    def _note_merge(self, row: tables.Plan, sites: int) -> None:
        self._metrics.merges.inc()
        seconds = (self._now() - row.opened_at).total_seconds()
        self._metrics.stage_seconds.labels(row.stage).observe(seconds)
        ids = {"run": row.study, "round": row.window, "stage": row.stage, "plan": row.fingerprint}
        self._log.info("run's tallies merged", **ids, sites=sites)
