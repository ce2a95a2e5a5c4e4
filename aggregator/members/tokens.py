"""Secrets that a person carries: one-time invitations and dashboard passwords. Only their SHA-256 is ever stored."""

import hashlib
import secrets
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Engine

from aggregator.database import audit, writing
from aggregator.tables import DashboardToken, Member
from cairn.errors import BadToken, StudyError

_REMEMBERED = 10_000  # callers; the oldest is forgotten first


def new_token() -> str:
    """Make a token of 256 random bits, so that a plain SHA-256 of it cannot be searched."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what is stored of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_dashboard_token(engine: Engine, operator: str, now: datetime) -> str:
    """Make a dashboard password for an enrolled operator and forget it. Raises StudyError."""
    token = new_token()
    with writing(engine) as session:
        member = session.get(Member, operator)
        if member is None or member.role != "operator" or member.state != "enrolled":
            raise StudyError(f"there is no enrolled operator {operator}")
        session.add(DashboardToken(token_hash=token_hash(token), member=operator, created_at=now))
        audit(session, now, "aggregator", "dashboard-token", operator)
    return token


class Attempts:
    """Slows down guessing: after `most` failures within `span`, a caller waits until the oldest is `span` ago.

    Tokens cannot be guessed anyway; this keeps the load and the log small.
    """

    def __init__(self, most: int, span: timedelta, now: Callable[[], datetime]) -> None:
        self._most = most
        self._span = span
        self._now = now
        self._lock = threading.Lock()
        self._failures: dict[str, deque[datetime]] = {}

    def check(self, caller: str) -> None:
        """Raise BadToken when the caller has failed too often lately."""
        with self._lock:
            failures = self._failures.get(caller)
            if failures and len(failures) == self._most and failures[0] + self._span > self._now():
                wait = (failures[0] + self._span - self._now()).total_seconds()
                raise BadToken(f"too many wrong tokens came from here; try again in {wait:.0f} s")

    def failed(self, caller: str) -> None:
        """Note a failure of the caller."""
        with self._lock:
            failures = self._failures.pop(caller, deque(maxlen=self._most))
            failures.append(self._now())
            self._failures[caller] = failures
            if len(self._failures) > _REMEMBERED:
                del self._failures[next(iter(self._failures))]
