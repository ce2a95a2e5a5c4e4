"""Masked tallies: follows the sessions of masked plans and takes this site's sealed tallies through them.

Outbox "masked" → Steps.answer, again and again → the plan closes → Outbox "sent", or "parked" when left out
"""

import hashlib
import random
import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta

import grpc

from cairn.errors import CairnError, IdentityError, MaskingError, Unreachable
from cairn.masking.canonical import decode, digest
from cairn.masking.messages import Session
from cairn.plan import Plan
from cairn.rpc import errors_from_wire
from cairn.v1 import masking_pb2, masking_pb2_grpc
from edge_node.approval import Offers
from edge_node.audit import AuditLog, Departure
from edge_node.door import Door, Shut
from edge_node.masking.memories import Memories
from edge_node.masking.steps import Call, Steps, Who
from edge_node.outbox import Outbox, Sealed
from edge_node.status import Board, Log, Problem
from edge_node.uplink import Pace, Uplink, backoff

CALL_S = 60.0
FOLLOW = timedelta(hours=1)  # a stream is opened anew after it
WHAT: dict[Call, str] = {
    "Advertise": "public keys for a masked sum",
    "Deal": "shares of its masks' secrets, each sealed for one site",
    "Vote": "a vote on who is in a masked sum",
    "Reveal": "shares of masks, for the sum to be read",
}


