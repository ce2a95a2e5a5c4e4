"""The audit log: one line of JSON for everything that left this site, chained by SHA-256 and never rewritten.

Each line holds the SHA-256 of the line before it (64 zeros in the first), so that a line that was changed, removed or
slipped in later breaks the chain at its place. A line is on the disk before the bytes that it tells of leave.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

FIRST = "0" * 64
Event = Literal["answer", "tally", "acknowledged", "report", "update", "masking"]


@dataclass(frozen=True)
class Departure:
    """Something that left, or is about to.

    event    answer: the site takes part in a plan or not · tally: its bytes are about to be sent · acknowledged: the
             aggregator has all of it · report: numbers of files and pixels done, and kinds of problems; one line for
             all reports of a plan with the same problems, with the first one's size and digest · update: a model update
             is about to be handed to Flower · masking: a message of a masked sum, which holds nothing of the counts
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
    """The file, held open by the one service of a site.

    A line that a crash cut short is removed when the file is opened: what it was to tell had not left yet.
    Raises OSError on a full disk, and then the file is as it was.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        self._file.seek(0)
        whole, torn, last = _split(self._file.read())
        if torn:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        self._size = whole
        self._last = last
        self.path = path

    def append(self, departure: Departure) -> Line:
        """Write one line and flush it to the disk."""
        with self._lock:
            line = Line(**asdict(departure), time=self._clock().isoformat(timespec="milliseconds"), previous=self._last)
            text = json.dumps(asdict(line), ensure_ascii=False, separators=(",", ":")).encode()
            try:
                written = self._file.write(text + b"\n")
                if written != len(text) + 1:
                    raise OSError(28, "No space left on device")  # noqa: TRY301 - a short write is a full disk
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(text) + 1
            self._last = hashlib.sha256(text).hexdigest()
            return line

    def append_once(self, departure: Departure) -> None:
        """Write a line unless one with the same event, plan, digest and words is there, from before a restart."""
        key = (departure.event, departure.plan, departure.digest, departure.what)
        if all((line.event, line.plan, line.digest, line.what) != key for line in read(self.path)):
            self.append(departure)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read(path: Path) -> Iterator[Line]:
    """Read the whole lines of a log, oldest first; a last line that is being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield Line(**json.loads(raw))


def first_broken(path: Path) -> int | None:
    """Check the chain and return the number of the first line that does not follow from the one before, from 1.

    A torn last line is not looked at. None: the log is whole.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    previous = FIRST
    for number, raw in enumerate(lines, 1):
        if _previous(raw) != previous:
            return number
        previous = hashlib.sha256(raw).hexdigest()
    return None


def _previous(raw: bytes) -> str | None:
    try:
        value = json.loads(raw)["previous"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _split(content: bytes) -> tuple[int, bool, str]:
    """Find where whole lines end, whether a torn one follows, and the SHA-256 of the last whole line."""
    whole = content.rfind(b"\n") + 1
    if whole == 0:
        return 0, bool(content), FIRST
    start = content.rfind(b"\n", 0, whole - 1) + 1
    return whole, whole < len(content), hashlib.sha256(content[start : whole - 1]).hexdigest()
