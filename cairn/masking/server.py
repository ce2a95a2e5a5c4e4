"""The aggregator's side: pure functions of the messages that it has stored; its state is what lies in its ledger.

For each kind of message an `accept_…`, which refuses a bad one before it is stored, and for each answer a `make_…`,
which the aggregator stores before it sends it and then never makes again: a session has one roster, one circle, one
set of survivors.
"""

from collections.abc import Iterable, Mapping, Sequence

from cairn.errors import MaskingError, RosterChanged, TooFewSurvivors
from cairn.masking.canonical import digest
from cairn.masking.checks import (
    Agreed,
    Identities,
    Joined,
    check_advertisement,
    check_circle,
    check_deal,
    check_receipt,
    check_roster,
    check_survivors,
    check_vote,
    check_votes,
)
from cairn.masking.keys import agree, check_public, derive, public_half
from cairn.masking.messages import (
    KEY,
    SELF,
    Circle,
    Deal,
    Dealing,
    Delivery,
    Parcel,
    Reveal,
    Roster,
    SelfMask,
    Session,
    SignedAdvertisement,
    SignedReceipt,
    SignedVote,
    Survivors,
    Votes,
)
from cairn.masking.rules import neighbours, pair
from cairn.masking.shares import SHARE_BYTES, join
from cairn.masking.stream import Mask

SEALED_BYTES = 2 * SHARE_BYTES + 16  # two shares and the tag of AES-GCM

Dealings = Mapping[int, Dealing]  # by dealer


def accept_advertisement(session: Session, advertisement: SignedAdvertisement, identities: Identities) -> None:
    """Refuse message 1 of another session, of an unknown site, badly signed or with a key that stops the others."""
    check_advertisement(digest(session), advertisement, identities)
    check_public(advertisement.body.cipher_key)
    check_public(advertisement.body.mask_key)


def make_roster(session: Session, advertisements: Iterable[SignedAdvertisement], identities: Identities) -> Roster:
    """Fix who takes part: message 2."""
    roster = Roster(session, tuple(sorted(advertisements, key=lambda signed: signed.body.site)))
    check_roster(roster, identities)
    return roster


def accept_dealing(on: Agreed, dealing: Dealing, identities: Identities) -> None:
    """Refuse message 3 when its deal or its contents are not as the rules say."""
    check_deal(on, dealing.deal, identities)
    body, contents = dealing.deal.body, dealing.contents
    lengths = [len(box) for box in contents.sealed], [len(found) for found in contents.share_digests]
    expected = [SEALED_BYTES] * len(body.holders), [32] * (2 * len(body.holders) + 2)
    if lengths != expected or len(contents.self_digest) != 32 or body.contents != digest(contents):
        raise MaskingError(f"the shares that member {body.dealer} dealt are not what it signed for; leave it out")


def make_circle(on: Agreed, dealings: Dealings, identities: Identities) -> Circle:
    """Fix who masks with whom: the common part of message 4. Raises TooFewSurvivors."""
    circle = Circle(on.digest, tuple(dealing.deal for _, dealing in sorted(dealings.items())))
    check_circle(on, circle, identities)
    return circle


def make_delivery(within: Joined, dealings: Dealings, member: int) -> Delivery:
    """Put together the circle and what was dealt to one member: message 4."""
    parcels = []
    for signed in within.circle.deals:
        body, contents = signed.body, dealings[signed.body.dealer].contents
        if member in body.holders:
            at = _place(body, member)
            sealed = contents.sealed[body.holders.index(member)]
            parcels.append(Parcel(body.dealer, sealed, *contents.share_digests[2 * at : 2 * at + 2]))
    return Delivery(within.circle, tuple(parcels))


def accept_receipt(
    on: Agreed, within: Joined, receipt: SignedReceipt, masked: bytes, size: int, identities: Identities
) -> None:
    """Refuse message 5 when it is not for the bytes that came with it.

    masked  SHA-256 of the masked words as they were received
    size    their number of bytes
    """
    check_receipt(on, within, receipt, identities)
    session = on.roster.session
    if size != session.words * session.bits // 8 or masked != receipt.body.masked:
        raise MaskingError(
            f"a masked upload of {size} bytes is not the one signed for, {session.words} words of {session.bits} bits"
        )
    if receipt.body.member not in within.dealers:
        raise MaskingError("an upload came from a site that dealt no shares; it waits for another session")


