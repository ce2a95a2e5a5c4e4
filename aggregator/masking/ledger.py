"""What a session has come to, read from its stored messages and nothing else.

Kinds of messages: of a site "advertisement", "chain" (the certificate that it signed with), "dealing", "receipt",
"vote", "reveal"; the aggregator's own "roster", "circle", "survivors", "votes". Each is stored once, before it is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Final, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session as Database

from aggregator import tables
from cairn.errors import RosterChanged, UnknownPlan
from cairn.masking.canonical import decode, digest, encode
from cairn.masking.checks import Agreed, Identities, Joined, agreed, joined
from cairn.masking.messages import (
    Circle,
    Dealing,
    Reveal,
    Roster,
    Session,
    SignedAdvertisement,
    SignedReceipt,
    SignedVote,
    Survivors,
    Votes,
)

OWN: Final = ""  # in the place of a site's name
DECODED, SESSIONS = 4096, 4  # messages, and rosters and circles, that are kept as they were read
M = TypeVar("M")


def masked_words(rows: Database, plans: Select[str] | Sequence[str]) -> set[str]:
    """Give the digests of the blobs of masked words that sites have sent for some plans."""
    receipts = (
        select(tables.MaskingMessage.body)
        .join(tables.MaskingSession, tables.MaskingSession.digest == tables.MaskingMessage.session)
        .where(tables.MaskingSession.plan.in_(plans), tables.MaskingMessage.kind == "receipt")
    )
    return {decode(SignedReceipt, body).body.masked.hex() for body in rows.scalars(receipts)}


@dataclass(frozen=True)
class Held:
    """One session.

    messages  bytes by (kind, site)
    """

    digest: str
    plan: str
    session: Session
    since: datetime
    messages: Mapping[tuple[str, str], bytes]

    def own(self, kind: str, of: type[M]) -> M | None:
        """Read a message of the aggregator's own; None before it was made."""
        found = self.messages.get((kind, OWN))
        return None if found is None else _decoded(of, found)

    def of_sites(self, kind: str, of: type[M]) -> dict[str, M]:
        """Read the sites' messages of a kind, by site."""
        return {site: _decoded(of, body) for (k, site), body in self.messages.items() if k == kind}

    @cached_property
    def made(self) -> frozenset[str]:
        """The kinds of the aggregator's own messages that are there."""
        return frozenset(kind for kind, site in self.messages if site == OWN)

    def require(self, kind: str, what: str) -> bytes:
        """Return a message of the aggregator's own. Raises RosterChanged before it was made."""
        found = self.messages.get((kind, OWN))
        if found is None:
            raise RosterChanged(f"this session has no {what} yet; follow its messages in their order")
        return found

    def place(self, site: str) -> int:
        """Return a site's place in the roster. Raises RosterChanged when it is not in it."""
        names = [signed.body.site for signed in self.on.roster.members]
        if site not in names:
            raise RosterChanged("this site is not in the roster of the session; wait for the next")
        return names.index(site)

    @cached_property
    def advertisements(self) -> dict[str, SignedAdvertisement]:
        """Message 1 of each site."""
        return self.of_sites("advertisement", SignedAdvertisement)

    @cached_property
    def chains(self) -> dict[str, str]:
        """The certificate chain, PEM, that each site signed its advertisement with."""
        return {site: body.decode() for (kind, site), body in self.messages.items() if kind == "chain"}

    @cached_property
    def identities(self) -> Identities:
        """The key of each site's certificate."""
        return {site: leaf_key(chain) for site, chain in self.chains.items()}

    @cached_property
    def on(self) -> Agreed:
        """The roster. Raises RosterChanged before there is one."""
        return _agreed(self.require("roster", "roster"))

    @cached_property
    def within(self) -> Joined:
        """The circle. Raises RosterChanged before there is one."""
        return _joined(self.require("circle", "circle"))

    @cached_property
    def dealings(self) -> dict[int, Dealing]:
        """Message 3 of each member."""
        return {self.place(site): dealing for site, dealing in self.of_sites("dealing", Dealing).items()}

    @property
    def circle_dealings(self) -> dict[int, Dealing]:
        """Message 3 of those who are in the circle."""
        return {member: self.dealings[member] for member in self.within.dealers}

    @cached_property
    def receipts(self) -> dict[int, SignedReceipt]:
        """Message 5 of each member."""
        return {self.place(site): found for site, found in self.of_sites("receipt", SignedReceipt).items()}

    @cached_property
    def survivors(self) -> Survivors | None:
        """Message 6; without receipts it is proposed to give up."""
        return self.own("survivors", Survivors)

    @property
    def surviving(self) -> tuple[int, ...]:
        """The members named in message 6."""
        return tuple(signed.body.member for signed in self.survivors.receipts) if self.survivors else ()

    @cached_property
    def signed_votes(self) -> dict[int, SignedVote]:
        """Message 7 of each member."""
        return {self.place(site): found for site, found in self.of_sites("vote", SignedVote).items()}

    @cached_property
    def votes(self) -> Votes | None:
        """Message 8."""
        return self.own("votes", Votes)

    @cached_property
    def reveals(self) -> dict[int, Reveal]:
        """Message 9 of each member."""
        return {self.place(site): found for site, found in self.of_sites("reveal", Reveal).items()}

    @property
    def given_up(self) -> bool:
        """Whether enough sites voted to give the session up."""
        return self.votes is not None and not self.surviving


