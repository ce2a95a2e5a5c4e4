"""A search's journal: one line of JSON an event, flushed to the disk before anything follows from it.

The journal is the whole state: a proposer is a function of the events in order, so a search that was killed reads them
again and goes on. A line that was cut off by a crash is of something that had not happened yet.
"""

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent_trainer.search.space import Strategy
from agent_trainer.search.spec import SearchSpec
from cairn.errors import ConfigError, TrainingError
from cairn.files import sync_folder

FORMAT: Final = 2  # 1 did not say what was trained
MAY_CHANGE: Final = frozenset({"jobs", "deadline", "attempts"})  # when a search goes on

State: TypeAlias = Literal["open", "finished", "failed", "lost"]


class Event(BaseModel):
    """Something that happened to a job.

    kind     launched; finished with a reward; failed: its training cannot be done; reissued: nobody answered, or its
             worker ended; lost: nobody answered at the last attempt
    units    of a launched job, the strategy in [0, 1]
    reward   of a finished one
    why      of the others, a sentence
    figures  what else a finished job told, such as the Dice of test images
    seconds  from the last start to the answer
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["launched", "finished", "failed", "reissued", "lost"]
    job: int = Field(ge=0)
    units: tuple[float, ...] | None = None
    reward: float | None = None
    why: str | None = None
    figures: dict[str, float] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Record:
    """A job as it stands.

    attempts  starts, one at least
    """

    job: int
    units: tuple[float, ...]
    strategy: Strategy
    state: State = "open"
    attempts: int = 1
    reward: float | None = None
    why: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


class Journal:
    """An open journal, held against every other writer until it is closed or its process ends.

    Raises ConfigError for the journal of another search, and for one that cannot be read; TrainingError while another
    process writes to it.
    """

    def __init__(self, path: Path, spec: SearchSpec) -> None:
        self._spec = spec
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise TrainingError(
                f"another search is writing to {path.name}; stop it, or name another journal"
            ) from error
        self.events: list[Event] = []
        self.records: dict[int, Record] = {}
        try:
            self._begin(path)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, path: Path) -> None:
        self._file.seek(0)
        header, events, size = read_lines(self._file.read(), path.name)
        self._file.truncate(size)
        if header is None:
            self._write({"format": FORMAT, "search": json.loads(self._spec.model_dump_json(by_alias=True))})
            sync_folder(path.parent)
            return
        check_same(read_header(header, path.name), self._spec, path.name)
        for event in events:
            self._apply(event)

    def append(self, event: Event) -> None:
        """Write an event, and flush it to the disk. Raises OSError."""
        self._write(json.loads(event.model_dump_json(exclude_none=True)))
        self._apply(event)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        apply(self.records, event, self._spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def apply(records: dict[int, Record], event: Event, spec: SearchSpec) -> None:
    """Take an event into the jobs' records, in place. Raises ConfigError for one that cannot follow."""
    record = records.get(event.job)
    if (event.kind == "launched") == (record is not None) or (record is not None and record.state != "open"):
        raise ConfigError(f"the journal has job {event.job} {event.kind} where that cannot be; begin a new journal")
    if record is None:
        units = event.units or ()
        records[event.job] = Record(event.job, units, spec.space.strategy(units))
        return
    changed = {
        "finished": {"state": "finished", "reward": event.reward, "figures": event.figures or {}},
        "failed": {"state": "failed", "why": event.why},
        "reissued": {"attempts": record.attempts + 1, "why": event.why},
        "lost": {"state": "lost", "why": event.why},
    }[event.kind]
    seconds = record.seconds if event.seconds is None else event.seconds
    records[event.job] = replace(record, **changed, seconds=seconds)  # type: ignore[arg-type]  # of the fields' own types


def read_lines(data: bytes, name: str) -> tuple[dict[str, Any] | None, list[Event], int]:
    """Return a journal's header, None of an empty one, its events, and the bytes up to the end of the last whole line.

    name  for messages
    Raises ConfigError for a whole line that is no event.
    """
    size = data.rfind(b"\n") + 1
    lines = data[:size].splitlines()
    events = []
    for number, line in enumerate(lines[1:], 2):
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError as error:
            raise ConfigError(f"line {number} of {name} is no event of a search; mend it, or begin anew") from error
    if not lines:
        return None, [], 0
    try:
        header = json.loads(lines[0])
        known = header["format"] == FORMAT and isinstance(header["search"], dict)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ConfigError(f"{name} is no journal of a search of format {FORMAT}; name another file")
    return header["search"], events, size


def read_header(header: Mapping[str, Any], name: str) -> SearchSpec:
    """Read the search of a journal. Raises ConfigError."""
    try:
        return SearchSpec.model_validate(header)
    except ValidationError as error:
        raise ConfigError(f"{name} is of a search that this version cannot read; begin a new journal") from error


def read_journal(path: Path) -> tuple[SearchSpec, list[Record]]:
    """Read a journal without holding it: the search, and its jobs in order. Raises ConfigError."""
    try:
        header, events, _ = read_lines(path.read_bytes(), path.name)
    except OSError as error:
        raise ConfigError(f"the journal {path} cannot be read ({error.strerror}); name a search's journal") from error
    if header is None:
        raise ConfigError(f"{path.name} is empty; name a search's journal")
    spec = read_header(header, path.name)
    records: dict[int, Record] = {}
    for event in events:
        apply(records, event, spec)
    return spec, list(records.values())


def check_same(found: SearchSpec, spec: SearchSpec, name: str) -> None:
    """Refuse to go on with another search than the journal's. Raises ConfigError with the first difference."""
    for key in sorted(set(SearchSpec.model_fields) - MAY_CHANGE):
        if getattr(found, key) != getattr(spec, key):
            raise ConfigError(
                f"{name} is of a search with another {key}; give the settings it was begun with, or name another "
                "journal"
            )


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Leave out figures that are no finite numbers: JSON has no word for them."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