def make_survivors(on: Agreed, within: Joined, receipts: Iterable[SignedReceipt], identities: Identities) -> Survivors:
    """Fix whose uploads are to be added: message 6; without receipts, propose to give up. Raises TooFewSurvivors."""
    survivors = Survivors(tuple(sorted(receipts, key=lambda signed: signed.body.member)))
    check_survivors(on, within, survivors, identities)
    return survivors


def accept_vote(on: Agreed, circle: bytes, survivors: Sequence[int], vote: SignedVote, identities: Identities) -> None:
    """Refuse message 7 when it is not for the survivors that were named.

    circle  digest of the circle; empty, like the survivors, when it was proposed to give up
    """
    check_vote(on, vote, identities)
    if (vote.body.circle, vote.body.survivors) != (circle, tuple(survivors)):
        raise MaskingError("a site voted for other survivors than were named; stop this session")


def make_votes(on: Agreed, votes: Iterable[SignedVote], identities: Identities) -> Votes:
    """Put together the votes of enough sites: message 8. Raises TooFewSurvivors."""
    together = Votes(tuple(sorted(votes, key=lambda signed: signed.body.voter)))
    check_votes(on, together, identities)
    return together


def accept_reveal(on: Agreed, survivors: Sequence[int], dealings: Dealings, reveal: Reveal, sender: int) -> None:
    """Refuse message 9 with a share that its dealer did not sign for, or of the kind that was not asked for.

    dealings  of the circle
    sender    the member whose certificate the call carries
    """
    on.name(sender)
    if (reveal.roster, reveal.holder) != (on.digest, sender):
        raise RosterChanged(f"member {sender} revealed shares of another roster or in another's name; do not use them")
    expected = [d for d, dealing in sorted(dealings.items()) if sender in {d, *dealing.deal.body.holders}]
    if [share.dealer for share in reveal.shares] != expected:
        raise MaskingError(f"member {sender} did not reveal one share of each site that dealt to it; ask it again")
    for share in reveal.shares:
        kind = SELF if share.dealer in survivors else KEY
        dealing = dealings[share.dealer]
        at = 2 * _place(dealing.deal.body, sender) + (kind == KEY)
        if (share.kind, share.holder) != (kind, sender) or digest(share) != dealing.contents.share_digests[at]:
            raise MaskingError(f"member {sender} revealed a wrong share of member {share.dealer}; do without it")


def unmask(
    on: Agreed,
    within: Joined,
    dealings: Dealings,
    survivors: Sequence[int],
    reveals: Iterable[Reveal],
    start: int = 0,
) -> Mask:
    """Join the revealed shares and make what is to be applied to the sum of the survivors' masked words.

        Σ x_i = Σ y_i - Σ_{i survives} PRG(b_i) - Σ_{i lost} Σ_{j survives} ± PRG(k_ij)    mod 2^bits

    reveals  accepted ones
    start    index of the first word to come
    Raises TooFewSurvivors; MaskingError when a dealer's shares do not join to what it signed for.
    """
    shares: dict[int, dict[int, bytes]] = {dealer: {} for dealer in within.dealers}
    for reveal in reveals:
        for share in reveal.shares:
            shares[share.dealer][share.holder + 1] = share.value
    graph, alive, needed = neighbours(within.circle.deals), frozenset(survivors), on.numbers.shares
    plus, minus = list[bytes](), list[bytes]()
    for dealer, held in sorted(shares.items()):
        if dealer not in alive and not graph[dealer] & alive:
            continue
        if len(held) < needed:
            raise TooFewSurvivors(
                f"{len(held)} shares of member {dealer} were revealed and {needed} are needed; wait for more sites"
            )
        secret = join(held, needed)
        if dealer in alive:
            if digest(SelfMask(on.digest, dealer, secret)) != dealings[dealer].contents.self_digest:
                raise MaskingError(f"member {dealer} dealt shares of another self-mask than its own; leave it out")
            minus.append(derive(secret, within.digest, "self mask"))
            continue
        if public_half(secret) != on.roster.members[dealer].body.mask_key:
            raise MaskingError(f"member {dealer} dealt shares of another key than it advertised; leave it out")
        for other in sorted(graph[dealer] & alive):
            key = agree(secret, on.roster.members[other].body.mask_key, within.digest, pair(dealer, other))
            # The survivor added this mask when its own place comes first: take it away; else give it back.
            (minus if other < dealer else plus).append(key)
    return Mask(plus, minus, on.roster.session.bits, start)


def _place(deal: Deal, holder: int) -> int:
    return sorted((*deal.holders, deal.dealer)).index(holder)
