"""Who may look: an operator's token at the door, a signed cookie afterwards, and less patience with each wrong token.

A token has 256 random bits and is known here by its SHA-256 only. A session is no row anywhere: the cookie

    token id . expiry . nonce . HMAC-SHA256(key = the token's hash, the rest)

is checked at each request against the tokens that still open, so it survives a restart, holds in every aggregator
process, and ends with the token itself. Signing out is remembered until the cookie would have expired.
"""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, select

from aggregator.database import reading
from aggregator.members.tokens import Attempts, token_hash
from aggregator.tables import DashboardToken, Member

LIFETIME = timedelta(hours=12)
TRIES = 5
TRIES_WITHIN = timedelta(minutes=5)

Holders = Mapping[str, str]  # SHA-256 of a token, lower-case hex → its holder's name


@dataclass(frozen=True)
class Session:
    """Who is signed in, and until when."""

    holder: str
    nonce: str
    expires: datetime


class Access:
    """The door: open tokens are looked up at each request, wrong ones counted for each address.

    holders  gives the tokens that open now
    clock    gives the time, in UTC
    """

    def __init__(self, holders: Callable[[], Holders], clock: Callable[[], datetime]) -> None:
        self._holders = holders
        self._clock = clock
        self._attempts = Attempts(TRIES, TRIES_WITHIN, clock)
        self._ended: dict[str, datetime] = {}  # nonces that signed out → when they expire anyway
        self._lock = threading.Lock()

    def sign_in(self, token: str, address: str) -> str | None:
        """Return a session's cookie for a token that opens, else None and one failure more for the address.

        Raises BadToken, without looking at the token, when the address has failed too often lately.
        """
        self._attempts.check(address)
        digest = token_hash(token.strip())
        # Every known hash is compared, each in constant time: the answer's delay tells nothing.
        found = [known for known in self._holders() if hmac.compare_digest(known, digest)]
        if not found:
            self._attempts.failed(address)
            return None
        return _seal(found[0], self._clock() + LIFETIME, secrets.token_hex(16))

    def session(self, cookie: str) -> Session | None:
        """Return the session of a cookie, or None when it is forged, expired, signed out or its token is gone."""
        parts = cookie.split(".")
        if len(parts) != 4 or not cookie.isascii() or not parts[1].isdecimal() or len(parts[1]) != 10:
            return None
        expires = datetime.fromtimestamp(int(parts[1]), UTC)
        for known, holder in self._holders().items():
            if hmac.compare_digest(_seal(known, expires, parts[2]), cookie):
                with self._lock:
                    over = expires <= self._clock() or parts[2] in self._ended
                return None if over else Session(holder, parts[2], expires)
        return None

    def sign_out(self, session: Session) -> None:
        """End a session; its cookie opens nothing from now on."""
        now = self._clock()
        with self._lock:
            for nonce in [nonce for nonce, expires in self._ended.items() if expires <= now]:
                del self._ended[nonce]
            self._ended[session.nonce] = session.expires


def open_tokens(engine: Engine, own_hash: str) -> Callable[[], Holders]:
    """Make the look-up of tokens that open: the aggregator's own, if it has one, and those of enrolled operators."""
    own = {own_hash: "operator"} if own_hash else {}

    def holders() -> Holders:
        query = (
            select(DashboardToken.token_hash, DashboardToken.member)
            .join(Member, Member.name == DashboardToken.member)
            .where(Member.role == "operator", Member.state == "enrolled")
        )
        with reading(engine) as session:
            return own | {row.token_hash: row.member for row in session.execute(query)}

    return holders


def _seal(known: str, expires: datetime, nonce: str) -> str:
    key = known.encode()
    name = hashlib.sha256(b"cairn dashboard token id\n" + key).hexdigest()[:16]
    text = f"{name}.{int(expires.timestamp())}.{nonce}"
    seal = hmac.new(key, b"cairn dashboard session\n" + text.encode(), hashlib.sha256).hexdigest()
    return f"{text}.{seal}"
