"""A backup put back into an empty folder, so that the aggregator goes on as of the moment when it was made.

The settings are put in place last: a folder in which this was cut off has none, and nothing serves from it.
"""

import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import tomli_w

from aggregator import at_rest, audit_log
from aggregator.backup import archive, databases
from aggregator.backup.named import needed
from aggregator.database import audit, open_database, upgrade, writing
from aggregator.intake.store import BlobStore, storage_full
from aggregator.settings import FILE, AggregatorSettings, load_settings
from cairn.errors import CairnError, ConfigError, StudyError
from cairn.sealing import VARIABLE

_COMING: Final = ".restoring"
_BLOCK: Final = 1 << 20
# What a disk of its own, and an image's working folder, hold from the beginning.
_NOT_OURS: Final = frozenset({"lost+found", ".numba"})
# What says where the files of the old machine lay; on the new one all of them are in one folder.
_PLACES: Final = ("state_dir", "pki_dir")


@dataclass(frozen=True)
class Restored:
    """What was put back.

    warnings  what a person should do before the aggregator serves
    """

    about: archive.About
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Moved:
    """Where a restored aggregator keeps what it did not keep there before; None: as the backup's settings say.

    database       SQLAlchemy URL of an empty database of either kind; as it was before, SQLite is in the folder
    database_file  a file that holds such a URL, with its password
    blobs          fsspec URL; as it was before, a folder of blobs is in the folder
    """

    database: str | None = None
    database_file: Path | None = None
    blobs: str | None = None


def restore(backup: Path, folder: Path, now: datetime, moved: Moved = Moved()) -> Restored:
    """Check a backup, then make the aggregator of it in an empty folder.

    Raises ConfigError when there is something already, ChecksumMismatch when the backup was changed, StorageFull.
    """
    about = archive.read(backup)
    _check_empty(folder)
    coming = folder / _COMING
    with storage_full("the backup cannot be put back"), _all_or_nothing(folder):
        folder.chmod(0o700)
        coming.mkdir(mode=0o700)
        settings = _settings(backup, coming, folder, moved)
        databases.check_empty(settings.database_url)
        store = BlobStore(settings.blobs_url)
        _unpack(backup, coming, folder, settings, store)
        databases.load(settings.database_url, coming / databases.FILE)
        _go_on(settings, store, about, now)
        (coming / FILE).replace(folder / FILE)
        shutil.rmtree(coming)
    return Restored(about, tuple(_warnings(settings, about)))


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name an empty one, or one that is not there yet")
    there = sorted(path.name for path in folder.iterdir() if path.name not in _NOT_OURS) if folder.exists() else []
    if there:
        raise ConfigError(f"{folder} is not empty (it holds {there[0]}); a restore overwrites nothing")


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
            elif path.name not in _NOT_OURS:
                shutil.rmtree(path)
        raise


def _settings(backup: Path, coming: Path, folder: Path, moved: Moved) -> AggregatorSettings:
    """Take the settings out of the backup, with all places inside the folder, and read them as `serve` will."""

    def take(name: str, file: archive.Hashed) -> None:
        if name == FILE:
            (coming / FILE).write_bytes(file.read())

    archive.read(backup, take)
    values: dict[str, Any] = tomllib.loads((coming / FILE).read_text(encoding="utf-8"))
    for key in _PLACES:
        values.pop(key, None)
    elsewhere = moved.database or moved.database_file
    if elsewhere or str(values.get("database", "")).startswith("sqlite"):
        values.pop("database", None)
    if elsewhere:
        values.pop("database_file", None)
    if moved.blobs or "://" not in str(values.get("blobs", "")) or str(values["blobs"]).startswith("file:"):
        values.pop("blobs", None)
    values |= {key: str(value) for key, value in asdict(moved).items() if value}
    text = f"# Restored from a backup; every key is explained in docs/OPERATING.md.\n{tomli_w.dumps(values)}"
    (coming / FILE).write_text(text, encoding="utf-8")
    (coming / FILE).chmod(0o600)
    with _beside(coming / FILE, folder / f"{_COMING}.toml") as path:
        return load_settings(path)


@contextmanager
def _beside(source: Path, target: Path) -> Iterator[Path]:
    shutil.copy(source, target)  # relative places begin at the settings' folder
    try:
        yield target
    finally:
        target.unlink()


def _unpack(backup: Path, coming: Path, folder: Path, settings: AggregatorSettings, store: BlobStore) -> None:
    def take(name: str, file: archive.Hashed) -> None:
        first, _, rest = name.partition("/")
        if name == FILE:
            return
        if rest.startswith("blobs/"):
            digest = rest.rpartition("/")[2]
            _write(coming / "blob", file)
            store.put_raw(coming / "blob", digest)
            return
        places = {"pki": settings.pki_dir, "operator": folder / "operator", "state": settings.state_dir}
        if rest and first not in places:
            raise ConfigError(f"{backup} holds {name[:80]!r}, which this version does not know; update Cairn")
        _write(places[first] / rest if rest else coming / name, file)

    archive.read(backup, take)


def _write(path: Path, file: archive.Hashed) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        while block := file.read(_BLOCK):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())


def _go_on(settings: AggregatorSettings, store: BlobStore, about: archive.About, now: datetime) -> None:
    engine = open_database(settings.database_url)
    try:
        upgrade(engine)
        missing = [digest for digest in sorted(needed(engine)) if not store.has(digest)]
        if missing:
            raise StudyError(
                f"the store lacks {len(missing)} blobs that the database names, the first is {missing[0][:12]}; the "
                "backup was made without blobs: restore the object store as of that time first"
            )
        with writing(engine) as session:
            audit(session, now, "aggregator", "restore", settings.federation, made=about.made)
    finally:
        engine.dispose()


def _warnings(settings: AggregatorSettings, about: archive.About) -> Iterator[str]:
    yield (
        f"all is as of {about.made}: who was revoked since then is a member again, who enrolled or renewed a "
        "certificate since then is not: look at `cairn aggregator sites`, revoke and invite again"
    )
    engine = open_database(settings.database_url)
    try:
        head = audit_log.verify(engine)
    finally:
        engine.dispose()
    if head.broken is not None:
        yield f"line {head.broken} of the audit does not follow from the one before: it was changed before the backup"
    if about.sealed_by:
        try:
            at_rest.open_sealer(settings)
        except CairnError as error:
            yield (
                f"blobs and checkpoints are sealed by the key-encryption key {', '.join(about.sealed_by)}, which the "
                f"backup does not hold: put it where at_rest.key_file says, or into {VARIABLE} ({error})"
            )
