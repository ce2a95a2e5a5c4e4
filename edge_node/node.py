"""The service of a site: takes in plans, works them off one after another, keeps everything going until it is stopped.

    Connection.watch → Node._offered → Offers.take
      → PixelTallies.run → worker.count → Apart ─┐
      → ReplayTallies.run → tally_of ────────────┴→ Outbox.seal → Sending.run → Uplink.deliver
                                                                → MaskedTallies.run → Steps.answer → Uplink.send_words

Six threads, one each for watching, counting, sending, masked sums, reporting and people's decisions, and two more at a
site that trains; they share the board, the outbox and the offers. What is on the disk (windows, outbox, memories of
masked sums, decisions, audit log) is all that a restart needs.
"""

import fcntl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cairn.errors import ConfigError, IdentityError
from cairn.secrecy import keep_private
from cairn.tracing import open_traces
from edge_node import local_service
from edge_node.apart import Apart
from edge_node.approval import Offers, not_allowed, reason_against
from edge_node.audit import AuditLog, first_broken
from edge_node.connection import Connection, Reports, Wanted, read_enrolled, read_key
from edge_node.decisions import FILE as DECISIONS
from edge_node.door import Door
from edge_node.masking.memories import Memories
from edge_node.masking.steps import Who
from edge_node.masking.tallies import MaskedTallies
from edge_node.outbox import Outbox
from edge_node.page import app as page
from edge_node.pixel_tallies import PixelTallies
from edge_node.policy import against_updates
from edge_node.sending import Sending
from edge_node.settings import SiteSettings
from edge_node.status import Board, Log, PlanNote, PlanState, Problem
from edge_node.training.replay import ReplayTallies
from edge_node.training.supervision import Training
from edge_node.training.surroundings import PROGRAMS, Programs, Surroundings
from edge_node.training.trainer import PATIENCE, Patience
from edge_node.uplink import Pace, Uplink

LOOK_S = 1.0  # between two looks at what people decided
PATIENCE_S = 8.0  # for the threads to end after the site was asked to stop


