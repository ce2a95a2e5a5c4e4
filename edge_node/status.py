"""What the site knows about itself now: written by the workers, read by the page, the local service and the reports."""

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from cairn import logs
from cairn.files import write_atomically
from cairn.logs import Stream

Connection = Literal["connecting", "connected", "away", "refused"]
PlanState = Literal["refused", "waiting", "round", "counting", "pending", "masked", "sent", "parked"]
TrainingState = Literal["off", "impossible", "waiting", "starting", "running", "failing"]
Log = logs.Log


@dataclass(frozen=True)
class Problem:
    """Something that a person should see.

    kind    what the aggregator is told too: no file name, no value
    detail  the whole sentence, for the site alone
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Work:
    """The plan that is being worked on and how far it is.

    private  the aggregator is told shares of the work and no numbers, which would say how many units there are
    """

    study: str
    stage: str
    window: int
    fingerprint: bytes
    pixels_done: int = 0
    pixels_total: int = 0
    files_done: int = 0
    files_total: int = 0
    raw_bytes: int = 0
    private: bool = False

    def __str__(self) -> str:
        return f"{self.study}/{self.stage} window {self.window}"


@dataclass(frozen=True)
class PlanNote:
    """A plan that the federation offers, and what becomes of it here.

    state  round: it waits for what the trainer makes in that round
    """

    study: str
    stage: str
    window: int
    fingerprint: bytes
    state: PlanState
    reason: str = ""


@dataclass(frozen=True)
class RoundNote:
    """A round of a run, as this site's trainer tells of it.

    metrics  by name: loss, reward, validation/<task>/mean_mm, replay/unique_share …
    """

    run: str
    round: int
    busy: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingNote:
    """How it stands with the training.

    said    one sentence about the state
    now     the round of now, or the last one
    rounds  that this site has trained in the run of now, oldest first
    """

    state: TrainingState = "off"
    said: str = ""
    now: RoundNote | None = None
    rounds: tuple[RoundNote, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """All of it at one instant."""

    connection: Connection
    said: str
    work: Work | None
    plans: tuple[PlanNote, ...]
    problems: tuple[Problem, ...]
    bytes_sent: int
    training: TrainingNote = TrainingNote()


@dataclass
class Board:
    """The one place, safe to use from all threads. Problems survive a restart; the rest is known anew.

    path  JSON file of the problems; None keeps none
    """

    path: Path | None = None
    _connection: Connection = "connecting"
    _said: str = ""
    _work: Work | None = None
    _plans: tuple[PlanNote, ...] = ()
    _problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)
    _bytes_sent: int = 0
    _training: TrainingNote = TrainingNote()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            try:
                kept = json.loads(self.path.read_bytes())
                self._problems = {scope: tuple(Problem(**one) for one in each) for scope, each in kept.items()}
            except (ValueError, TypeError, AttributeError):
                self._problems = {}  # only a note for people; the next stage finds the problems again

    def snapshot(self) -> Snapshot:
        """Return all of it."""
        with self._lock:
            problems = tuple(dict.fromkeys(problem for scope in self._problems.values() for problem in scope))
            return Snapshot(
                self._connection, self._said, self._work, self._plans, problems, self._bytes_sent, self._training
            )

    def connection(self, state: Connection, said: str = "") -> None:
        """Say how it stands with the aggregator; once refused, it stays so until a restart."""
        with self._lock:
            if self._connection != "refused":
                self._connection, self._said = state, said

    def work(self, work: Work | None) -> None:
        """Say what is being worked on."""
        with self._lock:
            self._work = work

    def advance(self, pixels: int, files: int = 0) -> None:
        """Count pixels and files of the present work as done; a negative number takes them back."""
        with self._lock:
            if self._work:
                done = self._work.pixels_done + pixels
                self._work = replace(self._work, pixels_done=done, files_done=self._work.files_done + files)

    def pixels_done(self) -> int:
        """Return how many pixels of the present work are done."""
        with self._lock:
            return self._work.pixels_done if self._work else 0

    def plans(self, plans: Sequence[PlanNote]) -> None:
        """Say what is offered."""
        with self._lock:
            self._plans = tuple(plans)

    def sent(self, size: int) -> None:
        """Count bytes of tallies that went out since the start."""
        with self._lock:
            self._bytes_sent += size

    def training(self, state: TrainingState, said: str = "") -> None:
        """Say how it stands with the training."""
        with self._lock:
            self._training = replace(self._training, state=state, said=said)

    def rounds(self, now: RoundNote, rounds: Sequence[RoundNote]) -> None:
        """Say which round is trained, and which were."""
        with self._lock:
            self._training = replace(self._training, now=now, rounds=tuple(rounds))

    def problems(self, scope: str, problems: Iterable[Problem]) -> None:
        """Replace the problems of one scope (a study's images, the way out, the audit log); none clears it."""
        with self._lock:
            new = tuple(problems)
            if self._problems.get(scope, ()) == new:
                return
            self._problems.pop(scope, None)
            if new:
                self._problems[scope] = new
            if self.path is not None:
                kept = {scope: [asdict(one) for one in each] for scope, each in self._problems.items()}
                try:
                    with write_atomically(self.path) as file:
                        file.write(json.dumps(kept, ensure_ascii=False).encode())
                except OSError:
                    pass  # a full disk is itself among the problems, and is shown from memory


def for_aggregator(problems: Iterable[Problem]) -> list[str]:
    """Sum problems up as what may leave: each kind and how often, no file name."""
    kinds = Counter(problem.kind for problem in problems)
    return [f"{kind} ({number} ×)" if number > 1 else kind for kind, number in kinds.items()]


def make_log(stream: Stream) -> Log:
    """Make a site's logger; a library's message may quote a file's name, so what exceptions say is left out."""
    return logs.make_log(stream, quotes=False)
