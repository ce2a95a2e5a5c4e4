"""What this site's units have spent: one line for each noisy tally, on the disk before the tally is sealed.

A tally that is counted again with the same numbers (after a crash, or when its file was damaged) gets the same noise
from the site's secret and costs nothing; with other numbers it is another release and costs again. Lines are never
changed or removed: privacy that is spent does not come back.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cairn.errors import ConfigError, PlanError, PolicyError
from cairn.plan import Plan
from cairn.privacy.accountant import composed
from cairn.privacy.noise import RandomBytes
from cairn.privacy.terms import Privacy
from cairn.tally import Tables
from edge_node.privacy.settings import PrivacySettings

FILE = "privacy.sqlite"
SHOWN_DELTA = 1e-6  # where the settings name none
_SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (only INTEGER PRIMARY KEY CHECK (only = 1), value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    number INTEGER PRIMARY KEY, plan TEXT NOT NULL, digest TEXT NOT NULL, study TEXT NOT NULL, stage TEXT NOT NULL,
    window INTEGER NOT NULL, unit TEXT NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL, noise REAL NOT NULL,
    at TEXT NOT NULL, UNIQUE (plan, digest)
);
CREATE TRIGGER IF NOT EXISTS kept_for_good BEFORE DELETE ON spent
BEGIN SELECT RAISE(ABORT, 'what is spent does not come back'); END;
CREATE TRIGGER IF NOT EXISTS kept_as_it_was BEFORE UPDATE ON spent
BEGIN SELECT RAISE(ABORT, 'what is spent does not change'); END;
"""


@dataclass(frozen=True)
class Spent:
    """One noisy tally.

    plan     fingerprint, hexadecimal
    epsilon  of this plan alone, at delta
    at       ISO 8601, UTC
    """

    plan: str
    study: str
    stage: str
    window: int
    unit: str
    epsilon: float
    delta: float
    noise: float
    at: str


class Ledger:
    """The file in a site's state folder; several processes may open it.

    Raises ConfigError when it is damaged.
    """

    def __init__(self, state_dir: Path, settings: PrivacySettings) -> None:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path, self._settings = state_dir / FILE, settings
        self._path.touch(mode=0o600)
        with self._open() as database:
            database.executescript(_SCHEMA)
            database.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))

    def lines(self) -> list[Spent]:
        """List what was spent, oldest first."""
        with self._open() as database:
            return _lines(database)

    def total(self) -> float:
        """Return the ε of all that was spent, at the settings' δ."""
        return composed([line.noise for line in self.lines()], self._delta)

    def against(self, plan: Plan, of: bytes) -> str | None:
        """Say why there is not enough left for a plan, None when there is or it is paid already."""
        with self._open() as database:
            lines = _lines(database)
        if plan.privacy is None or any(line.plan == of.hex() for line in lines):
            return None
        return self._over(lines, plan.privacy)

    def spend(self, plan: Plan, of: bytes, tables: Tables, now: datetime) -> RandomBytes:
        """Pay for a tally, for good, and return the random bytes of its noise: the same ones for the same tally.

        tables  exact, before noise
        Raises PolicyError when it would cost more than is left, PlanError for a plan without privacy.
        """
        terms = plan.privacy
        if terms is None:
            raise PlanError("the plan is not private; its tally has no noise and costs nothing")
        digest = _digest(tables)
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            paid = database.execute("SELECT 1 FROM spent WHERE plan = ? AND digest = ?", (of.hex(), digest)).fetchone()
            if not paid:
                over = self._over(_lines(database), terms)
                if over:
                    raise PolicyError(over)
                about = (plan.study, plan.stage.stage, plan.window)
                database.execute(
                    "INSERT INTO spent (plan, digest, study, stage, window, unit, epsilon, delta, noise, at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        of.hex(), digest, *about, terms.unit, terms.epsilon, terms.delta, terms.noise,
                        now.isoformat(timespec="seconds"),
                    ),
                )  # fmt: skip
        return self._keystream(b"noise", of + bytes.fromhex(digest))

    def sampling_seed(self, of: bytes) -> bytes:
        """Return the seed by which pixels of a plan's units are chosen: always the same, 32 bytes."""
        return self._derived(b"sampling", of)

    @property
    def _delta(self) -> float:
        return self._settings.delta or SHOWN_DELTA

    def _over(self, lines: list[Spent], terms: Privacy) -> str | None:
        limit = self._settings.epsilon
        if limit is None:
            return None
        after = composed([*(line.noise for line in lines), terms.noise], self._delta)
        if after <= limit:
            return None
        return (
            f"with this plan the site would have spent ε {after:.3g} at δ {self._delta:.2g} over all studies, and its "
            f"privacy.epsilon is {limit:.3g}; ask for more noise, or let the site raise its limit"
        )

    def _keystream(self, purpose: bytes, about: bytes) -> RandomBytes:
        """AES-256-CTR of a key that is derived from the site's secret."""
        encryptor = Cipher(algorithms.AES(self._derived(purpose, about)), modes.CTR(bytes(16))).encryptor()
        return lambda size: encryptor.update(bytes(size))

    def _derived(self, purpose: bytes, about: bytes) -> bytes:
        with self._open() as database:
            (secret,) = database.execute("SELECT value FROM secret").fetchone()
        return HKDF(SHA256(), length=32, salt=None, info=b"cairn privacy\0" + purpose + b"\0" + about).derive(secret)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file; what the block writes is on the disk when it ends well, and undone when it does not."""
        try:
            with closing(sqlite3.connect(self._path, timeout=30.0)) as database:
                database.execute("PRAGMA synchronous = FULL")
                with database:
                    yield database
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{FILE} in the state folder cannot be used ({error}); without it nobody knows what was spent, so "
                "restore it from a backup"
            ) from error


def _lines(database: sqlite3.Connection) -> list[Spent]:
    found = database.execute(
        "SELECT plan, study, stage, window, unit, epsilon, delta, noise, at FROM spent ORDER BY number"
    )
    return [Spent(*row) for row in found]


def _digest(tables: Tables) -> str:
    found = hashlib.sha256()
    for name in sorted(tables):
        found.update(name.encode() + b"\0")
        found.update(tables[name].tobytes())
    return found.hexdigest()
