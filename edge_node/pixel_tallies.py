"""Tallies of pixels: the open plans over images, counted one after another and sealed."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from cairn.errors import CairnError, IdentityError, PolicyError, StorageFull
from cairn.kernels import best
from cairn.plan import Plan, RunStage
from cairn.tracing import Traces
from edge_node import worker
from edge_node.approval import Offer, Offers
from edge_node.outbox import FULL, Outbox
from edge_node.privacy.ledger import Ledger
from edge_node.privacy.noised import noised
from edge_node.scale.choice import chosen
from edge_node.settings import SiteSettings
from edge_node.status import Board, Log, Problem


class PixelTallies:
    """Counts what is on offer. `run` is its life.

    report   tells the aggregator how far the site is
    sealed   called when there is something to send
    changed  called when something has become of a plan
    by       counts, where the settings name no workers
    """

    def __init__(
        self,
        settings: SiteSettings,
        *,
        offers: Offers,
        outbox: Outbox,
        board: Board,
        report: Callable[[], None],
        sealed: Callable[[], None],
        changed: Callable[[], None],
        log: Log,
        by: worker.Counting,
        traces: Traces | None = None,
    ) -> None:
        self._settings = settings
        self._offers = offers
        self._outbox = outbox
        self._board = board
        self._report = report
        self._sealed = sealed
        self._changed = changed
        self._log = log
        self._traces = traces or Traces()
        self._by = by
        self._woken = threading.Event()

    def wake(self) -> None:
        """Look again: a plan has come, gone or failed on its way, or the service stops."""
        self._woken.set()

    def run(self, halt: threading.Event) -> None:
        """Work until `halt` is set. Raises IdentityError when the site is not admitted any more."""
        if self._settings.backend == "auto" and (warning := best()[1]):
            self._log.warning("no GPU", because=warning)
        while not halt.is_set():
            offer = next((offer for offer in self._offers.listed() if self._is_next(offer)), None)
            if offer is None or not self._work(offer, halt):
                self._woken.wait(self._settings.rescan_seconds)
                self._woken.clear()
                self._offers.reconsider()
                self._changed()

    def _is_next(self, offer: Offer) -> bool:
        wanted = offer.reason is None and offer.plan is not None
        return (
            wanted
            and not isinstance(offer.plan and offer.plan.stage, RunStage)
            and not self._outbox.find(offer.fingerprint)
        )

    def _work(self, offer: Offer, halt: threading.Event) -> bool:
        """Count one plan and seal the tally; False when it is to be tried again later."""
        plan = offer.plan
        assert plan is not None  # an offer without a plan is refused
        of, ids = offer.fingerprint, _ids(offer)
        self._log.info("stage begins", **ids)
        try:
            ledger = Ledger(self._settings.state_dir, self._settings.privacy) if plan.privacy is not None else None
            with self._traces.span("count", of, **ids):
                job = worker.Job(
                    plan,
                    of,
                    self._settings,
                    None,
                    self._board,
                    cancelled=lambda: halt.is_set() or not self._offers.wanted(of),
                    seed=ledger.sampling_seed(of) if ledger else b"",
                )
                with chosen(job, self._settings.scale) as (by, _):
                    counted = worker.count(job, by or self._by)
            self._report()  # so that the aggregator knows the size of the images when the tally arrives
            if ledger is not None:
                counted = noised(plan, counted, ledger.spend(plan, of, counted.tables, datetime.now(UTC)))
            self._outbox.seal(plan, counted)
        except worker.GivenUp:
            self._log.info("stage given up", **ids, closed=not halt.is_set())
            return True
        except (worker.NothingCountable, PolicyError) as error:
            self._offers.refuse(of, str(error))
            return True
        except IdentityError:
            raise
        except (CairnError, OSError) as error:
            self._later(offer, plan, error)
            return False
        finally:
            self._board.work(None)
            self._changed()
        self._board.problems("work", [])
        self._log.info("tally sealed", **ids)
        self._sealed()
        return True

    def _later(self, offer: Offer, plan: Plan, error: CairnError | OSError) -> None:
        what = f"{plan.study}, {plan.stage.stage}"
        if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in FULL):
            kind = "the disk is full"
            sentence = f"{what} waits for room on the disk; nothing was half-written, it is counted again when there is"
        else:
            kind = "a stage could not be worked"
            sentence = f"{what} could not be worked, it is tried again: {error}"
        self._board.problems("work", [Problem(kind, sentence)])
        self._log.warning("stage put off", **_ids(offer), kind=type(error).__name__)


def _ids(offer: Offer) -> dict[str, str | int]:
    plan = offer.plan
    assert plan is not None  # an offer without a plan is refused
    return {"study": plan.study, "stage": plan.stage.stage, "window": plan.window, "plan": offer.fingerprint.hex()}
