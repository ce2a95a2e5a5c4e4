"""What every open `Watch` stream looks at: the open plans and the enrolled sites, read once for all of them.

`refresh` is called when something changed here, and every second for what another process changed; the streams wait
on one condition and ask the database nothing.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, select, update

from aggregator import database, tables
from cairn.errors import Revoked

SEEN_EVERY = timedelta(seconds=4)  # a watching site counts as connected for 15 s after it was last seen


@dataclass(frozen=True)
class Offer:
    """An open plan: its published bytes and when its stage closes at the latest."""

    plan: bytes
    deadline: datetime


Offers = tuple[Offer, ...]


class Board:
    """The open plans, for streams to wait on.

    now  the clock
    """

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._engine = engine
        self._now = now
        self._changed = threading.Condition()
        self._offers: Offers = ()
        self._enrolled: frozenset[str] = frozenset()
        self._watching: dict[str, int] = {}
        self._seen_at: datetime | None = None
        self._stopped = False

    @property
    def offers(self) -> Offers:
        """The open plans, as they were read last."""
        return self._offers

    def refresh(self) -> None:
        """Read the open plans and the enrolled sites, and wake the streams when they are others than before."""
        with database.reading(self._engine) as session:
            rows = session.execute(
                select(tables.Plan.published, tables.Plan.deadline)
                .where(tables.Plan.state == "open")
                .order_by(tables.Plan.opened_at, tables.Plan.fingerprint)
            ).all()
            offers = tuple(Offer(plan, deadline) for plan, deadline in rows)
            enrolled = frozenset(
                session.scalars(select(tables.Member.name).filter_by(role="site", state="enrolled")).all()
            )
        with self._changed:
            if (offers, enrolled) != (self._offers, self._enrolled):
                self._offers, self._enrolled = offers, enrolled
                self._changed.notify_all()
        self._note_seen()

    def watch(self, site: str, active: Callable[[], bool]) -> Iterator[Offers]:
        """Yield the open plans at once and whenever they change, until the caller is gone or the board stops.

        active  tells whether the caller is there; call `wake` when it is not any more
        Raises Revoked when the site is taken out.
        """
        self.refresh()
        last: Offers | None = None
        with self._changed:
            self._watching[site] = self._watching.get(site, 0) + 1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stopped or not active() or site not in self._enrolled or self._offers != last  # noqa: B023 - waits within the turn
                    )
                    if self._stopped or not active():
                        return
                    out = site not in self._enrolled
                    last = self._offers
                if out:
                    raise Revoked(self._why_out(site))
                yield last
        finally:
            with self._changed:
                self._watching[site] -= 1
                if not self._watching[site]:
                    del self._watching[site]

    def wake(self) -> None:
        """Let every stream look again whether its caller is there."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """End every stream."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _why_out(self, site: str) -> str:
        with database.reading(self._engine) as session:
            member = session.get(tables.Member, site)
        if member is None or member.state != "revoked":
            return f"the site {site} is not, or not any more, a member of this federation"
        return f"{site} was revoked by the operator" + (f": {member.revoke_reason}" if member.revoke_reason else "")

    def _note_seen(self) -> None:
        now = self._now()
        with self._changed:
            due = self._seen_at is None or now - self._seen_at >= SEEN_EVERY
            sites = sorted(self._watching) if due else []
            if due:
                self._seen_at = now
        if sites:
            with database.writing(self._engine) as session:
                session.execute(update(tables.Member).where(tables.Member.name.in_(sites)).values(last_seen=now))
