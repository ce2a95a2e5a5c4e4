"""Where one schedule after another runs: an empty database and an empty folder for each."""

import shutil
import tempfile
from pathlib import Path

from aggregator import database


class Ground:
    """A folder with a database in it; the engine stays, and with it the statements that it has compiled."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._database, self._template = folder / "world", folder / "cairn.db", folder / "template.db"
        made = database.open_database(f"sqlite:///{self._template}")
        database.upgrade(made)
        made.dispose()
        self.engine = database.open_database(f"sqlite:///{self._database}")

    def cleared(self) -> Path:
        """Forget the schedule before; returns an empty folder."""
        self.engine.dispose()
        for path in self._database.parent.glob(f"{self._database.name}-*"):
            path.unlink()
        shutil.copy(self._template, self._database)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return self._folder

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


def in_memory() -> Path:
    """Make a folder on a disk of memory, where a flush costs nothing; elsewhere when there is none."""
    memory = Path("/dev/shm")  # a schedule's files are this test's own
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
