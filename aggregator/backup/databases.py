"""One state of the database as a SQLite file, whichever of the two kinds it is, and the way back into either.

SQLite is copied by its own means. PostgreSQL's rows are read in one transaction that sees one state: so a backup needs
no client program of the server's version where the aggregator runs, and can be put back into the other kind.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Connection, func, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from aggregator.backup.named import needed
from aggregator.database import newest_revision, open_database, sqlite_full, upgrade
from aggregator.tables import Base
from cairn.errors import ConfigError, StorageFull, Unreachable

FILE: Final = "database.sqlite"
_PATIENCE_S: Final = 60.0
_ROWS: Final = 200  # in memory; a row of masked words' messages can be large


def snapshot(url: str, folder: Path) -> Path:
    """Write one committed state of the database into a file while others read and write; returns the file.

    Raises ConfigError, StorageFull, Unreachable.
    """
    target = folder / FILE
    if _is_sqlite(url):
        source = Path(sqlalchemy.make_url(url).database or "")
        if not source.is_file():
            raise ConfigError(f"there is no database {source}")
        with (
            _copying(),
            closing(sqlite3.connect(source, timeout=_PATIENCE_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)  # all pages in one reading transaction: writers go on, and are not in it
    else:
        if revision(url) != newest_revision():
            raise ConfigError(
                f"the database has revision {revision(url)} and this Cairn knows {newest_revision()}; make the backup "
                "with the version that serves"
            )
        _copy(url, f"sqlite:///{target}")
    with _copying(), closing(sqlite3.connect(target)) as copy:
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    _one_file(target)
    if found != "ok":
        raise ConfigError(f"the database is damaged ({str(found)[:120]}); restore it from an earlier backup")
    return target


def needed_of(file: Path) -> frozenset[str]:
    """Give the digests of blobs that a snapshot cannot do without; what the live database says has moved on."""
    engine = sqlalchemy.create_engine(f"sqlite:///{file}", hide_parameters=True)  # as one file, without a log beside it
    try:
        return needed(engine)
    finally:
        engine.dispose()


def check_empty(url: str) -> None:
    """Raise ConfigError unless the database has no table (SQLite: no file) yet; Unreachable."""
    if _is_sqlite(url):
        if (path := Path(sqlalchemy.make_url(url).database or "")).exists():
            raise ConfigError(f"there is a database {path} already; name another folder")
        return
    if _ask(url, lambda connection: inspect(connection).get_table_names()):
        raise ConfigError("the PostgreSQL database has tables already; make an empty one and name it with --database")


def load(url: str, file: Path) -> None:
    """Make the database of a snapshot, of this version's schema; cut off, it has tables without rows.

    Raises ConfigError.
    """
    engine = open_database(f"sqlite:///{file}")
    try:
        upgrade(engine)
    finally:
        engine.dispose()
    if _is_sqlite(url):
        _one_file(file)
        file.replace(sqlalchemy.make_url(url).database or "")
    else:
        _copy(f"sqlite:///{file}", url)


def revision(url: str) -> str:
    """Say which revision of the schema a database has. Raises ConfigError, Unreachable."""
    query = text("SELECT max(version_num) FROM alembic_version")
    return str(_ask(url, lambda connection: connection.execute(query).scalar_one()))


def _one_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")  # without a log beside it


@contextmanager
def _copying() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if sqlite_full(error):
            raise StorageFull("the database cannot be copied: the disk is full; make room and try again") from error
        raise ConfigError(f"the database cannot be copied ({error}); see `cairn aggregator check`") from error


def _is_sqlite(url: str) -> bool:
    return sqlalchemy.make_url(url).get_backend_name() == "sqlite"


def _ask(url: str, question: Any) -> Any:
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            return question(connection)
    except DBAPIError as error:
        # The driver's own text may hold the URL with its password, so it is not repeated.
        raise Unreachable("the database does not answer, or is none of an aggregator") from error
    finally:
        engine.dispose()


def _copy(source: str, target: str) -> None:
    """Make the tables of `target` and copy all rows, as of one moment, in one transaction."""
    reader, writer = open_database(source), open_database(target)
    try:
        upgrade(writer)
        alone = reader.execution_options(isolation_level="REPEATABLE READ") if not _is_sqlite(source) else reader
        with alone.connect() as rows, writer.begin() as copy:
            for table in Base.metadata.sorted_tables:
                found = rows.execution_options(yield_per=_ROWS).execute(select(table))
                for part in found.mappings().partitions():
                    copy.execute(insert(table), [dict(row) for row in part])
            if not _is_sqlite(target):
                _count_on(copy)
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            with _copying():
                raise error.orig from None
        raise ConfigError(f"the database's rows cannot be copied ({type(error.orig).__name__})") from error
    finally:
        reader.dispose()
        writer.dispose()


def _count_on(copy: Connection) -> None:
    """Let PostgreSQL number new rows behind those that came with their numbers."""
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if column.autoincrement is True:
                last = copy.scalar(select(func.max(column)))
                if last is not None:
                    sequence = func.pg_get_serial_sequence(table.name, column.name)
                    copy.execute(select(func.setval(sequence, last)))
