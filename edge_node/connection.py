"""The one connection to the aggregator, always opened from here: watch what is wanted, answer, report."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_when_event_set

from cairn import __version__, enrolment
from cairn.errors import CairnError, IdentityError, NotEnrolled, Unreachable
from cairn.files import write_atomically
from cairn.rpc import certificate_identity, errors_from_wire, mtls_channel
from cairn.v1 import plans_pb2, plans_pb2_grpc
from edge_node.audit import AuditLog, Departure
from edge_node.status import Board, Log, Problem, Work, for_aggregator
from edge_node.uplink import Pace, backoff

WATCH = timedelta(hours=6)  # a stream is opened anew after it, which is also when the certificate is looked at
CALL_S = 20.0
PARTS = 100  # in which a private plan's progress is told
REPORT_S = 1.0  # at most one report in this time
REPORT_SHARE = 0.05  # of the time that may go by waiting for answers to reports
REPORT_LATEST_S = 30.0
AGGREGATOR = "aggregator.json"


@dataclass(frozen=True)
class Wanted:
    """What the federation wants now.

    plans      published bytes of all that are open
    superlink  host:port of Flower's SuperLink; empty when the federation does not train
    first      since the connection was opened
    """

    plans: Sequence[bytes]
    superlink: str
    first: bool


Offered = Callable[[Wanted], None]


@dataclass(frozen=True)
class Enrolled:
    """Who this site is by its certificate, until when, and where its aggregator is."""

    site: str
    federation: str
    address: str
    expires: datetime


def keep_address(identity: Path, address: str) -> None:
    """Keep the aggregator's address, host:port, beside the certificate."""
    with write_atomically(identity / AGGREGATOR) as file:
        file.write(json.dumps({"address": address}).encode())


