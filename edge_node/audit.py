"""The audit log: one line of JSON for everything that left this site and for all that people decided about it.

The lines are chained (`cairn.chain`) and never rewritten. A line is on the disk before the bytes that it tells of
leave, and before the decision that it tells of takes effect.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from cairn import chain

Event = Literal["answer", "tally", "acknowledged", "report", "update", "masking", "decision"]


@dataclass(frozen=True)
class Departure:
    """Something that left, or is about to; or that a person decided.

    event    answer: the site takes part in a plan or not · tally: its bytes are about to be sent · acknowledged: the
             aggregator has all of it · report: numbers of files and pixels done, and kinds of problems; one line for
             all reports of a plan with the same problems, with the first one's size and digest · update: a model update
             is about to be handed to Flower · masking: a message of a masked sum, which holds nothing of the counts ·
             decision: a person approved or refused a plan, or took that back; nothing left
    what     one sentence or word for a person
    size     bytes
    digest   SHA-256 of what left, hexadecimal; empty for an answer
    plan     the plan's fingerprint, hexadecimal
    """

    event: Event
    what: str
    study: str
    stage: str
    window: int
    size: int
    digest: str
    plan: str


@dataclass(frozen=True)
class Line(Departure):
    """A departure as it stands in the log."""

    time: str
    previous: str


class AuditLog:
    """The file, held open by the one service of a site; a command may add a line meanwhile.

    A line that a crash cut short is removed when the file is opened: what it was to tell had not left yet.
    Raises OSError on a full disk, and then the file is as it was.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "ab+", buffering=0)
        self._size, self._last = -1, chain.FIRST
        with self._alone():
            pass
        self.path = path

    def append(self, departure: Departure) -> Line:
        """Write one line and flush it to the disk."""
        with self._alone():
            time = self._clock().isoformat(timespec="milliseconds")
            line = Line(**asdict(departure), time=time, previous=self._last)
            text = chain.write_line({**asdict(departure), "time": time}, self._last)
            try:
                written = self._file.write(text + b"\n")
                if written != len(text) + 1:
                    raise OSError(28, "No space left on device")  # noqa: TRY301 - a short write is a full disk
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(text) + 1
            self._last = chain.digest(text)
            return line

    def append_once(self, departure: Departure) -> None:
        """Write a line unless one with the same event, plan, digest and words is there, from before a restart."""
        key = (departure.event, departure.plan, departure.digest, departure.what)
        if all((line.event, line.plan, line.digest, line.what) != key for line in read(self.path)):
            self.append(departure)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only writer, of this process and of others, and know where the log ends now."""
        with self._lock:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)
            try:
                if os.fstat(self._file.fileno()).st_size != self._size:
                    self._file.seek(0)
                    self._size, torn, self._last = _split(self._file.read())
                    if torn:
                        self._file.truncate(self._size)
                        os.fsync(self._file.fileno())
                yield
            finally:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)


def read(path: Path) -> Iterator[Line]:
    """Read the whole lines of a log, oldest first; a last line that is being written is left out.

    A line that the disk has damaged is passed over: work goes on, and `verify` tells of it.
    """
    for raw in lines(path):
        try:
            yield Line(**json.loads(raw))
        except (ValueError, TypeError, RecursionError):
            continue


def verify(path: Path, known: str = "") -> chain.Verdict:
    """Check the chain of a log; a torn last line is not looked at. `known` as in `chain.verify`."""
    found = chain.verify(lines(path), known)
    return replace(found, broken=1) if found.before else found  # a site's log was chained from its first version on


def first_broken(path: Path) -> int | None:
    """Return the number of the first line that does not follow from the one before, from 1; None: the log is whole."""
    return verify(path).broken


def lines(path: Path) -> Iterator[bytes]:
    """Read the whole lines of a log as they are, without their ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield raw[:-1]


def _split(content: bytes) -> tuple[int, bool, str]:
    """Find where whole lines end, whether a torn one follows, and the SHA-256 of the last whole line."""
    whole = content.rfind(b"\n") + 1
    if whole == 0:
        return 0, bool(content), chain.FIRST
    start = content.rfind(b"\n", 0, whole - 1) + 1
    return whole, whole < len(content), chain.digest(content[start : whole - 1])
