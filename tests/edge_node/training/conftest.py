"""Training with real child processes, of which one can be told to misbehave."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from edge_node.audit import AuditLog
from edge_node.settings import SiteSettings
from edge_node.status import Board, make_log
from edge_node.training.supervision import Training
from edge_node.training.surroundings import Programs, Surroundings
from edge_node.training.trainer import Patience

from ..conftest import wait_until, write_settings

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
TRAINING = '[training]\nruns = ["sella-*"]\nscenes = [{ kind = "generated" }]\nthreads = 1\n'
QUICK = Patience(ping=0.1, hung=20.0, grace=0.5, steady=60.0)


def programs(trainer: str = "good", supernode: str = "good") -> Programs:
    return Programs((*STAND_IN, supernode), (*STAND_IN, trainer))


@dataclass
class Site:
    """The training of a site by itself, with what it tells."""

    settings: SiteSettings
    audit_log: AuditLog
    board: Board = field(default_factory=Board)
    log: io.StringIO = field(default_factory=io.StringIO)
    replays: threading.Event = field(default_factory=threading.Event)

    def make(self, programs: Programs, patience: Patience) -> Training:
        assert self.settings.training is not None
        return Training(
            Surroundings(self.settings, self.settings.training),
            board=self.board,
            audit_log=self.audit_log,
            replay=self.replays.set,
            log=make_log(self.log),
            programs=programs,
            patience=patience,
        )

    @contextmanager
    def running(self, trainer: str = "good", supernode: str = "good", patience: Patience = QUICK) -> Iterator[Training]:
        training, halt = self.make(programs(trainer, supernode), patience), threading.Event()
        thread = threading.Thread(target=training.run, args=(halt,))
        thread.start()
        training.superlink("superlink.example:9092")
        try:
            yield training
        finally:
            halt.set()
            training.hurry()
            thread.join(30)
        assert not thread.is_alive()

    def will_say(self, *events: dict[str, object]) -> None:
        """Let the stand-in say this when it starts."""
        folder = self.settings.training_folder / "site"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "say").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")

    def state(self, wanted: str) -> Callable[[], bool]:
        return lambda: self.board.snapshot().training.state == wanted

    def wait_ready(self) -> None:
        wait_until(self.state("running"), "both processes")


@pytest.fixture
def site(tmp_path: Path, audit_log: AuditLog) -> Site:
    (tmp_path / "images").mkdir()
    return Site(write_settings(tmp_path, TRAINING), audit_log)


def processes(settings: SiteSettings) -> list[psutil.Process]:
    """Find the child processes of a site by the state folder in their arguments."""

    def ours(process: psutil.Process) -> bool:
        return any(str(settings.training_folder) in argument for argument in process.info["cmdline"] or ())

    return [process for process in psutil.process_iter(["cmdline"]) if ours(process)]