# A session is read anew for every call of a site, and no message in it ever changes: to read what was read before was
# half of the work at 120 sites.
@lru_cache(DECODED)
def _remembered(of: Any, body: bytes) -> Any:
    return decode(of, body)


def _decoded(of: type[M], body: bytes) -> M:
    found: M = _remembered(cast("Any", of), body)  # mypy takes no class for hashable
    return found


def forget() -> None:
    """Let go of what is remembered: at 1,000 sites a session's messages are some 200 MB."""
    for remembered in (_remembered, _agreed, _joined, leaf_key):
        remembered.cache_clear()


@lru_cache(SESSIONS)
def _agreed(roster: bytes) -> Agreed:
    return agreed(decode(Roster, roster))


@lru_cache(SESSIONS)
def _joined(circle: bytes) -> Joined:
    return joined(decode(Circle, circle))


@lru_cache(DECODED)
def leaf_key(chain_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a chain's first certificate."""
    key = x509.load_pem_x509_certificates(chain_pem.encode())[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # the CA signs no others
    return key


def begin(database: Database, session: Session, now: datetime) -> None:
    """Store a session; one that is there stays as it is."""
    name = digest(session).hex()
    if database.get(tables.MaskingSession, name) is None:
        database.add(
            tables.MaskingSession(
                digest=name,
                plan=session.fingerprint.hex(),
                attempt=session.attempt,
                body=encode(session),
                step_since=now,
            )
        )


def read(database: Database, name: str) -> Held:
    """Read a session by its digest, hex. Raises UnknownPlan."""
    row = database.get(tables.MaskingSession, name)
    if row is None:
        raise UnknownPlan(f"no masked sum {name[:12]} was begun here; ask what is open again")
    return _held(database, row)


def newest(database: Database, plan: str, kind: str, site: str) -> bytes | None:
    """Return a site's message of a kind in a plan's last attempt, None where there is none."""
    last = select(tables.MaskingSession.digest).filter_by(plan=plan).order_by(tables.MaskingSession.attempt.desc())
    session = database.scalars(last.limit(1)).one_or_none()
    found = None if session is None else database.get(tables.MaskingMessage, (session, kind, site))
    return None if found is None else found.body


def of_plan(database: Database, plan: str) -> list[Held]:
    """Read all sessions of a plan, the first attempt first."""
    query = select(tables.MaskingSession).filter_by(plan=plan).order_by(tables.MaskingSession.attempt)
    return [_held(database, row) for row in database.scalars(query)]


def keep(database: Database, held: Held, kind: str, site: str, body: bytes) -> bool:
    """Store a message; tells whether it is new. Raises RosterChanged for another one than is there."""
    before = database.get(tables.MaskingMessage, (held.digest, kind, site))
    if before is None:
        database.add(tables.MaskingMessage(session=held.digest, kind=kind, site=site, body=body))
        return True
    if before.body != body:
        raise RosterChanged(f"another {kind} was sent in this session before; send that one, or wait for the next")
    return False


def step(database: Database, held: Held, kind: str, body: bytes, now: datetime) -> None:
    """Store a message of the aggregator's own, with which the session comes to its next step."""
    if keep(database, held, kind, OWN, body):
        database.get_one(tables.MaskingSession, held.digest).step_since = now


def wait_anew(database: Database, plan: str, now: datetime) -> None:
    """Let the step that a plan's sessions wait in begin now: the plan was opened again."""
    database.execute(update(tables.MaskingSession).filter_by(plan=plan).values(step_since=now))


def _held(database: Database, row: tables.MaskingSession) -> Held:
    table = tables.MaskingMessage
    query = select(table.kind, table.site, table.body).filter_by(session=row.digest)
    messages = {(kind, site): body for kind, site, body in database.execute(query)}
    return Held(row.digest, row.plan, decode(Session, row.body), row.step_since, messages)