def read_enrolled(identity: Path) -> Enrolled:
    """Read what enrolment left in a folder. Raises NotEnrolled."""
    try:
        address = json.loads((identity / AGGREGATOR).read_bytes())["address"]
        certificate = x509.load_pem_x509_certificate(enrolment.tls_files(identity).certificate.read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise NotEnrolled(
            "this site is not enrolled; run `cairn edge enrol --invitation FILE --config site.toml` first"
        ) from error
    who = certificate_identity(certificate)
    return Enrolled(who.name, who.federation, address, certificate.not_valid_after_utc)


def read_key(identity: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Read this site's private key, and the certificate of the federation's CA. Raises NotEnrolled."""
    files = enrolment.tls_files(identity)
    try:
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    except (OSError, ValueError) as error:
        raise NotEnrolled("this site's key or its federation's CA cannot be read; enrol again") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # enrolment makes no others
    return key, authority


def in_words(error: BaseException | None, address: str) -> str:
    """Say what keeps the site from its aggregator; a refused certificate is only known by how the call ends."""
    text = str(error)
    if "handshake failed" in text:
        return f"the machine at {address} does not show a certificate of this federation; ask its operator"
    if "failed to connect" in text and "Socket closed" in text:
        return (
            f"the aggregator at {address} hangs up on this site's certificate: it is over or of another federation; "
            "see `cairn edge check`, and enrol again"
        )
    return text


class Connection:
    """A site's channel to the aggregator, and the `Watch` stream that is held open on it.

    address   host:port of the aggregator
    identity  folder of key and certificate
    trains    the aggregator is to know the key of a SuperNode too
    stop      ends the watching
    """

    def __init__(
        self, address: str, identity: Path, *, trains: bool, stop: threading.Event, board: Board, log: Log
    ) -> None:
        self._address = address
        self._identity = identity
        self._trains = trains
        self._stop = stop
        self._board = board
        self._log = log
        self._pace = Pace(longest=timedelta(seconds=10))
        self._rng = random.Random()  # noqa: S311 - spreads attempts in time, keeps no secret
        self._failures = 0
        enrolment.settle(identity)
        self._shown = enrolment.tls_files(identity).certificate.read_bytes()
        self._channel = mtls_channel(address, enrolment.tls_files(identity))
        self._old: list[grpc.Channel] = []

    def channel(self) -> grpc.Channel:
        """Return the channel of now; after a renewed certificate it is another."""
        return self._channel

    def close(self) -> None:
        """Hang up; calls under way end."""
        for channel in (*self._old, self._channel):
            channel.close()

    def watch(self, offered: Offered) -> None:
        """Keep watching until `stop` is set, through restarts of the aggregator and of the network.

        offered  called with what is wanted, at once after connecting and at every change
        Raises IdentityError when this site is not admitted (any more).
        """
        for attempt in Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_when_event_set(self._stop),
            sleep=self._sleep,
            wait=self._lost,
            reraise=True,
        ):
            with attempt:
                if not self._stop.is_set():
                    self._watch_once(offered)

    def follow(self) -> None:
        """Show the certificate of now at all calls from now on, if it is another: `cairn edge rotate` made new keys."""
        if enrolment.tls_files(self._identity).certificate.read_bytes() != self._shown:
            self._anew()

    def answer(self, fingerprint: bytes, reason: str | None) -> None:
        """Say that the site takes part in a plan, or why not. Raises CairnError."""
        request = plans_pb2.AnswerRequest(fingerprint=fingerprint, accepted=reason is None, reason=reason or "")
        with errors_from_wire():
            plans_pb2_grpc.PlansStub(self._channel).Answer(request, timeout=CALL_S)

    def report(self, request: plans_pb2.ReportRequest) -> None:
        """Tell how far the site is. Raises CairnError."""
        with errors_from_wire():
            plans_pb2_grpc.PlansStub(self._channel).Report(request, timeout=CALL_S)

    def _watch_once(self, offered: Offered) -> None:
        self._renew()
        with errors_from_wire():
            stream = plans_pb2_grpc.PlansStub(self._channel).Watch(
                plans_pb2.WatchRequest(version=__version__), timeout=WATCH.total_seconds()
            )
            first = True
            for response in stream:
                self._failures = 0
                self._board.connection("connected")
                offered(Wanted([offer.plan for offer in response.offers], response.superlink_address, first))
                first = False
        raise Unreachable("the aggregator ended the stream, as it does when it stops")

    def _renew(self) -> None:
        """Have the certificate renewed when a third of its time is left, or the SuperNode's key is to be made known."""
        files = enrolment.tls_files(self._identity)
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        unknown = self._trains and not enrolment.supernode_known(self._identity)
        if end - datetime.now(UTC) > (end - begin) / 3 and not unknown:
            self._board.problems("certificate", [])  # somebody may have renewed it by hand
            return
        try:
            enrolment.renew(self._address, self._identity, trains=self._trains)
        except IdentityError:
            raise
        except CairnError as error:
            self._log.warning("certificate not renewed", kind=type(error).__name__, ends=end.isoformat())
            if end - datetime.now(UTC) < enrolment.ENDS_SOON:
                sentence = f"it ends on {end:%Y-%m-%d} and could not be renewed: {in_words(error, self._address)}"
                self._board.problems("certificate", [Problem("the certificate ends soon", sentence)])
            return
        self._board.problems("certificate", [])
        self._anew()

    def _anew(self) -> None:
        """Open a channel with the certificate of now, for all calls that begin from now on."""
        files = enrolment.tls_files(self._identity)
        self._old.append(self._channel)  # a call may be about to begin on it; it is closed at the end
        self._shown = files.certificate.read_bytes()
        self._channel = mtls_channel(self._address, files)
        self._log.info("certificate renewed")

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _lost(self, state: RetryCallState) -> float:
        self._failures += 1
        seconds = backoff(self._failures, self._pace, self._rng)
        error = state.outcome.exception() if state.outcome else None
        if not self._stop.is_set():
            sentence = in_words(error, self._address)
            self._board.connection("away", f"{sentence}; trying again in {max(1, round(seconds))} s")
            self._log.warning("not connected", kind=type(error).__name__, retry_in_seconds=round(seconds, 1))
        return seconds


class Reports:
    """Tells the aggregator how far the work is: numbers of files and pixels, kinds of problems, nothing else."""

    def __init__(self, send: Callable[[plans_pb2.ReportRequest], None], board: Board, audit_log: AuditLog) -> None:
        self._send = send
        self._board = board
        self._audit = audit_log
        self._last = plans_pb2.ReportRequest()
        self._lock = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Report what has changed, once in a second, and less often to an aggregator that is slow to answer.

        Ends when `stop` is set. Raises IdentityError.
        """
        pause = REPORT_S
        while not stop.wait(pause):
            began = time.monotonic()
            self.send()
            pause = report_pause(time.monotonic() - began)

    def send(self) -> None:
        """Report now if something has changed; when that fails, the next one tells as much. Raises IdentityError."""
        now = self._board.snapshot()
        request = plans_pb2.ReportRequest(problems=for_aggregator(now.problems))
        if now.work:
            request.fingerprint = now.work.fingerprint
            request.pixels_done, request.pixels_total = max(0, now.work.pixels_done), now.work.pixels_total
            request.files_done, request.files_total = now.work.files_done, now.work.files_total
            request.raw_bytes = now.work.raw_bytes
            if now.work.private:
                share = PARTS * request.pixels_done // max(1, request.pixels_total)
                request.pixels_done, request.pixels_total = share, PARTS
                request.files_done = request.files_total = request.raw_bytes = 0
        with self._lock:
            if request == self._last or now.connection != "connected":
                return
            try:
                self._note(request, now.work)
                self._send(request)
            except IdentityError:
                raise
            except (CairnError, OSError):
                return
            self._last = request

    def _note(self, request: plans_pb2.ReportRequest, work: Work | None) -> None:
        if request.problems == self._last.problems and request.fingerprint in {b"", self._last.fingerprint}:
            return
        data = request.SerializeToString()
        self._audit.append(
            Departure(
                event="report",
                what="numbers of files and pixels" + (f"; {'; '.join(request.problems)}" if request.problems else ""),
                study=work.study if work else "",
                stage=work.stage if work else "",
                window=work.window if work else 0,
                size=len(data),
                digest=hashlib.sha256(data).hexdigest(),
                plan=request.fingerprint.hex(),
            )
        )


def report_pause(took: float) -> float:
    """Choose the seconds until the next report by those that the last one took.

    Many sites that count at once would else report more than one aggregator takes (docs/BENCHMARKS.md).
    """
    return min(max(REPORT_S, took / REPORT_SHARE), REPORT_LATEST_S)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, CairnError) and not isinstance(error, IdentityError)
