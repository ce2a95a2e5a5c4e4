"""Sends what is sealed, oldest first, and again what the aggregator asks for anew."""

import threading
from collections.abc import Callable
from contextlib import suppress

from cairn.errors import CairnError, IdentityError, WindowClosed
from edge_node.approval import Offers
from edge_node.door import Shut
from edge_node.outbox import FULL, Outbox
from edge_node.status import Board, Log, Problem
from edge_node.uplink import Uplink


class Sending:
    """Empties the outbox by the uplink. `run` is its life.

    gone     called after each tally: sent, not wanted, or damaged
    changed  called when something has become of a plan
    """

    def __init__(
        self,
        uplink: Uplink,
        *,
        offers: Offers,
        outbox: Outbox,
        board: Board,
        gone: Callable[[], None],
        changed: Callable[[], None],
        log: Log,
    ) -> None:
        self._uplink = uplink
        self._offers = offers
        self._outbox = outbox
        self._board = board
        self._gone = gone
        self._changed = changed
        self._log = log
        self._woken = threading.Event()
        self._reconnected = threading.Event()
        # Fingerprints of parked tallies whose plans were not open when last looked at.
        self._unwanted: set[bytes] = set()

    def wake(self) -> None:
        """Look again: something was sealed."""
        self._woken.set()

    def hurry(self, *, reconnected: bool = False) -> None:
        """End a pause between two attempts: the aggregator is back, or the service stops."""
        if reconnected:
            self._reconnected.set()
        self._uplink.hurry()
        self._woken.set()

    def run(self, halt: threading.Event, rescan_s: float) -> None:
        """Send until `halt` is set. Raises IdentityError when the site is not admitted any more."""
        while not halt.is_set():
            try:
                if self._reconnected.is_set():
                    self._check_sent()
                    self._reconnected.clear()
                self._check_parked()
                shut = self._send_pending()
                self._board.problems("door", [Problem(one.kind, one.sentence) for one in shut])
                self._changed()
            except OSError as error:
                full = "the disk is full" if error.errno in FULL else "the disk failed"
                sentence = f"{full}, so nothing is sent: what leaves must first stand in the audit log"
                self._board.problems("uplink", [Problem(full, sentence)])
            except IdentityError:
                raise
            except CairnError as error:
                self._log.warning("sending put off", kind=type(error).__name__)
            self._woken.wait(rescan_s)
            self._woken.clear()

    def _send_pending(self) -> list[Shut]:
        """Send what is allowed out now; returns, for what is not, why."""
        kept: list[Shut] = []
        if not self._offers.known:
            return kept  # whether a plan is approved still can only be told when it is on offer
        for sealed in self._outbox.listed("pending"):
            if self._offers.barred(sealed.fingerprint):
                continue  # taken back after it was counted; it is on the page with the reason
            self._changed()
            outcome = self._uplink.deliver(sealed)
            if isinstance(outcome, Shut):
                if outcome.final:
                    self._offers.refuse(sealed.fingerprint, outcome.sentence)
                    self._outbox.move(sealed, "parked")
                kept.append(outcome)
                continue
            if outcome == "sent":
                self._board.problems("uplink", [])
            self._gone()
        return list(dict.fromkeys(kept))

    def _check_parked(self) -> None:
        """Take up what was not wanted when its plan is open again: a restored aggregator comes to it anew."""
        if not self._offers.known:
            return
        for sealed in self._outbox.listed("parked"):
            if not self._offers.open(sealed.fingerprint):
                self._unwanted.add(sealed.fingerprint)
            elif sealed.fingerprint in self._unwanted:
                self._unwanted.remove(sealed.fingerprint)
                self._outbox.move(sealed, "masked" if self._offers.masked(sealed.fingerprint) else "pending")

    def _check_sent(self) -> None:
        """Send again what the aggregator asks for anew, after it was restored from a backup; forget what is over."""
        for sealed in [*self._outbox.listed("sent"), *self._outbox.listed("parked")]:
            if self._offers.open(sealed.fingerprint):
                if self._offers.masked(sealed.fingerprint):
                    self._outbox.move(sealed, "masked")
                    continue
                with suppress(WindowClosed):
                    if not self._uplink.complete(sealed):
                        self._outbox.move(sealed, "pending")
            elif sealed.path.parent.name == "sent":
                self._outbox.discard(sealed)