class MaskedTallies:
    """Takes sealed tallies of masked plans to their sums. `run` is its life.

    channel  gives the channel to the aggregator; asked anew for every call
    changed  called when something has become of a plan
    """

    def __init__(
        self,
        who: Who,
        memories: Memories,
        *,
        channel: Callable[[], grpc.Channel],
        uplink: Uplink,
        offers: Offers,
        outbox: Outbox,
        board: Board,
        audit_log: AuditLog,
        changed: Callable[[], None],
        now: Callable[[], datetime],
        log: Log,
        door: Door | None = None,
    ) -> None:
        self._door = door or Door.wide(audit_log)
        self._channel, self._offers, self._outbox, self._board = channel, offers, outbox, board
        self._memories, self._uplink, self._changed, self._log = memories, uplink, changed, log
        self._steps = Steps(who, memories, self._send, self._send_words, lambda: outbox.listed("parked"), now)
        self._woken, self._reconnected = threading.Event(), threading.Event()
        self._end_stream: Callable[[], object] | None = None
        self._pace, self._failures = Pace(longest=timedelta(seconds=10)), 0
        self._rng = random.Random()  # noqa: S311 - spreads attempts in time, keeps no secret

    def wake(self, *, reconnected: bool = False) -> None:
        """Look again: a tally was sealed, a plan has come or gone, the aggregator is back, or the service stops."""
        if reconnected:
            self._reconnected.set()
        self._woken.set()
        if (end := self._end_stream) is not None:
            end()

    def run(self, halt: threading.Event, rescan_s: float) -> None:
        """Take part until `halt` is set. Raises IdentityError when the site is not admitted any more."""
        while not halt.is_set():
            self._woken.clear()
            if self._reconnected.is_set():
                self._reconnected.clear()
                self._steps.forget()
            wait = rescan_s
            try:
                self._settle()
                if self._outbox.listed("masked"):
                    self._follow(halt)
                    wait = 0.0
            except IdentityError:
                raise
            except (MaskingError, OSError) as error:
                self._trouble(error)
                wait = self._longer()
            except CairnError as error:
                if self._woken.is_set():  # the stream was ended to look anew
                    continue
                self._log.warning("masked sums put off", kind=type(error).__name__)
                wait = self._longer()
            if wait and not halt.is_set():
                self._woken.wait(wait)

    def _follow(self, halt: threading.Event) -> None:
        """Answer what the aggregator shows, until nothing waits any more, or somebody calls for another look."""
        with errors_from_wire():
            stub = masking_pb2_grpc.MaskingStub(self._channel())
            stream = stub.Follow(masking_pb2.FollowRequest(), timeout=FOLLOW.total_seconds())
            self._end_stream = stream.cancel
            try:
                for response in stream:
                    self._answer(response)
                    self._failures = 0
                    self._settle()
                    if halt.is_set() or self._woken.is_set() or not self._outbox.listed("masked"):
                        return
            finally:
                self._end_stream = None
                stream.cancel()  # type: ignore[no-untyped-call]
        raise Unreachable("the aggregator ended the stream of masked sums, as it does when it stops")

    def _answer(self, response: masking_pb2.FollowResponse) -> None:
        sessions: dict[bytes, list[tuple[int, masking_pb2.MaskingSession]]] = defaultdict(list)
        for seen in response.sessions:
            session = decode(Session, seen.session)
            sessions[session.fingerprint].append((session.attempt, seen))
        for ended in (found for of, found in sessions.items() if self._offers.known and not self._offers.open(of)):
            for _, seen in ended:
                self._steps.look_back(seen)
        plans = {offer.fingerprint: offer.plan for offer in self._offers.listed() if offer.reason is None}
        for sealed in self._outbox.listed("masked"):
            plan = plans.get(sealed.fingerprint)
            for _, seen in sorted(sessions[sealed.fingerprint], key=lambda one: one[0]):
                if plan is not None:
                    self._steps.answer(sealed, plan, seen)
        self._board.problems("masking", [])

    def _settle(self) -> None:
        """Put away what is not asked for any more: summed, or closed without this site; and take out what is again."""
        for sealed in self._outbox.listed("parked"):
            if self._offers.masked(sealed.fingerprint):
                self._outbox.move(sealed, "masked")
        for sealed in self._outbox.listed("masked"):
            if not self._offers.known or self._offers.open(sealed.fingerprint):
                continue
            summed = self._steps.summed(sealed.fingerprint)
            self._outbox.move(sealed, "sent" if summed else "parked")
            self._memories.tidy(sealed.fingerprint)
            for late in self._outbox.listed("parked") if summed else ():
                if self._steps.summed(late.fingerprint):
                    self._outbox.move(late, "sent")
            self._log.info("masked sum ended", **sealed.ids, part=summed)
            self._changed()

    def _send(self, call: Call, session: Session, body: bytes, plan: Plan) -> None:
        _let_out(
            self._door.leave(
                Departure(
                    event="masking",
                    what=WHAT[call],
                    study=plan.study,
                    stage=plan.stage.stage,
                    window=plan.window,
                    size=len(body),
                    digest=hashlib.sha256(body).hexdigest(),
                    plan=session.fingerprint.hex(),
                )
            )
        )
        stub, name = masking_pb2_grpc.MaskingStub(self._channel()), digest(session)
        with errors_from_wire():
            match call:
                case "Advertise":
                    stub.Advertise(masking_pb2.AdvertiseRequest(session=name, body=body), timeout=CALL_S)
                case "Deal":
                    stub.Deal(masking_pb2.DealRequest(session=name, body=body), timeout=CALL_S)
                case "Vote":
                    stub.Vote(masking_pb2.VoteRequest(session=name, body=body), timeout=CALL_S)
                case "Reveal":
                    stub.Reveal(masking_pb2.RevealRequest(session=name, body=body), timeout=CALL_S)

    def _send_words(self, words: Sealed, receipt: bytes) -> bool:
        outcome = self._uplink.send_words(words, receipt)
        if isinstance(outcome, Shut):
            _let_out(outcome)
        return outcome == "sent"

    def _trouble(self, error: Exception) -> None:
        self._board.problems("masking", [Problem("a masked sum cannot go on", f"{error}; it is looked at again")])
        self._log.warning("masked sum put off", kind=type(error).__name__)

    def _longer(self) -> float:
        self._failures += 1
        return backoff(self._failures, self._pace, self._rng)


def _let_out(shut: Shut | None) -> None:
    """Raise MaskingError when the site's own policy keeps a message back; the sum goes on from there, or without it."""
    if shut is not None:
        raise MaskingError(shut.sentence)
