"""The outbox: sealed tallies as files, each in the folder that says its state.

    pending/  sealed, to be sent · masked/  sealed, to be summed secretly: never sent as it is
    sent/     in the aggregator's ledger, or in a masked sum · parked/  sealed, not wanted (any more)

A file's name says what it is: study.stage.window.fingerprint.tally. It appears whole by an atomic rename, flushed to
the disk, and moves between folders the same way, so that a crash at any instant leaves every tally in one state.
"""

import errno
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cairn.codec import read_header, read_tables, write_tally
from cairn.errors import ChecksumMismatch, PlanError, PlanMismatch
from cairn.files import sync_folder
from cairn.plan import Plan
from cairn.rpc import NAME
from cairn.tally import Tally

State = Literal["pending", "masked", "sent", "parked"]
FULL = {errno.ENOSPC, errno.EDQUOT}
_FILE = re.compile(rf"({NAME.pattern})\.([a-z_]+)\.([0-9]+)\.([0-9a-f]{{64}})\.tally")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Sealed:
    """A tally file that will not change any more.

    fingerprint  32 bytes, of the plan
    """

    study: str
    stage: str
    window: int
    fingerprint: bytes
    path: Path

    @property
    def ids(self) -> dict[str, str | int]:
        """What a line of the log calls it by."""
        plan = self.fingerprint.hex()
        return {"study": self.study, "stage": self.stage, "window": self.window, "plan": plan}

    def digest(self) -> bytes:
        """SHA-256 of the file."""
        whole = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                whole.update(block)
        return whole.digest()

    def intact(self) -> bool:
        """Tell whether every table still is what its checksum says."""
        try:
            with self.path.open("rb") as file:
                for _ in read_tables(file, read_header(file).tables):
                    pass
        except (ChecksumMismatch, PlanMismatch):
            return False
        return True


class Outbox:
    """The folder of a site's sealed tallies; one service at a time may hold it.

    Nothing is kept beside the files: what is there is the state.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = {state: folder / state for state in get_args(State)}
        for path in self._folders.values():
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in path.glob(".*.part"):  # left by a crash while sealing; the stage is counted again
                part.unlink()

    def seal(self, plan: Plan, tally: Tally) -> Sealed:
        """Write a tally, to be sent or, when its plan says so, to be summed secretly. A second time changes nothing.

        Raises PlanError for a study whose name is no name; OSError on a full disk, and nothing is left.
        """
        if not NAME.fullmatch(plan.study):
            raise PlanError("the plan's study has a name of other signs than a-z, 0-9 and -; it cannot be followed")
        found = self.find(tally.fingerprint)
        if found:
            return found[1]
        name = f"{plan.study}.{plan.stage.stage}.{plan.window}.{tally.fingerprint.hex()}.tally"
        path = self._folders["pending" if plan.secrecy is None else "masked"] / name
        write_tally(path, tally)
        return _sealed(path)

    def listed(self, state: State) -> list[Sealed]:
        """List the tallies in a state, oldest first."""
        files = [path for path in self._folders[state].iterdir() if _FILE.fullmatch(path.name)]
        return [_sealed(path) for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))]

    def find(self, fingerprint: bytes) -> tuple[State, Sealed] | None:
        """Find a plan's tally and its state, None when it is not sealed."""
        for state in get_args(State):
            for path in self._folders[state].glob(f"*.{fingerprint.hex()}.tally"):
                return state, _sealed(path)
        return None

    def move(self, sealed: Sealed, to: State) -> Sealed:
        """Put a tally into another state; in the state already, nothing happens."""
        target = self._folders[to] / sealed.path.name
        if target != sealed.path:
            sealed.path.replace(target)
            sync_folder(target.parent)
            sync_folder(sealed.path.parent)
        return _sealed(target)

    def discard(self, sealed: Sealed) -> None:
        """Delete a tally that is damaged, or that nobody can ask for again; its stage would be counted anew."""
        sealed.path.unlink(missing_ok=True)
        sync_folder(sealed.path.parent)


def _sealed(path: Path) -> Sealed:
    found = _FILE.fullmatch(path.name)
    assert found is not None  # only this module names these files
    study, stage, window, fingerprint = found.groups()
    return Sealed(study, stage, int(window), bytes.fromhex(fingerprint), path)
