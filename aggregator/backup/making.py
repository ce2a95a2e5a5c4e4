"""A backup of an aggregator that goes on serving.

    1  checkpoints  held by hard links
    2  database     one committed state, by the database's own means
    3  blobs        held by hard links, or where they are in an object store: all that are there now
    4  all of it into one file, at leisure, then read back and compared

Why no acknowledged upload is lost: an upload is acknowledged after its row is committed, and its row is committed after
its blob is whole in the store (aggregator/intake/uploads.py). So every blob that the state of step 2 names was there
before step 2, blobs never change, and step 3 finds it. Blobs first would miss what came between. What is acknowledged
after step 2 is at the site still, which sends it again when the restored aggregator asks for it (edge_node/sending.py).
Checkpoints come before the database because a run goes on behind an older checkpoint, not behind a missing one.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from aggregator import at_rest, audit_log
from aggregator.backup import archive, databases
from aggregator.database import audit, open_database, writing
from aggregator.intake.store import BlobStore, storage_full
from aggregator.settings import FILE, AggregatorSettings
from cairn import __version__
from cairn.errors import ConfigError, StudyError
from cairn.files import write_atomically

LAST: Final = "last-backup.json"
STATE_FILES: Final = ("data-keys.json", "ports.json")
_PREFIX: Final = ".backup-"


@dataclass(frozen=True)
class Made:
    """A backup that was made and read back.

    warnings  what a person should see to
    """

    size: int
    files: int
    sealed_by: tuple[str, ...]
    warnings: tuple[str, ...]


def make(folder: Path, settings: AggregatorSettings, out: Path, now: datetime, *, blobs: bool = True) -> Made:
    """Write a backup of the aggregator of a folder into a new file, for its owner alone, and check it.

    blobs  take them too; False for an object store that keeps copies of its own
    Raises ConfigError when `out` is there, StudyError when the store lacks a blob, StorageFull, Unreachable.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, and a backup overwrites nothing; name another file")
    store = BlobStore(settings.blobs_url)
    engine = open_database(settings.database_url)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        held = stack.enter_context(_staging(settings.state_dir))
        revision = databases.revision(settings.database_url)
        runs = _hold(settings.runs, held / "runs", together=True)
        database = databases.snapshot(settings.database_url, held)
        wanted = databases.needed_of(database) if blobs else frozenset()
        if blobs and store.folder is not None:
            store = BlobStore(str(_hold(store.folder, held / "blobs", together=False)))
        sealed_by = at_rest.wrapped_by(settings)
        small = list(_small_files(folder, settings))
        odd = [(name, path) for name, path in small if not archive.is_name(name)]
        small = [one for one in small if one not in odd]
        with storage_full("the backup cannot be written"), write_atomically(out, 0o600) as file:
            writer = archive.Writer(file)
            for name, path in small:
                _add(writer, name, path)
            _add(writer, database.name, database)
            for path in sorted(runs.glob("*/**/*")):
                with suppress(FileNotFoundError):  # not held, and deleted meanwhile
                    if path.is_file() and not any(part.startswith(".") for part in path.relative_to(runs).parts):
                        _add(writer, f"state/runs/{path.relative_to(runs).as_posix()}", path)
            if blobs:
                _add_blobs(writer, store)
            missing = sorted(wanted - {name.rpartition("/")[2] for name in writer.files})
            if missing:
                raise StudyError(
                    f"the store lacks {len(missing)} blobs that the database names, the first is {missing[0][:12]}; no "
                    "backup was made: restore them from an earlier one"
                )
            writer.close(
                archive.About(
                    format=archive.FORMAT,
                    made=now.isoformat(timespec="seconds"),
                    cairn=__version__,
                    federation=settings.federation,
                    revision=revision,
                    blobs=blobs,
                    sealed_by=sealed_by,
                    files=writer.files,
                )
            )
        try:
            archive.read(out)
        except BaseException:
            out.unlink()
            raise
        warnings = _warnings(audit_log.verify(engine).broken, sealed_by, [path for _, path in odd])
        with writing(engine) as session:
            audit(session, now, "aggregator", "backup", settings.federation, size=out.stat().st_size)
    with write_atomically(settings.state_dir / LAST, 0o600) as note:
        note.write(json.dumps({"at": now.timestamp(), "size": out.stat().st_size}).encode())
    return Made(out.stat().st_size, len(writer.files), sealed_by, warnings)


def last_made(settings: AggregatorSettings) -> float:
    """Say when the last backup was made, in seconds since the epoch; 0 when none was."""
    try:
        return float(json.loads((settings.state_dir / LAST).read_bytes())["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _warnings(broken: int | None, sealed_by: tuple[str, ...], odd: Sequence[Path]) -> tuple[str, ...]:
    said = ["whoever has this file can let anybody into the federation: it holds the CA's key; keep it locked away"]
    if sealed_by:
        said.append(
            f"blobs and checkpoints in it are sealed, and the key-encryption key {', '.join(sealed_by)} is not in it: "
            "keep that key elsewhere, without it nothing opens"
        )
    if broken is not None:
        said.append(f"line {broken} of the audit does not follow from the one before: it was changed before the backup")
    said += [f"{path} is not in it: Cairn makes no file of such a name; move it elsewhere" for path in odd]
    return tuple(said)


def _small_files(folder: Path, settings: AggregatorSettings) -> Iterator[tuple[str, Path]]:
    yield FILE, folder / FILE
    for where, path in (("pki", settings.pki_dir), ("operator", folder / "operator")):
        for one in sorted(path.glob("*")):
            if one.is_file() and not one.name.startswith("."):
                yield f"{where}/{one.name}", one
    for name in STATE_FILES:
        if (settings.state_dir / name).exists():
            yield f"state/{name}", settings.state_dir / name


def _add(writer: archive.Writer, name: str, path: Path) -> None:
    with path.open("rb") as file:
        writer.add(name, file, os.fstat(file.fileno()).st_size)


def _add_blobs(writer: archive.Writer, store: BlobStore) -> None:
    for digest in store.listed():
        with suppress(StudyError), store.open_raw(digest) as (file, size):  # not held, and dropped meanwhile
            writer.add(f"state/blobs/{digest[:2]}/{digest}", file, size)


def _hold(source: Path, target: Path, *, together: bool) -> Path:
    """Give all finished files of a folder a second name, so that they stay while the first may go; returns where.

    together  of a folder that is being deleted nothing is held, for half a checkpoint is none; else what is left
    On another disk than `target` there is no second name: then they are read where they are.
    """
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        if any(part.startswith(".") for part in place.relative_to(target).parts):
            continue  # a checkpoint that is being written
        place.mkdir(parents=True, exist_ok=True)
        try:
            for name in names:
                with nullcontext() if together else suppress(FileNotFoundError):
                    if not name.startswith("."):
                        os.link(Path(folder) / name, place / name)
        except FileNotFoundError:
            shutil.rmtree(place)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.ENOTSUP}:
                raise
            shutil.rmtree(target)
            return source
    return target


@contextmanager
def _staging(state: Path) -> Iterator[Path]:
    """Give a folder on the same disk as the state, for one backup at a time; gone afterwards, whatever happens."""
    with (state / "backup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("another backup of this aggregator is being made; wait until it is done") from error
        for left in state.glob(f"{_PREFIX}*"):
            shutil.rmtree(left)
        held = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=state))
        try:
            yield held
        finally:
            shutil.rmtree(held)
