"""What sites send into a session: checked against all that is stored of it, then stored, once."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as Database

from aggregator import database, tables
from aggregator.masking import late, ledger
from aggregator.masking.ledger import Held
from cairn.errors import IdentityError, MaskingError, Revoked, RosterChanged, UnknownPlan, WindowClosed
from cairn.masking import server
from cairn.masking.canonical import decode
from cairn.masking.messages import Dealing, Reveal, SignedAdvertisement, SignedReceipt, SignedVote

SESSION_BYTES = 32


class Arrivals:
    """Takes messages 1, 3, 5, 7 and 9; calls may be repeated.

    Every one raises MaskingError, IdentityError, UnknownPlan for no session, WindowClosed when its sum is made.

    changed  called after something was stored
    """

    def __init__(self, engine: Engine, now: Callable[[], datetime], changed: Callable[[], None]) -> None:
        self._engine, self._now, self._changed = engine, now, changed

    def advertise(self, site: str, session: bytes, body: bytes) -> None:
        """Take message 1, with the certificate that it was signed with; until the roster is made, a later one holds."""
        signed = decode(SignedAdvertisement, body)
        with database.writing(self._engine) as rows:
            held = _open(rows, session)
            if held.messages.get(("advertisement", site)) == body:
                return
            if signed.body.site != site:
                raise IdentityError(f"{site} advertised keys in the name of {signed.body.site[:80]!r}; leave it out")
            if "roster" in held.made:
                raise RosterChanged("the roster of this session is made; wait for the next")
            chain = _chain(rows, site, signed, held, self._now())
            for kind, found in (("advertisement", body), ("chain", chain.encode())):
                rows.merge(tables.MaskingMessage(session=held.digest, kind=kind, site=site, body=found))
        self._changed()

    def deal(self, site: str, session: bytes, body: bytes) -> None:
        """Take message 3, until the circle is made."""
        dealing = decode(Dealing, body)
        with database.writing(self._engine) as rows:
            held = _open(rows, session)
            _own(dealing.deal.body.dealer == held.place(site), "shares", site)
            if "circle" in held.made and ("dealing", site) not in held.messages:
                raise RosterChanged("the circle of this session is made; wait for the next")
            server.accept_dealing(held.on, dealing, held.identities)
            ledger.keep(rows, held, "dealing", site, body)
        self._changed()

    def receipt(self, rows: Database, plan: str, site: str, digest: str, size: int, body: bytes) -> None:
        """Take message 5 with the masked words that came, in the caller's transaction, until survivors are named."""
        held = _current(rows, plan)
        signed = decode(SignedReceipt, body)
        _own(signed.body.member == held.place(site), "masked words", site)
        if "survivors" in held.made and ("receipt", site) not in held.messages:
            raise WindowClosed("the survivors of this session are named; what came after is not in its sum")
        if late.booked(rows, site, signed.body.covers):
            raise MaskingError("a window in this upload is in a sum already; leave it out")
        server.accept_receipt(held.on, held.within, signed, bytes.fromhex(digest), size, held.identities)
        if ledger.keep(rows, held, "receipt", site, body):
            database.audit(rows, self._now(), f"site/{site}", "upload", plan, digest=digest, size=size, masked=True)

    def complete(self, rows: Database, plan: str, site: str, digest: str) -> bool:
        """Tell whether a site's masked words of the newest session are here already."""
        body = ledger.newest(rows, plan, "receipt", site)
        return body is not None and decode(SignedReceipt, body).body.masked.hex() == digest

    def vote(self, site: str, session: bytes, body: bytes) -> None:
        """Take message 7, once survivors are named."""
        signed = decode(SignedVote, body)
        with database.writing(self._engine) as rows:
            held = _open(rows, session)
            held.require("survivors", "survivors")
            _own(signed.body.voter == held.place(site), "a vote", site)
            circle = held.within.digest if held.surviving else b""
            server.accept_vote(held.on, circle, held.surviving, signed, held.identities)
            ledger.keep(rows, held, "vote", site, body)
        self._changed()

    def reveal(self, site: str, session: bytes, body: bytes) -> None:
        """Take message 9, once the votes are in."""
        reveal = decode(Reveal, body)
        with database.writing(self._engine) as rows:
            held = _open(rows, session)
            held.require("votes", "votes")
            server.accept_reveal(held.on, held.surviving, held.circle_dealings, reveal, held.place(site))
            ledger.keep(rows, held, "reveal", site, body)
        self._changed()


def _open(rows: Database, session: bytes) -> Held:
    if len(session) != SESSION_BYTES:
        raise UnknownPlan(f"a digest of {len(session)} bytes names no session; {SESSION_BYTES} are expected")
    held = ledger.read(rows, session.hex())
    if rows.get_one(tables.Plan, held.plan).state != "open":
        raise WindowClosed("the sum of this session is made; nothing is needed any more")
    return held


def _current(rows: Database, plan: str) -> Held:
    sessions = ledger.of_plan(rows, plan)
    if not sessions:
        raise UnknownPlan(f"no masked sum of the plan {plan[:12]} was begun; ask what is open again")
    return sessions[-1]


def _chain(rows: Database, site: str, signed: SignedAdvertisement, held: Held, now: datetime) -> str:
    """Find the certificate that an advertisement was signed with, among those of the site that hold."""
    member = rows.get(tables.Member, site)
    if member is None or member.state != "enrolled":
        raise Revoked(f"the site {site} is not enrolled (any more)")
    valid = select(tables.Certificate).where(
        tables.Certificate.member == site,
        tables.Certificate.revoked_at.is_(None),
        tables.Certificate.not_after > now,
    )
    refused: IdentityError | None = None
    for certificate in rows.scalars(valid.order_by(tables.Certificate.issued_at.desc())):
        try:
            identities = {site: ledger.leaf_key(certificate.chain_pem)}
            server.accept_advertisement(held.session, signed, identities)
        except IdentityError as error:
            refused = error
            continue
        return certificate.chain_pem
    raise refused or IdentityError(f"no certificate of {site} holds; enrol again")


def _own(so: bool, what: str, site: str) -> None:  # noqa: FBT001 - a condition, like an assertion's
    if not so:
        raise IdentityError(f"{site} sent {what} in another site's name; leave it out")
