"""The way out: sends sealed tallies to the aggregator until each is in its ledger, once.

    ask how much is committed → append from there, ≤ 1 MiB a message → finish with the SHA-256 of the whole

Whatever breaks, the next attempt asks again. Nothing is remembered here: the truth about an upload is what the
aggregator has committed, and the truth about a tally is the outbox folder that it lies in.
"""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import grpc
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_when_event_set

from cairn.errors import (
    CairnError,
    ChecksumMismatch,
    IdentityError,
    MaskingError,
    OffsetMismatch,
    PlanError,
    TooLarge,
    Unreachable,
    WindowClosed,
)
from cairn.rpc import errors_from_wire
from cairn.tracing import Traces
from cairn.v1 import tallies_pb2, tallies_pb2_grpc
from edge_node import audit
from edge_node.door import Door, Shut
from edge_node.outbox import Outbox, Sealed
from edge_node.status import Log

MESSAGE = 1 << 20
Outcome = Literal["sent", "parked", "damaged", "stopped"]


@dataclass(frozen=True)
class Pace:
    """How long to wait. A call that ends at its deadline loses nothing: the next goes on behind what arrived."""

    first: timedelta = timedelta(milliseconds=500)
    longest: timedelta = timedelta(seconds=30)
    query: timedelta = timedelta(seconds=20)
    upload: timedelta = timedelta(minutes=2)


