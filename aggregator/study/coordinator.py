"""The loop that takes every study on, one small step after another, each of which a crash may interrupt.

A step reads, computes, and commits with a look at the state that it began from: a second process, or the same one
after a restart, that has done the step meanwhile wins, and the work is thrown away.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake import closing, merging
from aggregator.intake.store import BlobStore
from aggregator.intake.uploads import Uploads
from aggregator.masking.sums import Sums, Wanted
from aggregator.study import records, steps, studies
from aggregator.study.board import Board
from aggregator.study.claims import claim
from aggregator.study.layout import LayOut, lay_out_apart
from aggregator.telemetry import Metrics
from cairn import codec, kernels
from cairn.errors import CairnError, PlanError, StudyError
from cairn.memory import give_back
from cairn.study import StudySpec
from cairn.tally import Tables, add
from cairn.tracing import Traces

AGGREGATOR = "aggregator"
IDLE_S = 1.0  # how often deadlines, and what other processes did, are looked at
SHARE = 0.2  # of the time may go by looking at studies while nothing goes on: every upload of a thousand asks for it
LONGEST_RETRY = timedelta(minutes=1)
IDLE_STATES = ("done", "failed")
Work = Callable[[], steps.Outcome]


class Coordinator:
    """Advances studies; `turn` does one step of each, `start` keeps doing it in a thread.

    folder  on a disk of this machine, for files on their way into the store and for locks
    lay_out makes maps; in a process of its own, whose memory goes with it
    """

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        board: Board,
        uploads: Uploads,
        *,
        folder: Path,
        now: Callable[[], datetime],
        log: structlog.typing.FilteringBoundLogger,
        metrics: Metrics,
        sums: Sums,
        traces: Traces | None = None,
        lay_out: LayOut = lay_out_apart,
    ) -> None:
        self._engine = engine
        self._store = store
        self._board = board
        self._uploads = uploads
        self._folder = folder
        self._now = now
        self._log = log
        self._metrics = metrics
        self._sums = sums
        self._traces = traces or Traces()
        self._lay_out = lay_out
        self._failures: dict[str, tuple[int, datetime]] = {}  # of a study: how often in a row, and when to try again
        self._something = threading.Event()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._advance, name="coordinator", daemon=True),
            threading.Thread(target=self._watch, name="board", daemon=True),
        ]

    def start(self) -> None:
        """Keep studies going, and the board fresh, until `stop`."""
        self._uploads.tidy()
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float = 10.0) -> None:
        """Begin no new step; a long one that is under way is given up with the process, and done anew after it."""
        self._stopped.set()
        self._something.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(patience_s)

    def wake(self) -> None:
        """Look at the studies now: an upload or an answer came, or an operator did something."""
        self._something.set()

    def turn(self) -> bool:
        """Do one step of every study that can go on; tells whether any did."""
        with database.reading(self._engine) as session:
            names = session.scalars(select(tables.Study.name).where(tables.Study.state.not_in(IDLE_STATES))).all()
        changed = [self._step_safely(name) for name in names]
        return any(changed)

    def _step_safely(self, name: str) -> bool:
        failures, retry_at = self._failures.get(name, (0, self._now()))
        if self._now() < retry_at:
            return False
        try:
            with claim(self._engine, name, self._folder) as mine:
                changed = mine and self._step(name)
        except Exception as error:  # noqa: BLE001 - whatever happens to one study, the others go on and it is tried again
            wait = min(timedelta(seconds=2 ** min(failures, 10)), LONGEST_RETRY)
            self._failures[name] = (failures + 1, self._now() + wait)
            self._metrics.step_failures.inc()
            self._log.error("step failed", study=name, failures=failures + 1, exc_info=error)
            self._say(name, f"a step failed and is tried again every minute or sooner: {_sentence(error)}")
            return False
        self._failures.pop(name, None)
        if changed:
            self._board.refresh()
        return changed

    def _step(self, name: str) -> bool:
        with database.reading(self._engine) as session:
            study = session.get(tables.Study, name)
            plan = records.current_plan(session, study) if study is not None else None
        if study is None or study.state in IDLE_STATES:
            return False
        if plan is not None and plan.state == "open":
            masked = codec.decode_plan(plan.published).secrecy is not None
            return self._sum(study, plan) if masked else self._close(study, plan)
        if plan is not None and plan.state == "closed":
            return self._merge(plan)
        work = self._work(study, plan)
        return work is not None and self._do(study, work)

    def _do(self, study: tables.Study, work: Work) -> bool:
        started = self._now()
        try:
            with self._traces.span(f"compute after {study.state}", study=study.name, window=study.window):
                outcome = work()
        except (PlanError, StudyError) as error:
            return self._commit(study, steps.Outcome("failed", None, {}), str(error))
        took = (self._now() - started).total_seconds()
        outcome.results["seconds"] = {f"{study.window}/{study.state}": took}
        return self._commit(study, outcome, "")

    def _close(self, study: tables.Study, plan: tables.Plan) -> bool:
        with database.reading(self._engine) as session:
            decision = self._decide(session, study, plan)
        if isinstance(decision, studies.Wait):
            if decision.message == study.message:
                return False
            self._say(study.name, decision.message)
            return True
        with database.writing(self._engine) as session:
            row = session.get(tables.Plan, plan.fingerprint)
            if row is None or row.state != "open":
                return False
            decision = self._decide(session, study, row)  # again, now that nobody else can change anything
            if isinstance(decision, studies.Wait):
                return False
            closing.close(session, row, decision.sites, AGGREGATOR, self._now())
        self._log.info("stage closed", **_ids(plan))
        self._uploads.forget(plan.fingerprint)
        return True

    def _sum(self, study: tables.Study, plan: tables.Plan) -> bool:
        """Take a masked sum one step on; its last step is the merge."""
        spec = StudySpec.model_validate(study.spec)
        with database.reading(self._engine) as session:
            sites = records.participants(session, plan.fingerprint)
        ready = [site.name for site in sites if site.enrolled and not site.refused]
        turn = self._sums.turn(plan, Wanted(ready, spec.min_sites, plan.deadline, spec.masking_patience))
        if not turn.changed and turn.message != study.message:
            self._say(study.name, turn.message)
        if turn.merged:
            self._note_merge(plan, turn.merged)
            self._uploads.forget(plan.fingerprint)
        return turn.changed

    def _decide(self, session: Session, study: tables.Study, plan: tables.Plan) -> studies.Close | studies.Wait:
        min_sites = StudySpec.model_validate(study.spec).min_sites
        sites = records.participants(session, plan.fingerprint)
        return studies.closing(sites, min_sites, plan.deadline, self._now())

    def _merge(self, plan: tables.Plan) -> bool:
        spool = self._folder / "spool"
        with self._traces.span("merge", bytes.fromhex(plan.fingerprint), **_ids(plan)):
            merged = closing.merge_closed(self._engine, self._store, spool, plan, AGGREGATOR, self._now)
        if merged is None:
            return False
        self._note_merge(plan, len(merged))
        return True

    def _note_merge(self, plan: tables.Plan, sites: int) -> None:
        self._metrics.merges.inc()
        seconds = (self._now() - plan.opened_at).total_seconds()
        self._metrics.stage_seconds.labels(plan.stage).observe(seconds)
        self._log.info("merged", **_ids(plan), sites=sites)

    def _work(self, study: tables.Study, plan: tables.Plan | None) -> Work | None:
        """Read what the next computation needs, and return the computation; None when there is nothing to compute."""
        spec, known, window = StudySpec.model_validate(study.spec), study.results, study.window
        if plan is not None:
            merged = self._counts(study.name, window) if plan.stage == "counts" else self._merged(plan)
            return partial(steps.after_merge, spec, codec.decode_plan(plan.published), known, merged, _tallies(plan))
        if study.state == "recovering":
            published = codec.decode_plan(self._plan(study.name, "counts", window).published)
            counts = self._counts(study.name, window)
            windows = [self._plan(study.name, "counts", number) for number in range(window + 1)]
            tallies = sum(_tallies(one) for one in windows)
            # Not the compiled kernels: here they save less time than it takes to load them, and 130 MB stay with them.
            return partial(steps.recover, spec, published, counts, kernels.load("numpy"), tallies)
        recovery = self._plan(study.name, "recovery", window)
        published = codec.decode_plan(recovery.published)
        if study.state == "embedding":
            return partial(steps.embed, spec, published, self._merged(recovery), _tallies(recovery), self._lay_out)
        if study.state == "awaiting_approval" and spec.auto_approve:
            with self._store.open(known["heavy_hitters_digest"]) as file:
                return partial(steps.approve, published, known, file.read(), {})
        return None

    def _commit(self, study: tables.Study, outcome: steps.Outcome, message: str) -> bool:
        table = records.keep_table(self._store, self._folder / "spool", outcome)
        with database.writing(self._engine) as session:
            done = records.advance(
                session, study, outcome, table=table, message=message, actor=AGGREGATOR, now=self._now()
            )
        if done:
            self._log.info("study advanced", study=study.name, window=study.window, to=outcome.event, why=message)
        return done

    def _merged(self, plan: tables.Plan) -> Tables:
        with database.reading(self._engine) as session:
            merge = session.get_one(tables.Merge, plan.fingerprint)
        stage = codec.decode_plan(plan.published).stage
        return merging.load_merged(self._store, merge.digest, plan.fingerprint, stage).tables

    def _counts(self, study: str, last_window: int) -> Tables:
        """Add the merged counts of all windows so far; one window's are in memory beside the sum."""
        sums = self._merged(self._plan(study, "counts", 0))
        for window in range(1, last_window + 1):
            add(sums, self._merged(self._plan(study, "counts", window)))
        return sums

    def _plan(self, study: str, stage: str, window: int) -> tables.Plan:
        with database.reading(self._engine) as session:
            return records.find_plan(session, study, stage, window)

    def _say(self, name: str, message: str) -> None:
        try:
            with database.writing(self._engine) as session:
                records.say(session, name, message)
        except Exception as error:  # noqa: BLE001 - the database itself may be what fails; the log has it
            self._log.error("message not kept", study=name, exc_info=error)

    def _advance(self) -> None:
        worked = False
        while not self._stopped.is_set():
            self._something.clear()
            began = time.monotonic()
            try:
                changed = self.turn()
            except Exception as error:  # noqa: BLE001 - the loop outlives a database that is away
                self._log.error("turn failed", exc_info=error)
                changed = False
            if changed:
                worked = True
                continue
            if worked:  # tables of a hundred megabytes were added
                give_back()
                worked = False
            self._stopped.wait(min(IDLE_S, (time.monotonic() - began) * (1 / SHARE - 1)))
            self._something.wait(IDLE_S)

    def _watch(self) -> None:
        tidied = self._board.offers
        while not self._stopped.wait(IDLE_S):
            try:
                self._board.refresh()
                if (offers := self._board.offers) != tidied:
                    self._uploads.tidy()  # of plans that another process closed, halves of uploads may lie here
                    tidied = offers
            except Exception as error:  # noqa: BLE001 - the loop outlives a database that is away
                self._log.error("board not refreshed", exc_info=error)


def _ids(plan: tables.Plan) -> dict[str, str | int]:
    return {"study": plan.study, "stage": plan.stage, "window": plan.window, "plan": plan.fingerprint}


def _tallies(plan: tables.Plan) -> int:
    """Count the tallies in a plan's merge: as many times its noise is in it."""
    return max(1, len(plan.sites_expected or []))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, CairnError) else f"{type(error).__name__}; the aggregator's log says more"
