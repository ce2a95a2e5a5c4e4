"""What this site remembers of masked sums: one file a session, for its owner alone, written before a reply leaves."""

from pathlib import Path

from cairn.errors import MaskingError
from cairn.files import write_atomically
from cairn.masking.canonical import decode, digest, encode
from cairn.masking.memory import Memory
from cairn.masking.messages import Session

ENDING = ".memory"


class Memories:
    """A folder of memories; one service at a time may hold it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._windows: dict[Path, frozenset[bytes]] = {}  # of which each memory is; the files hold the same

    def find(self, session: Session) -> Memory | None:
        """Read what is remembered of a session; None when it is new. Raises MaskingError when the file is damaged."""
        path = self._path(session)
        return _read(path) if path.exists() else None

    def keep(self, memory: Memory) -> None:
        """Write a memory down. Raises OSError, and then the one before is still there."""
        with write_atomically(self._path(memory.session), mode=0o600) as file:
            file.write(encode(memory))
        self._windows[self._path(memory.session)] = _windows(memory)

    def of_plan(self, *fingerprints: bytes) -> list[Memory]:
        """Read all that covers the counts of some plans, the first attempt first. Raises MaskingError."""
        found = []
        for path in self._folder.glob(f"*{ENDING}"):
            if path not in self._windows:
                self._windows[path] = _windows(_read(path))
            if not self._windows[path].isdisjoint(fingerprints):
                found.append(_read(path))
        return sorted(found, key=lambda one: (one.session.window, one.session.attempt))

    def words(self, session: Session) -> Path:
        """Name the file of a session's masked words."""
        return self._path(session).with_suffix(".words")

    def tidy(self, fingerprint: bytes) -> None:
        """Delete masked words that nobody takes any more.

        Memories stay: without them the same counts could be asked for again, for another sum.
        """
        for memory in self.of_plan(fingerprint):
            if memory.session.fingerprint == fingerprint:  # not of a later sum that takes the window along
                self.words(memory.session).unlink(missing_ok=True)

    def _path(self, session: Session) -> Path:
        return self._folder / f"{digest(session).hex()}{ENDING}"


def _windows(memory: Memory) -> frozenset[bytes]:
    return frozenset((memory.session.fingerprint, *memory.covers))


def _read(path: Path) -> Memory:
    try:
        return decode(Memory, path.read_bytes())
    except MaskingError as error:
        raise MaskingError(
            f"{path.name} in the state folder is damaged, so that this site cannot tell which counts it has masked; "
            "restore it from a backup"
        ) from error
