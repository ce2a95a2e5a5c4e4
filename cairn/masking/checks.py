"""What both sides check of a message, the same way: the sites need not believe the aggregator, nor it the sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric import ec

from cairn.errors import IdentityError, MaskingError, RosterChanged, TooFewSurvivors
from cairn.masking.canonical import digest, encode
from cairn.masking.keys import KEY_BYTES, verify
from cairn.masking.messages import (
    Circle,
    Roster,
    Session,
    SignedAdvertisement,
    SignedDeal,
    SignedReceipt,
    SignedVote,
    Survivors,
    Vote,
    Votes,
)
from cairn.masking.rules import Rules, connected, neighbours, rules

Identities = Mapping[str, ec.EllipticCurvePublicKey]  # site name → the key of its certificate


@dataclass(frozen=True)
class Agreed:
    """A roster with its digest and its numbers, worked out once."""

    roster: Roster
    digest: bytes
    numbers: Rules

    def name(self, member: int) -> str:
        """Name a member. Raises MaskingError for a place that the roster does not have."""
        if member >= self.numbers.members:
            raise MaskingError(f"member {member} is named in a roster of {self.numbers.members}; stop this session")
        return self.roster.members[member].body.site


@dataclass(frozen=True)
class Joined:
    """A circle with its digest, worked out once."""

    circle: Circle
    digest: bytes

    @property
    def dealers(self) -> list[int]:
        """The members in it, rising."""
        return [signed.body.dealer for signed in self.circle.deals]


def agreed(roster: Roster) -> Agreed:
    """Work out digest and numbers of a roster that was checked before. Raises MaskingError for unsafe numbers."""
    return Agreed(roster, digest(roster), rules(roster.session, len(roster.members)))


def joined(circle: Circle) -> Joined:
    """Work out the digest of a circle that was checked before."""
    return Joined(circle, digest(circle))


def check_advertisement(session: bytes, advertisement: SignedAdvertisement, identities: Identities) -> None:
    """Refuse an advertisement of another session, of no known site or not signed by it. Raises IdentityError too."""
    body = advertisement.body
    if body.session != session:
        raise RosterChanged("keys were advertised for another session than this one; stop this session")
    _verify(body.site, encode(body), advertisement.signature, identities)
    if len(body.cipher_key) != KEY_BYTES or len(body.mask_key) != KEY_BYTES:
        raise MaskingError(f"{body.site[:80]!r} advertised keys that are not of {KEY_BYTES} bytes; leave it out")


def check_roster(roster: Roster, identities: Identities) -> Agreed:
    """Refuse a roster that is unsorted, names a site or a key twice, or holds a bad advertisement."""
    session = digest(roster.session)
    names = [member.body.site for member in roster.members]
    if names != sorted(set(names)):
        raise MaskingError("the roster is not sorted by name, each site once; stop this session")
    keys = {key for member in roster.members for key in (member.body.cipher_key, member.body.mask_key)}
    if len(keys) != 2 * len(names):
        raise MaskingError("the roster holds a public key twice; stop this session")
    for member in roster.members:
        check_advertisement(session, member, identities)
    return agreed(roster)


def check_deal(on: Agreed, deal: SignedDeal, identities: Identities) -> None:
    """Refuse a deal of another roster, to others than the rules allow, or not signed by its dealer."""
    body, numbers = deal.body, on.numbers
    if body.roster != on.digest:
        raise RosterChanged("shares were dealt for another roster than this session's; stop this session")
    who = on.name(body.dealer)
    check_rising(body.holders)
    if len(body.holders) != numbers.degree or body.dealer in body.holders or body.holders[-1] >= numbers.members:
        raise MaskingError(f"{who[:80]!r} did not deal to {numbers.degree} others; leave it out")
    _verify(who, encode(body), deal.signature, identities)


def check_circle(on: Agreed, circle: Circle, identities: Identities) -> Joined:
    """Refuse a circle of another roster, of too few sites, or with a bad deal. Raises TooFewSurvivors too."""
    if circle.roster != on.digest:
        raise RosterChanged("the circle is of another roster than the one that was agreed to; stop this session")
    check_rising([deal.body.dealer for deal in circle.deals])
    if len(circle.deals) < on.numbers.threshold:
        raise TooFewSurvivors(
            f"{len(circle.deals)} of {on.numbers.members} sites dealt their shares and {on.numbers.threshold} are "
            "needed; try again with another session"
        )
    for deal in circle.deals:
        check_deal(on, deal, identities)
    return joined(circle)


def check_receipt(on: Agreed, within: Joined, signed: SignedReceipt, identities: Identities) -> None:
    """Refuse a receipt of another roster or circle, of windows that the session is not for, or not signed."""
    body = signed.body
    if (body.roster, body.circle) != (on.digest, within.digest):
        raise RosterChanged("an upload was masked under another roster or circle than this one; stop this session")
    who = on.name(body.member)
    check_covers(on.roster.session, body.covers)
    if len(body.masked) != 32:
        raise MaskingError("the receipt of a masked upload does not carry a SHA-256; send it again")
    _verify(who, encode(body), signed.signature, identities)


def check_covers(session: Session, covers: tuple[bytes, ...]) -> None:
    """Refuse windows that the session is not for. Raises MaskingError."""
    if not covers or covers != tuple(sorted(set(covers) & {session.fingerprint, *session.late})):
        raise MaskingError("an upload covers no window, or one that this session is not for; leave it out")


def check_survivors(on: Agreed, within: Joined, survivors: Survivors, identities: Identities) -> tuple[int, ...]:
    """Refuse survivors who are too few, did not deal, could be summed apart, or have other receipts.

    returns  the members, rising; none when the session is to be given up
    """
    members = tuple(receipt.body.member for receipt in survivors.receipts)
    check_rising(members)
    if members and len(members) < on.numbers.threshold:
        raise TooFewSurvivors(
            f"{len(members)} of {on.numbers.members} sites uploaded and {on.numbers.threshold} are needed; "
            "wait for more of them, or give the session up"
        )
    if not set(members) <= set(within.dealers):
        raise MaskingError("a site is named a survivor that dealt no shares; stop this session")
    check_together(on, within, frozenset(members))
    for receipt in survivors.receipts:
        check_receipt(on, within, receipt, identities)
    return members


def check_together(on: Agreed, within: Joined, survivors: frozenset[int]) -> None:
    """Refuse survivors among whom some would be masked by too few who survive. Raises TooFewSurvivors, MaskingError."""
    for signed in within.circle.deals:
        body = signed.body
        if body.dealer in survivors and len(survivors & set(body.holders)) < on.numbers.beside:
            raise TooFewSurvivors(
                f"too few survive beside {on.name(body.dealer)[:80]!r} to keep its counts hidden; wait for more sites"
            )
    if not connected(neighbours(within.circle.deals), survivors):
        raise MaskingError("the survivors fall into groups that could be summed apart; stop this session")


def check_vote(on: Agreed, vote: SignedVote, identities: Identities) -> None:
    """Refuse a vote of another roster, or not signed by its voter."""
    if vote.body.roster != on.digest:
        raise RosterChanged("a vote is of another roster than this session's; stop this session")
    _verify(on.name(vote.body.voter), encode(vote.body), vote.signature, identities)


def check_votes(on: Agreed, votes: Votes, identities: Identities) -> Vote:
    """Refuse votes that are not equal, or too few. Returns what was agreed to. Raises TooFewSurvivors too."""
    check_rising([vote.body.voter for vote in votes.votes])
    if len(votes.votes) < on.numbers.threshold:
        raise TooFewSurvivors(
            f"{len(votes.votes)} sites agreed to the survivors and {on.numbers.threshold} are needed; wait for more"
        )
    if len({(vote.body.circle, vote.body.survivors) for vote in votes.votes}) != 1:
        raise MaskingError("sites agreed to different survivors: the aggregator told them different things; stop")
    for vote in votes.votes:
        check_vote(on, vote, identities)
    return votes.votes[0].body


def check_rising(members: Sequence[int]) -> None:
    """Refuse members that are not rising, each once. Raises MaskingError."""
    if any(a >= b for a, b in pairwise(members)):
        raise MaskingError("members are named twice or out of order; stop this session")


def _verify(who: str, message: bytes, signature: bytes, identities: Identities) -> None:
    if who not in identities:
        raise IdentityError(f"no certificate is known of {who[:80]!r}; leave it out")
    verify(identities[who], message, signature, repr(who[:80]))
