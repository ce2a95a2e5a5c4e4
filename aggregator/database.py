"""How the aggregator's database is opened, read and changed; the tables themselves are in aggregator/tables.py.

Read inside `with reading(engine) as session:`, change inside `with writing(engine) as session:`. Writers run one after
another on both databases (SQLite: BEGIN IMMEDIATE; PostgreSQL: one advisory lock), so a check and the change that
rests on it are one step, also between several aggregator processes. Keep such a block short: no network, no blobs.
What a thousand sites may do at once is changed by `together`, which has a transaction for all that wait.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib.resources import as_file, files
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

from aggregator import audit_log
from aggregator.group_commit import GroupCommit
from aggregator.tables import Audit
from cairn.errors import ConfigError, StorageFull, Unreachable

_WRITES = "cairn_writes"
_TURN = "cairn_turn"  # the lock that the writers of one process queue at
_GROUP = "cairn_group"  # and where those wait who share a transaction
_WRITER_LOCK = 0x636169726E  # "cairn"; the key of PostgreSQL's advisory lock that writers take
_BUSY_MILLISECONDS = 30_000
_DISK_FULL = "53100"  # PostgreSQL's SQLSTATE disk_full
_LOCKED = "55P03"  # and lock_not_available
# A process that is stopped, or whose machine is gone, must not keep the others from writing, nor its claims from them.
# PostgreSQL by itself would notice a machine that is gone after two hours.
_STOPPED_MILLISECONDS = 60_000  # of a writer that does nothing
_KEEPALIVE = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
_BUSY = "the aggregator's database is busy: other writers did not end within half a minute"
_AWAY = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def open_database(url: str) -> Engine:
    """Open the database at a SQLAlchemy URL (sqlite:///path or postgresql+psycopg://…). Raises ConfigError."""
    try:
        address = sqlalchemy.make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            "the database's URL cannot be read; sqlite:///path or postgresql+psycopg://… is expected"
        ) from error
    kind = address.get_backend_name()
    if kind not in {"sqlite", "postgresql"}:
        raise ConfigError(f"the database is of the kind {kind!r} where sqlite or postgresql is expected")
    if kind == "sqlite" and address.database in {None, "", ":memory:"}:
        raise ConfigError("the database's URL names no file; a database in memory would not survive a restart")
    # An error's text goes into the log, and the values of a statement do not.
    engine = sqlalchemy.create_engine(
        address, pool_size=8, max_overflow=56, pool_pre_ping=kind == "postgresql", hide_parameters=True
    )
    engine.update_execution_options(**{_TURN: threading.Lock(), _GROUP: GroupCommit()})
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin)
    return engine


def check_without_password(url: str) -> None:
    """Raise ConfigError for a URL with a password: on a command line everybody on the machine can read it."""
    try:
        password = sqlalchemy.make_url(url).password
    except ArgumentError:
        return  # what is wrong with it is said where it is opened
    if password:
        raise ConfigError(
            "the database's URL holds a password, which a command line shows to everybody on this machine; put the URL "
            "into a file for its owner alone and name that with --database-file"
        )


def newest_revision() -> str:
    """Say which revision of the schema this version's migrations lead to."""
    with as_file(files("aggregator") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        return str(ScriptDirectory.from_config(config).get_current_head())


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date by the packaged migrations, once, whoever else starts at the same time.

    Raises ConfigError when a newer version of Cairn has already changed it, or when it is damaged; Unreachable.
    """
    with as_file(files("aggregator") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with _sentences(), engine.execution_options(**{_WRITES: True}).begin() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                newest = ScriptDirectory.from_config(config).get_current_head()
                raise ConfigError(
                    f"the database was made by a newer version of Cairn than this one (which knows revision {newest}); "
                    "install the newer version"
                ) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a session that sees one state of the database and changes nothing. Raises Unreachable."""
    with _sentences(), Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Open a session that is alone in writing, and commit when the block ends well.

    What is loaded stays readable afterwards. Raises StorageFull when the disk is full; then nothing was changed;
    Unreachable when the database is away, or when other writers did not end within half a minute.
    """
    # SQLite does not queue: who waits looks again now and then, and under load one of many looked in vain for half a
    # minute. On PostgreSQL every waiting thread would hold a connection that readers need.
    turn: threading.Lock = engine.get_execution_options()[_TURN]
    if not turn.acquire(timeout=_BUSY_MILLISECONDS / 1000):
        raise Unreachable(_BUSY)
    try:
        alone = engine.execution_options(**{_WRITES: True})
        with _sentences(), Session(alone, expire_on_commit=False) as session, session.begin():
            yield session
    finally:
        turn.release()


def together(engine: Engine, work: Callable[[Session], None]) -> None:
    """Do a piece of work as in a `writing` block, in one transaction with what other threads have to write meanwhile.

    Raises what the work raises, of which nothing is kept then; and what `writing` does.
    """
    group: GroupCommit = engine.get_execution_options()[_GROUP]
    group.keep(partial(writing, engine), work)


def audit(session: Session, at: datetime, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Add a row to the audit in the caller's own transaction, a `writing` one: both happen, or neither."""
    before = audit_log.head(session)  # nobody else writes meanwhile
    session.add(Audit(at=at, actor=actor, action=action, subject=subject, detail=detail, previous=before))


def sqlite_full(error: BaseException | None) -> bool:
    """Tell whether SQLite has no room on its disk."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE)


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        code, state = getattr(error.orig, "sqlite_errorcode", None), getattr(error.orig, "sqlstate", None)
        primary = None if code is None else code & 0xFF
        if sqlite_full(error.orig) or state == _DISK_FULL:
            raise StorageFull("the aggregator's database has no room on its disk; try again when there is") from error
        # PostgreSQL gives a state with every error but that of a refused connection.
        refused = isinstance(error, OperationalError) and code is None and state is None
        if state == _LOCKED:
            raise Unreachable(_BUSY) from error
        if primary in _AWAY or error.connection_invalidated or refused:
            # The driver's own text may hold the URL with its password, so it is not repeated.
            raise Unreachable("the aggregator's database does not answer; it must run and be readable") from error
        if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise ConfigError("the database's file is damaged or no database; restore it from the backup") from error
        raise


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin in _begin, not in the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MILLISECONDS}"):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_postgresql(connection: Any, _record: object) -> None:  # psycopg's, which only they need who have it
    connection.autocommit = True
    for name, value in _KEEPALIVE.items():
        connection.execute(f"SET {name} = {value}")
    connection.autocommit = False


def _begin(connection: sqlalchemy.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        connection.exec_driver_sql(
            f"SELECT set_config('lock_timeout', '{_BUSY_MILLISECONDS}', true), "
            f"set_config('idle_in_transaction_session_timeout', '{_STOPPED_MILLISECONDS}', true), "
            f"pg_advisory_xact_lock({_WRITER_LOCK})"
        )
