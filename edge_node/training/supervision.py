"""Keeps the two processes of a site that trains: Flower's SuperNode and our trainer.

aggregator ──TLS, signed── SuperNode ──127.0.0.1── trainer ──stdin, stdout── this process ── page, audit log, replay
"""

import re
import threading
import time
from collections.abc import Callable

from cairn.children import Child, Command, Transcript, uncoloured
from cairn.errors import TrainingError
from cairn.flower import missing_packages
from edge_node.audit import AuditLog
from edge_node.door import Door
from edge_node.status import Board, Log, Problem
from edge_node.training.link import LinkWatch
from edge_node.training.surroundings import (
    Programs,
    Surroundings,
    free_port,
    is_free,
    not_installed,
)
from edge_node.training.trainer import Patience, Trainer

OFTEN = 4  # starts, each soon after the last, that a person should know of
TICK_S = 0.5
STARTING = "SuperNode and trainer are being started"
_LEVELS = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")


class Steadiness:
    """Whether a child was started several times in a row, none of them for long."""

    def __init__(self, steady_s: float) -> None:
        self._steady_s = steady_s
        self._starts = self._row = 0
        self._since = 0.0

    def often(self, starts: int) -> int:
        """Take the starts until now; return those in a row when they are many, else 0."""
        now = time.monotonic()
        if starts != self._starts:
            self._row += starts - self._starts
            self._starts, self._since = starts, now
        elif now - self._since > self._steady_s:
            self._row = 0
        return self._row if self._row >= OFTEN else 0


class Training:
    """The training of a site. `run` is its life.

    trainer  answers the page
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        board: Board,
        audit_log: AuditLog,
        replay: Callable[[], None],
        log: Log,
        programs: Programs,
        patience: Patience,
        door: Door | None = None,
    ) -> None:
        self._surroundings = surroundings
        self._board = board
        self._log = log
        self._programs = programs
        self._patience = patience
        self._superlink = ""
        self._moved = threading.Event()  # another SuperLink, another port, or the end
        self._transcript = Transcript(surroundings.folder / "supernode.log")
        self.trainer = Trainer(
            surroundings.folder,
            board=board,
            audit_log=audit_log,
            replay=replay,
            log=log,
            patience=patience,
            door=door,
        )

    def superlink(self, address: str) -> None:
        """Say where the aggregator's SuperLink is, host:port; empty when the federation does not train."""
        if address != self._superlink:
            self._superlink = address
            self._moved.set()

    def hurry(self) -> None:
        """End a wait: the service stops."""
        self._moved.set()

    def run(self, halt: threading.Event) -> None:
        """Keep both processes until `halt` is set; without a SuperLink or without the packages, neither."""
        if missing := missing_packages():
            sentence = not_installed(missing)
            self._board.training("impossible", sentence)
            self._board.problems("training", [Problem("packages for training are missing", sentence)])
            return
        if (barred := self._surroundings.not_allowed()) is not None:
            self._board.training("impossible", barred)
            self._board.problems("training", [Problem("this site's policy lets no trainer run", barred)])
            return
        self._surroundings.prepare()
        while not halt.is_set():
            self._moved.clear()
            self._board.problems("training", [])
            if halt.is_set():
                return
            if self._superlink:
                self._keep(self._superlink, free_port())
            else:
                self._board.training("waiting", "waits for the aggregator to say where its SuperLink is")
                self._moved.wait()

    def _keep(self, superlink: str, port: int) -> None:
        """Keep both processes until something has moved."""
        around, environment = self._surroundings, self._surroundings.environment()
        self._board.training("starting", STARTING)

        def supernode_command() -> Command:
            if not is_free(port):
                self._moved.set()
                raise TrainingError(f"port {port} is taken by another program; the SuperNode takes another")
            return Command((*self._programs.supernode, *around.supernode(superlink, port)), environment)

        supernode = Child("supernode", supernode_command, self._supernode_said, self._log)
        link = LinkWatch(superlink, around.ca, self._patience.link)
        link.start()
        supernode.start()
        self.trainer.start(lambda: Command((*self._programs.trainer, *around.trainer(port)), environment))
        key = around.key_stamp()
        steady = Steadiness(self._patience.steady), Steadiness(self._patience.steady)
        try:
            while not self._moved.wait(min(TICK_S, self._patience.ping)):
                if around.key_stamp() != key:
                    self._moved.set()  # a new key: both begin anew with it
                self.trainer.look_after()
                self._tell(link, supernode, steady[0].often(supernode.starts), steady[1].often(self.trainer.starts))
        finally:
            link.stop()
            supernode.ask()
            self.trainer.stop()
            supernode.stop(self._patience.grace)

    def _tell(self, link: LinkWatch, supernode: Child, supernode_often: int, trainer_often: int) -> None:
        problems = []
        if link.fault:
            problems.append(Problem("the SuperLink is not reached", link.fault))
        if supernode_often:
            sentence = (
                f"Flower's SuperNode has ended {supernode_often - 1} times in a row and is started again: the "
                "aggregator may not know this site's key yet; see training/supernode.log in state_dir"
            )
            problems.append(Problem("the SuperNode does not stay up", sentence))
        if trainer_often:
            sentence = (
                f"the trainer has ended {trainer_often - 1} times in a row and is started again; see "
                "training/trainer.log in state_dir"
            )
            problems.append(Problem("the trainer does not stay up", sentence))
        self._board.problems("training", problems)
        if problems:
            self._board.training("failing", problems[0].detail)
        elif supernode.running and self.trainer.running and self.trainer.ready:
            self._board.training("running", "is ready for rounds")
        else:
            self._board.training("starting", STARTING)

    def _supernode_said(self, line: str) -> None:
        self._transcript.write(line)
        if _LEVELS.search(line[:100]):
            # The SuperNode sees weights and numbers, no images and no names of files.
            self._log.warning("supernode", said=uncoloured(line)[:500])
