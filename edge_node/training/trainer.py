"""The trainer process: kept running, asked on behalf of the page, and listened to.

What it says leads to: the board (rounds, problems), the audit log (a model update, before it leaves), the tally of its
replay keys.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from cairn.children import Child, Command, Transcript
from cairn.errors import CairnError
from edge_node.audit import AuditLog, Departure
from edge_node.door import Door
from edge_node.status import Board, Log, Problem
from edge_node.training.conversation import Conversation
from edge_node.training.messages import (
    Classifiers,
    Explained,
    News,
    Picture,
    Ready,
    ReplayThere,
    RoundTold,
    Scenes,
    Search,
    Trouble,
    Update,
)
from edge_node.training.rounds import Rounds
from edge_node.training.surroundings import for_log

LINE_BYTES = 32 << 20  # an image for the page comes on one line
ANSWER_S = 60.0  # the first question loads all images
SEARCH_S = 60.0
EXPLAIN_S = 180.0  # networks are built for the first, and a slide without smaller copies is read as a whole


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    ping    between two questions whether the trainer lives
    hung    without a word, until it is ended and started anew; importing torch from a slow disk takes a minute
    grace   to end in when asked, and again when told
    steady  after which a start is no longer one of several in a row
    link    between two questions whether the SuperLink is there
    """

    ping: float = 30.0
    hung: float = 180.0
    grace: float = 4.0
    steady: float = 60.0
    link: float = 30.0


PATIENCE = Patience()


class Trainer:
    """One trainer at a time, and the conversation with it.

    folder     for its transcript and the rounds it told of
    audit_log  gets a line of every model update before the trainer may hand it to Flower
    door       asked before; None: always open
    replay     called when the trainer has put something into the replay folder
    """

    def __init__(
        self,
        folder: Path,
        *,
        board: Board,
        audit_log: AuditLog,
        replay: Callable[[], None],
        log: Log,
        patience: Patience,
        door: Door | None = None,
    ) -> None:
        self._board = board
        self._door = door or Door.wide(audit_log)
        self._replay = replay
        self._log = log
        self._patience = patience
        self._rounds = Rounds(folder / "rounds.jsonl", board)
        self._transcript = Transcript(folder / "trainer.log")
        self._conversation = Conversation(self._write, self._told, self._not_understood)
        self._child: Child | None = None
        self._command: Callable[[], Command] | None = None
        self._earlier_starts = 0
        self._asked_at = self._heard_at = 0.0
        self.ready = False

    def start(self, command: Callable[[], Command]) -> None:
        """Start it, and again whenever it ends."""
        self._command = command
        self._board.problems("conversation", [])
        self._board.problems("trainer", [])
        child = Child("trainer", self._begin, self._said, self._log, self._heard, line_bytes=LINE_BYTES)
        self._child = child
        child.start()

    def stop(self) -> None:
        """End it; returns when it is gone."""
        if self._child:
            self._child.stop(self._patience.grace)
            self._earlier_starts += self._child.starts
        self._child, self.ready = None, False
        self._conversation.hang_up()

    @property
    def running(self) -> bool:
        """Tell whether the process is there."""
        return self._child is not None and self._child.running

    @property
    def starts(self) -> int:
        """Count how often it was started."""
        return self._earlier_starts + (self._child.starts if self._child else 0)

    def look_after(self) -> None:
        """Ask now and then whether it lives, and start it anew when it has been silent for too long."""
        now = time.monotonic()
        if not self.running:
            self._conversation.hang_up()
        elif now - self._heard_at > self._patience.hung:
            self._log.error("the trainer hangs", silent_s=round(now - self._heard_at))
            command = self._command
            self.stop()
            assert command is not None  # it was started
            self.start(command)
        elif now - self._asked_at > self._patience.ping:
            self._asked_at = now
            with suppress(CairnError):
                self._conversation.tell("ping", "0")

    def scenes(self) -> Scenes:
        """List the images and models at this site. Raises CairnError."""
        return self._conversation.ask(Scenes, "scenes", ANSWER_S)

    def picture(self, image: str, depth: int) -> Picture:
        """Get an image, of a volume one slice. Raises CairnError."""
        return self._conversation.ask(Picture, "image", ANSWER_S, image=image, slice=depth)

    def search(self, run: str | None, task: str, image: str, start: tuple[float, ...]) -> Search:
        """Let the agent search from a start, in pixels x, y (, z). Raises CairnError."""
        return self._conversation.ask(Search, "search", SEARCH_S, run=run, task=task, image=image, start=start)

    def classifiers(self, run: str | None, part: str) -> Classifiers:
        """List the models that classify, and a run's images with this part in their names. Raises CairnError."""
        return self._conversation.ask(Classifiers, "labelled", ANSWER_S, run=run, part=part)

    def explain(self, run: str, image: str) -> Explained:
        """Let a model say what a listed image shows, and why. Raises CairnError."""
        return self._conversation.ask(Explained, "explain", EXPLAIN_S, run=run, image=image)

    def _begin(self) -> Command:
        assert self._command is not None  # given to `start`
        self._conversation.hang_up()  # nobody gets an answer any more of the one before
        self._rounds.broken_off()
        self.ready, self._heard_at = False, time.monotonic()
        return self._command()

    def _write(self, line: str) -> bool:
        return self._child is not None and self._child.write(line)

    def _heard(self, line: str) -> None:
        self._heard_at = time.monotonic()
        self._conversation.heard(line)

    def _said(self, line: str) -> None:
        self._transcript.write(line)
        fields = for_log(line)
        if fields:
            self._log.info("trainer", **{f"trainer_{name}": value for name, value in fields.items()})

    def _told(self, news: News) -> None:
        match news:
            case Ready():
                self.ready = True
                self._board.problems("trainer", [])  # of one that could not start
            case ReplayThere():
                self._replay()
            case RoundTold():
                self._rounds.told(news)
            case Trouble():
                self._board.problems("trainer", [Problem(news.kind, sentence) for sentence in news.sentences])
            case Update():
                self._let_go(news)
            case _:
                assert_never(news)

    def _let_go(self, update: Update) -> None:
        """Write a model update into the audit log, then let the trainer hand it to Flower."""
        what = f"model update of {update.run}, round {update.round}"
        departure = Departure("update", what, update.run, "update", update.round, update.bytes, update.sha256, plan="")
        with suppress(CairnError):  # it has ended meanwhile
            try:
                shut = self._door.leave(departure)
            except OSError:
                sentence = "a model update is kept back: what leaves must first stand in the audit log"
                self._board.problems("update", [Problem("the audit log cannot be written", sentence)])
                self._conversation.tell("keep", update.id, sentence="the site's audit log cannot be written")
                return
            if shut is not None:
                self._board.problems("update", [Problem(shut.kind, f"{what} is kept back: {shut.sentence}")])
                self._conversation.tell("keep", update.id, sentence=shut.sentence)
                return
            self._board.problems("update", [])
            self._conversation.tell("send", update.id)

    def _not_understood(self) -> None:
        self._log.warning("line of the trainer not understood")
        sentence = "the trainer says what the edge node does not understand; install both of one version"
        self._board.problems("conversation", [Problem("the trainer is not understood", sentence)])
