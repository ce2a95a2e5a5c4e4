"""Who works on what, between several processes of one aggregator: a lock that its holder's death releases.

A claim only saves work. That a step done twice does no harm is seen to where the step is committed.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import Engine


@contextmanager
def claim(engine: Engine, name: str, state_dir: Path) -> Iterator[bool]:
    """Tell whether this process may work on something; true for one at a time, until the block ends.

    state_dir  holds the lock files where the database is SQLite, whose processes share it; PostgreSQL has its own locks
    """
    if engine.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(f"cairn claim {name}".encode()).digest()[:8], "big", signed=True)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            held = bool(connection.scalar(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}))
            try:
                yield held
            finally:
                if held:
                    connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        return
    folder = state_dir / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