class Node:
    """A running site. `run` is its life.

    stop      ends it; set from outside
    programs  the child processes of training
    """

    def __init__(
        self,
        settings: SiteSettings,
        stop: threading.Event,
        log: Log,
        programs: Programs = PROGRAMS,
        patience: Patience = PATIENCE,
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._halt = threading.Event()  # no work any more: the site stops, or is not admitted
        self._log = log
        self._died: list[BaseException] = []
        state, identity = settings.state_dir, settings.identity_folder
        self._enrolled = read_enrolled(identity)
        log = self._log = log.bind(site=self._enrolled.site)
        traces = self._traces = open_traces(settings.telemetry, "cairn-edge", self._enrolled.site, log)
        board = self._board = Board(state / "problems.json")
        outbox = self._outbox = Outbox(state / "outbox")
        self._audit = AuditLog(state / "audit.jsonl", lambda: datetime.now(UTC))
        self._connection = Connection(
            self._enrolled.address,
            identity,
            trains=settings.training is not None,
            stop=self._halt,
            board=board,
            log=log,
        )
        offers = self._offers = Offers(
            lambda plan, of: reason_against(plan, of, settings),
            self._connection.answer,
            self._audit,
            log,
            lambda plan, of: not_allowed(plan, of, settings),
        )
        door = Door(
            settings.policy,
            self._audit,
            state,
            lambda: datetime.now(UTC),
            updates=against_updates(settings, masked=False),
        )
        self._reports = Reports(self._connection.report, board, self._audit)
        uplink = Uplink(
            channel=self._connection.channel,
            outbox=outbox,
            audit_log=self._audit,
            stop=self._halt,
            sent=board.sent,
            trouble=lambda sentence: board.problems("uplink", [Problem("a tally could not be sent", sentence)]),
            log=log,
            pace=Pace(),
            door=door,
            traces=traces,
        )
        self._sending = Sending(
            uplink,
            offers=offers,
            outbox=outbox,
            board=board,
            gone=self._tally_gone,
            changed=self._note_plans,
            log=log,
        )
        self._masked = MaskedTallies(
            Who(
                self._enrolled.site,
                self._enrolled.federation,
                *read_key(identity),
                settings.masking.least,
                settings.masking.peers,
            ),
            Memories(state / "masking"),
            channel=self._connection.channel,
            uplink=uplink,
            offers=offers,
            outbox=outbox,
            board=board,
            audit_log=self._audit,
            changed=self._note_plans,
            now=lambda: datetime.now(UTC),
            log=log,
            door=door,
        )
        self._apart = Apart(settings, lambda why: log.warning("no GPU", because=why))
        self._pixels = PixelTallies(
            settings,
            offers=offers,
            outbox=outbox,
            board=board,
            report=self._reports.send,
            sealed=self._sealed,
            changed=self._note_plans,
            log=log,
            traces=traces,
            by=self._apart.count_files,
        )
        self._replay = ReplayTallies(settings, offers=offers, outbox=outbox, board=board, sealed=self._sealed, log=log)
        self._training = settings.training and Training(
            Surroundings(settings, settings.training),
            board=board,
            audit_log=self._audit,
            replay=self._replay.wake,
            log=log,
            programs=programs,
            patience=patience,
            door=door,
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
                trainer=self._training.trainer if self._training else None,
            )
            page_address = stack.enter_context(page.serve(site, settings.local.page))
            edge = local_service.Edge(who.site, self._board.snapshot, self._waiting, f"http://{page_address}/")
            service, address = local_service.serve(edge, settings.local.listen)
            stack.callback(service.stop, None)
            local_service.announce(settings.state_dir, grpc=address, page=page_address)
            self._log.info("edge node runs", site=who.site, page=f"http://{page_address}/", grpc=address)
            threads = [
                threading.Thread(target=self._live, args=(life,), name=name, daemon=True)
                for name, life in self._lives().items()
            ]
            for thread in threads:
                thread.start()
            self._stop.wait()
            self._end(threads)
        self._audit.close()
        if self._died:
            raise self._died[0]

    def _lives(self) -> dict[str, Callable[[], None]]:
        halt, rescan_s = self._halt, self._settings.rescan_seconds
        lives: dict[str, Callable[[], None]] = {
            "watch": lambda: self._connection.watch(self._offered),
            "pixels": lambda: self._pixels.run(halt),
            "uplink": lambda: self._sending.run(halt, rescan_s),
            "masking": lambda: self._masked.run(halt, rescan_s),
            "reports": lambda: self._reports.run(halt),
            "decisions": lambda: self._heed(halt),
        }
        if training := self._training:
            lives["replay"] = lambda: self._replay.run(halt)
            lives["training"] = lambda: training.run(halt)
        return lives

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

    def _heed(self, halt: threading.Event) -> None:
        """Follow what people decide, and new keys, within a second, until `halt` is set."""
        path = self._settings.state_dir / DECISIONS
        seen = _stamp(path)
        while not halt.wait(LOOK_S):
            self._connection.follow()
            if (now := _stamp(path)) != seen:
                seen = now
                self._offers.reconsider()
                self._note_plans()
                self._wake()

    def _halt_all(self) -> None:
        self._halt.set()
        self._sending.hurry()
        self._wake()
        if self._training:
            self._training.hurry()

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._log.info("edge node stops")
        self._halt_all()
        uplink = next(thread for thread in threads if thread.name == "uplink")
        uplink.join(PATIENCE_S / 2)  # a message under way gets the time to arrive
        self._connection.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        self._apart.end()
        self._traces.stop()

    def _offered(self, wanted: Wanted) -> None:
        self._offers.take(wanted.plans)
        if wanted.first:
            self._sending.hurry(reconnected=True)
            self._masked.wake(reconnected=True)
        self._note_plans()
        self._wake()
        if self._training:
            self._training.superlink(wanted.superlink)

    def _wake(self) -> None:
        """Let everybody look: plans have come or gone, or the service stops."""
        self._pixels.wake()
        self._replay.wake()
        self._sealed()

    def _sealed(self) -> None:
        """Let those look who take tallies to the aggregator."""
        self._sending.wake()
        self._masked.wake()

    def _tally_gone(self) -> None:
        self._pixels.wake()  # one that was damaged is counted again

    def _note_plans(self) -> None:
        working = self._board.snapshot().work
        notes = []
        for offer in self._offers.listed():
            if offer.plan is None:
                continue
            found = self._outbox.find(offer.fingerprint)
            counting = working is not None and working.fingerprint == offer.fingerprint
            state: PlanState = "waiting"
            if offer.reason is not None:
                state = "refused"
            elif found:
                state = found[0]
            elif counting:
                state = "counting"
            elif self._replay.waits_for_file(offer):
                state = "round"
            plan = offer.plan
            notes.append(
                PlanNote(plan.study, plan.stage.stage, plan.window, offer.fingerprint, state, offer.reason or "")
            )
        self._board.plans(notes)

    def _waiting(self) -> int:
        return len(self._outbox.listed("pending")) + len(self._outbox.listed("masked"))

    def _check_audit(self) -> None:
        broken = first_broken(self._audit.path)
        sentence = (
            f"line {broken} of {self._audit.path.name} does not follow from the line before it: the audit log was "
            "changed; keep the file for whoever looks into it, and move it away to begin a new one"
        )
        self._board.problems("audit", [] if broken is None else [Problem("the audit log was changed", sentence)])


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Hold a state folder for one process. Raises ConfigError when another edge node has it."""
    keep_private(state_dir)
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another edge node runs with the state folder {state_dir}; stop it, or give this one its own"
            ) from error
        yield
