"""What an aggregator sees to by itself, every hour: retention, and certificates that are about to end.

Of several processes, one at a time drops what is due; the others find nothing left, and have folders of their own.
"""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, func, select

from aggregator import database, tables
from aggregator.intake import retention
from aggregator.intake.store import BlobStore
from aggregator.members import pki
from aggregator.settings import AggregatorSettings
from aggregator.study.claims import claim
from aggregator.telemetry import Metrics
from cairn.enrolment import ENDS_SOON
from cairn.logs import Log

EVERY_S: Final = 3600.0
SOON_S: Final = 60.0  # another process was at it
CLAIM: Final = "_retention"  # no study can have this name


def certificate_ends(engine: Engine, authority: pki.Authority) -> dict[str, datetime]:
    """Say when what lets members in ends: of each member the newest certificate, and the CA's own."""
    newest = (
        select(tables.Member.role, tables.Member.name, func.max(tables.Certificate.not_after))
        .join(tables.Certificate, tables.Certificate.member == tables.Member.name)
        .where(tables.Member.state == "enrolled", tables.Certificate.revoked_at.is_(None))
        .where(tables.Member.role != "trainer")  # the aggregator's own, which it renews
        .group_by(tables.Member.role, tables.Member.name)
    )
    with database.reading(engine) as session:
        found = {f"{role}/{name}": ends for role, name, ends in session.execute(newest)}
    return {"ca": authority.certificate.not_valid_after_utc, **found}


class Housekeeping:
    """Looks after things, in a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        engine: Engine,
        store: BlobStore,
        settings: AggregatorSettings,
        authority: pki.Authority,
        *,
        now: Callable[[], datetime],
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._authority = authority
        self._now = now
        self._log = log
        self._metrics = metrics
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Look now, and every hour."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def turn(self) -> bool:
        """Do all of it once; false when another process drops things now. Raises CairnError, OSError."""
        now = self._now()
        ends = certificate_ends(self._engine, self._authority)
        self._metrics.certificate_ends.clear()
        for holder, moment in ends.items():
            self._metrics.certificate_ends.labels(holder).set(moment.timestamp())
            if moment - now < ENDS_SOON:
                self._log.warning("certificate ends soon", holder=holder, ends=moment.isoformat(timespec="minutes"))
        settings = self._settings
        with claim(self._engine, CLAIM, settings.state_dir) as mine:
            if mine and (dropped := retention.tidy(self._engine, self._store, settings.runs, settings.retention, now)):
                self._log.info("retention", **dropped)
        return mine

    def _keep(self) -> None:
        while not self._stopped.is_set():
            done = True
            try:
                done = self.turn()
            except Exception as error:  # noqa: BLE001 - the database or the store is away; next hour it is not
                self._log.error("housekeeping put off", exc_info=error)
            self._stopped.wait(EVERY_S if done else SOON_S)
