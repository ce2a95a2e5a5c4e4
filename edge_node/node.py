"""The service of a site: takes in plans, works them off one after another, keeps everything going until it is stopped.

    Connection.watch → Node.offered → Offers.take → Node.work_on → worker.count → Outbox.seal → Uplink.deliver

Four threads: one watches, one counts, one sends, one reports; they share the board, the outbox and two events. What is
on the disk (windows, outbox, audit log) is all that a restart needs.
"""

import errno
import fcntl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cairn import kernels
from cairn.errors import CairnError, ConfigError, IdentityError, PlanNotApproved, StorageFull, WindowClosed
from cairn.plan import Plan
from edge_node import local_service, worker
from edge_node.approval import Offer, Offers, Reason, approve
from edge_node.audit import AuditLog, first_broken
from edge_node.connection import Connection, Reports, read_enrolled
from edge_node.outbox import Outbox
from edge_node.page import app as page
from edge_node.settings import SiteSettings
from edge_node.status import Board, Log, PlanNote, PlanState, Problem
from edge_node.uplink import Pace, Uplink

FULL = {errno.ENOSPC, errno.EDQUOT}
PATIENCE_S = 8.0  # for the threads to end after the site was asked to stop


class Node:
    """A running site. `run` is its life.

    stop  ends it; set from outside
    """

    def __init__(self, settings: SiteSettings, stop: threading.Event, log: Log) -> None:
        self._settings = settings
        self._stop = stop
        self._halt = threading.Event()  # no work any more: the site stops, or is not admitted
        self._log = log
        self._wake_worker, self._wake_uplink = threading.Event(), threading.Event()
        self._reconnected = threading.Event()
        self._died: list[BaseException] = []
        state = settings.state_dir
        self._enrolled = read_enrolled(settings.identity_folder)
        self._board = Board(state / "problems.json")
        self._outbox = Outbox(state / "outbox")
        self._audit = AuditLog(state / "audit.jsonl", lambda: datetime.now(UTC))
        self._connection = Connection(
            self._enrolled.address, settings.identity_folder, stop=self._halt, board=self._board, log=log
        )
        self._offers = Offers(self._judge, self._connection.answer, self._audit, log)
        self._reports = Reports(self._connection.report, self._board, self._audit)
        self._uplink = Uplink(
            channel=self._connection.channel,
            outbox=self._outbox,
            audit_log=self._audit,
            stop=self._halt,
            sent=self._board.sent,
            trouble=lambda sentence: self._board.problems("uplink", [Problem("a tally could not be sent", sentence)]),
            log=log,
            pace=Pace(),
        )

    def run(self) -> None:
        """Serve until `stop` is set. Raises ConfigError at the start, or what a thread of the service died of."""
        settings, who = self._settings, self._enrolled
        self._check_audit()
        with ExitStack() as stack:
            site = page.Site(
                name=who.site,
                federation=who.federation,
                aggregator=who.address,
                snapshot=self._board.snapshot,
                outbox=self._waiting,
                audit=self._audit.path,
                labels=settings.labels_folder,
            )
            page_address = stack.enter_context(page.serve(site, settings.local.page))
            edge = local_service.Edge(who.site, self._board.snapshot, self._waiting, f"http://{page_address}/")
            service, address = local_service.serve(edge, settings.local.listen)
            stack.callback(service.stop, None)
            local_service.announce(settings.state_dir, grpc=address, page=page_address)
            self._log.info("edge node runs", site=who.site, page=f"http://{page_address}/", grpc=address)
            lives: list[tuple[str, Callable[[], None]]] = [
                ("watch", lambda: self._connection.watch(self._offered)),
                ("work", self._work_on),
                ("uplink", self._send_on),
                ("reports", lambda: self._reports.run(self._halt)),
            ]
            threads = [
                threading.Thread(target=self._live, args=(life,), name=name, daemon=True) for name, life in lives
            ]
            for thread in threads:
                thread.start()
            self._stop.wait()
            self._end(threads)
        self._audit.close()
        if self._died:
            raise self._died[0]

    def _live(self, life: Callable[[], None]) -> None:
        """Live one thread's life; a site that is not admitted keeps its page, anything unforeseen ends the service."""
        try:
            life()
        except IdentityError as error:
            self._log.error("not admitted", kind=type(error).__name__)
            self._board.connection("refused", f"{error}")
            self._board.work(None)
            self._halt_all()
        except Exception as error:  # noqa: BLE001 - ends the service with this error, instead of half of it going on
            if not self._halt.is_set():
                self._log.error("the service fails", thread=threading.current_thread().name, exc_info=error)
                self._died.append(error)
                self._stop.set()

    def _halt_all(self) -> None:
        self._halt.set()
        self._uplink.hurry()
        self._wake_worker.set()
        self._wake_uplink.set()

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._log.info("edge node stops")
        self._halt_all()
        uplink = threads[2]
        uplink.join(PATIENCE_S / 2)  # a message under way gets the time to arrive
        self._connection.close()
        for thread in threads:
            thread.join(PATIENCE_S)

    def _offered(self, published: Sequence[bytes], first: bool) -> None:  # noqa: FBT001 - the connection's callback
        self._offers.take(published)
        if first:
            self._reconnected.set()
            self._uplink.hurry()
        self._note_plans()
        self._wake_worker.set()
        self._wake_uplink.set()

    def _judge(self, plan: Plan, of: bytes) -> Reason:
        allowed = self._settings.approval
        try:
            approve(plan, of, allowed.studies or (), allowed.fingerprints or ())
        except PlanNotApproved as error:
            return str(error)
        return worker.lacking(plan, self._settings.images)

    def _work_on(self) -> None:
        functions = kernels.load(self._settings.kernels)
        while not self._halt.is_set():
            wanted = [offer for offer in self._offers.listed() if offer.reason is None]
            offer = next((offer for offer in wanted if not self._outbox.find(offer.fingerprint)), None)
            if offer is None or not self._work(offer, functions):
                self._wake_worker.wait(self._settings.rescan_seconds)
                self._wake_worker.clear()
                self._offers.reconsider()
                self._note_plans()

    def _work(self, offer: Offer, functions: kernels.Kernels) -> bool:
        """Count one plan and seal the tally; False when it is to be tried again later."""
        plan = offer.plan
        assert plan is not None  # an offer without a plan is refused
        of, stage = offer.fingerprint, plan.stage.stage
        self._log.info("stage begins", study=plan.study, stage=stage, window=plan.window, plan=of.hex())
        try:
            counted = worker.count(
                worker.Job(
                    plan,
                    of,
                    self._settings,
                    functions,
                    self._board,
                    cancelled=lambda: self._halt.is_set() or not self._offers.open(of),
                )
            )
            self._reports.send()  # so that the aggregator knows the size of the images when the tally arrives
            self._outbox.seal(plan, counted)
        except worker.GivenUp:
            self._log.info("stage given up", study=plan.study, stage=stage, closed=not self._halt.is_set())
            return True
        except worker.NothingCountable as error:
            self._offers.refuse(of, str(error))
            return True
        except IdentityError:
            raise
        except (CairnError, OSError) as error:
            self._later(plan, error)
            return False
        finally:
            self._board.work(None)
            self._note_plans()
        self._board.problems("work", [])
        self._log.info("tally sealed", study=plan.study, stage=stage, window=plan.window)
        self._wake_uplink.set()
        return True

    def _later(self, plan: Plan, error: CairnError | OSError) -> None:
        what = f"{plan.study}, {plan.stage.stage}"
        if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in FULL):
            kind = "the disk is full"
            sentence = f"{what} waits for room on the disk; nothing was half-written, it is counted again when there is"
        else:
            kind = "a stage could not be worked"
            sentence = f"{what} could not be worked, it is tried again: {error}"
        self._board.problems("work", [Problem(kind, sentence)])
        self._log.warning("stage put off", study=plan.study, stage=plan.stage.stage, kind=type(error).__name__)

    def _send_on(self) -> None:
        while not self._halt.is_set():
            try:
                if self._reconnected.is_set():
                    self._check_sent()
                    self._reconnected.clear()
                for sealed in self._outbox.listed("pending"):
                    self._note_plans()
                    if self._uplink.deliver(sealed) == "sent":
                        self._board.problems("uplink", [])
                    self._wake_worker.set()
                self._note_plans()
            except OSError as error:
                full = "the disk is full" if error.errno in FULL else "the disk failed"
                sentence = f"{full}, so nothing is sent: what leaves must first stand in the audit log"
                self._board.problems("uplink", [Problem(full, sentence)])
            except IdentityError:
                raise
            except CairnError as error:
                self._log.warning("sending put off", kind=type(error).__name__)
            self._wake_uplink.wait(self._settings.rescan_seconds)
            self._wake_uplink.clear()

    def _check_sent(self) -> None:
        """Send again what the aggregator asks for anew, after it was restored from a backup; forget what is over."""
        for sealed in [*self._outbox.listed("sent"), *self._outbox.listed("parked")]:
            if self._offers.open(sealed.fingerprint):
                with suppress(WindowClosed):
                    if not self._uplink.complete(sealed):
                        self._outbox.move(sealed, "pending")
            elif sealed.path.parent.name == "sent":
                self._outbox.discard(sealed)

    def _note_plans(self) -> None:
        working = self._board.snapshot().work
        notes = []
        for offer in self._offers.listed():
            if offer.plan is None:
                continue
            found = self._outbox.find(offer.fingerprint)
            counting = working is not None and working.fingerprint == offer.fingerprint
            state: PlanState = (
                "refused" if offer.reason is not None else found[0] if found else "counting" if counting else "waiting"
            )
            plan = offer.plan
            notes.append(
                PlanNote(plan.study, plan.stage.stage, plan.window, offer.fingerprint, state, offer.reason or "")
            )
        self._board.plans(notes)

    def _waiting(self) -> int:
        return len(self._outbox.listed("pending"))

    def _check_audit(self) -> None:
        broken = first_broken(self._audit.path)
        sentence = (
            f"line {broken} of {self._audit.path.name} does not follow from the line before it: the audit log was "
            "changed; keep the file for whoever looks into it, and move it away to begin a new one"
        )
        self._board.problems("audit", [] if broken is None else [Problem("the audit log was changed", sentence)])


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Hold a state folder for one process. Raises ConfigError when another edge node has it."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another edge node runs with the state folder {state_dir}; stop it, or give this one its own"
            ) from error
        yield