def backoff(failures: int, pace: Pace, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: half to all of a doubling time that is bounded."""
    longest: float = min(pace.longest.total_seconds(), pace.first.total_seconds() * 2.0 ** min(failures - 1, 30))
    return longest * rng.uniform(0.5, 1.0)


@dataclass
class _Delivery:
    """One tally on its way: how far it is known to be, and failures since it last got further."""

    sealed: Sealed
    digest: bytes
    size: int
    receipt: bytes = b""  # of masked words
    committed: int = 0
    failures: int = 0
    damaged: bool = False

    def intact(self) -> bool:
        """Tell whether the file still is what it was."""
        return self.sealed.digest() == self.digest if self.receipt else self.sealed.intact()

    def reached(self, committed: int) -> None:
        if committed > self.committed:
            self.failures = 0
        self.committed = committed

    def may_pass(self, error: BaseException) -> bool:
        """Tell whether the failure is one that a later attempt can do without."""
        final = (WindowClosed, PlanError, TooLarge, MaskingError, IdentityError)
        return isinstance(error, CairnError) and not isinstance(error, final) and not self.damaged


class Uplink:
    """Sends tallies, one at a time.

    channel  gives the channel to the aggregator; asked anew for every attempt
    stop     ends the work between two messages; the rest is sent after a restart
    traces   take a span for every attempt
    door     asked before a tally begins to leave, and by its hours before every attempt; None: always open
    sent     called with the number of bytes of every message that goes out
    trouble  called with a sentence when an attempt failed or a tally was set aside
    """

    def __init__(
        self,
        *,
        channel: Callable[[], grpc.Channel],
        outbox: Outbox,
        audit_log: audit.AuditLog,
        stop: threading.Event,
        sent: Callable[[int], None],
        trouble: Callable[[str], None],
        log: Log,
        pace: Pace,
        door: Door | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._channel = channel
        self._outbox = outbox
        self._audit = audit_log
        self._door = door or Door.wide(audit_log)
        self._stop = stop
        self._sent = sent
        self._trouble = trouble
        self._log = log
        self._pace = pace
        self._traces = traces or Traces()
        self._woken = threading.Event()
        self._rng = random.Random()  # noqa: S311 - spreads attempts in time, keeps no secret

    def deliver(self, sealed: Sealed) -> Outcome | Shut:
        """Send one pending tally until it is in the ledger, is not wanted, the door shuts, or `stop` is set.

        Raises IdentityError when this site may not send (revoked, not enrolled).
        """
        delivery = _Delivery(sealed, sealed.digest(), sealed.path.stat().st_size)
        try:
            outcome = self._send(delivery)
        except (WindowClosed, PlanError, TooLarge) as error:
            self._outbox.move(sealed, "parked")
            self._trouble(f"the tally of {sealed.study}, {sealed.stage} is kept here and was not taken: {error}")
            return "parked"
        if outcome == "damaged":
            self._outbox.discard(sealed)
            self._trouble(f"the tally of {sealed.study}, {sealed.stage} was damaged on this disk; it is counted again")
        elif outcome == "sent":
            self._outbox.move(sealed, "sent")
        return outcome

    def send_words(self, words: Sealed, receipt: bytes) -> Outcome | Shut:
        """Send masked words with the receipt that this site signed for them; the file stays where it is.

        Raises IdentityError; WindowClosed, MaskingError when they came too late for their sum.
        """
        return self._send(_Delivery(words, words.digest(), words.path.stat().st_size, receipt))

    def _send(self, delivery: _Delivery) -> Outcome | Shut:
        """Send until all is in the ledger, or `stop` is set. Raises what no later attempt can do without."""
        sealed = delivery.sealed
        if (shut := self._door.leave(_departure("tally", delivery))) is not None:
            return shut
        try:
            for attempt in Retrying(
                retry=retry_if_exception(delivery.may_pass),
                stop=stop_when_event_set(self._stop),
                sleep=self._sleep,
                wait=lambda state: self._failed(state, delivery),
                reraise=True,
            ):
                span = self._traces.span("send", sealed.fingerprint, **sealed.ids)
                with attempt, span, errors_from_wire():
                    if (shut := self._door.closed()) is not None:
                        return shut
                    self._attempt(delivery)
        except (WindowClosed, PlanError, TooLarge, MaskingError, IdentityError):
            raise
        except CairnError:
            return "damaged" if delivery.damaged else "stopped"
        self._audit.append_once(_departure("acknowledged", delivery))
        self._log.info("tally acknowledged", size=delivery.size, **sealed.ids)
        return "sent"

    def hurry(self) -> None:
        """End a pause between two attempts: the aggregator is back, or the service stops."""
        self._woken.set()

    def complete(self, sealed: Sealed) -> bool:
        """Ask whether a tally is in the ledger. Raises CairnError."""
        with errors_from_wire():
            return self._query(sealed.fingerprint, sealed.digest()).complete

    def _query(self, fingerprint: bytes, digest: bytes) -> tallies_pb2.QueryUploadResponse:
        request = tallies_pb2.QueryUploadRequest(fingerprint=fingerprint, digest=digest)
        stub = tallies_pb2_grpc.TalliesStub(self._channel())
        return stub.QueryUpload(request, timeout=self._pace.query.total_seconds())

    def _attempt(self, delivery: _Delivery) -> None:
        held = self._query(delivery.sealed.fingerprint, delivery.digest)
        delivery.reached(held.committed_size)
        if held.complete:
            return
        try:
            self._append_rest(delivery)
        except WindowClosed:
            # Another of our own calls, given up here or cut off by a crash, may have finished it and so the stage.
            if not self._query(delivery.sealed.fingerprint, delivery.digest).complete:
                raise

    def _append_rest(self, delivery: _Delivery) -> None:
        try:
            self._append(delivery)
        except OffsetMismatch as error:
            # Another of our own calls, given up here, was still being taken in there: go on where it ended.
            if error.committed_size <= delivery.committed or error.committed_size > delivery.size:
                raise
            delivery.reached(error.committed_size)
            self._append(delivery)
        except ChecksumMismatch:
            # Hurt on the way: the aggregator has dropped it and all goes again. Hurt on this disk: it never will pass.
            delivery.damaged = not delivery.intact()
            raise

    def _append(self, delivery: _Delivery) -> None:
        stub = tallies_pb2_grpc.TalliesStub(self._channel())
        with errors_from_wire():
            answer = stub.Upload(self._messages(delivery), timeout=self._pace.upload.total_seconds())
        if answer.committed_size != delivery.size:
            raise Unreachable("the upload was broken off; it goes on where it ended")

    def _messages(self, delivery: _Delivery) -> Iterator[tallies_pb2.UploadRequest]:
        with delivery.sealed.path.open("rb") as file:
            offset = file.seek(delivery.committed)
            message = tallies_pb2.UploadRequest(fingerprint=delivery.sealed.fingerprint)
            while not self._stop.is_set():
                message.offset, message.data = offset, file.read(MESSAGE)
                offset += len(message.data)
                if offset >= delivery.size:
                    message.digest, message.receipt = delivery.digest, delivery.receipt
                self._sent(len(message.data))
                yield message
                if offset >= delivery.size:
                    return
                message = tallies_pb2.UploadRequest()

    def _sleep(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    def _failed(self, state: RetryCallState, delivery: _Delivery) -> float:
        delivery.failures += 1
        seconds = backoff(delivery.failures, self._pace, self._rng)
        error = state.outcome.exception() if state.outcome else None
        if not self._stop.is_set():
            sealed = delivery.sealed
            self._trouble(f"sending {sealed.study}, {sealed.stage} failed, trying again in {seconds:.0f} s: {error}")
        return seconds


def _departure(event: audit.Event, delivery: _Delivery) -> audit.Departure:
    sealed = delivery.sealed
    return audit.Departure(
        event=event,
        what=f"{'masked ' if delivery.receipt else ''}tally of {sealed.stage}",
        study=sealed.study,
        stage=sealed.stage,
        window=sealed.window,
        size=delivery.size,
        digest=delivery.digest.hex(),
        plan=sealed.fingerprint.hex(),
    )
