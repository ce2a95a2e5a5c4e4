"""A site's steps: each from what it remembers and one message to what it then remembers and a reply.

    begin → advertise → deal(roster) → take(delivery) → fix(tally) → mask → confirm → vote(survivors) → reveal(votes)

A step either refuses or gives the same answer to the same message for ever, and never a second answer to another one.
So whoever carries the messages has one rule: *write the memory down before the reply leaves*. Then the site may be
killed anywhere; it repeats the step with what it remembers.
"""

from collections.abc import Iterable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from cairn.errors import MaskingError, RosterChanged, TooFewSurvivors
from cairn.masking.canonical import decode, digest, encode
from cairn.masking.checks import (
    Identities,
    check_circle,
    check_covers,
    check_roster,
    check_survivors,
    check_votes,
)
from cairn.masking.keys import KEY_BYTES, agree, derive, seal, sign
from cairn.masking.memory import (
    Memory,
    advertisement,
    box_key,
    held_shares,
    holders,
    mask_key,
    own_shares,
    self_seed,
    share_digests,
    there,
)
from cairn.masking.messages import (
    KEY,
    SELF,
    Contents,
    Deal,
    Dealing,
    Delivery,
    Receipt,
    Reveal,
    Roster,
    SelfMask,
    Session,
    Share,
    SignedAdvertisement,
    SignedDeal,
    SignedReceipt,
    SignedVote,
    Survivors,
    Vote,
    Votes,
)
from cairn.masking.rules import neighbours, pair
from cairn.masking.stream import Mask

Key = ec.EllipticCurvePrivateKey


def begin(session: Session, site: str, seed: bytes) -> Memory:
    """Begin a session with 32 random bytes that are used for nothing else."""
    assert len(seed) == KEY_BYTES
    return Memory(session, site, seed)


def advertise(memory: Memory, key: Key) -> SignedAdvertisement:
    """Message 1: the site's public keys for this session, signed."""
    body = advertisement(memory)
    return SignedAdvertisement(body, sign(key, encode(body)))


def deal(memory: Memory, roster: Roster, key: Key, identities: Identities, *, least: int) -> tuple[Memory, Dealing]:
    """Agree to a roster and deal shares of both secrets: message 3.

    identities  the certificate keys of the sites that this site is ready to be summed with
    least       members that the site's own policy asks for
    Raises RosterChanged for another session or a second roster; IdentityError, MaskingError, TooFewSurvivors.
    """
    encoded = encode(roster)
    if memory.roster not in {b"", encoded}:
        raise RosterChanged("the aggregator sent two different rosters for one session; stop this session")
    if roster.session != memory.session:
        raise RosterChanged("the roster is of another session than the one this site advertised for; stop it")
    on = check_roster(roster, identities)
    if on.numbers.members < least:
        raise TooFewSurvivors(f"the roster has {on.numbers.members} sites; this site's policy asks for {least}")
    member, shares = memory.place(roster), own_shares(memory, on)
    if roster.members[member].body != advertisement(memory):
        raise RosterChanged("the roster holds keys of this site that it did not advertise now; stop this session")
    contents = Contents(
        sealed=tuple(
            seal(box_key(memory, on, member, holder), b"".join(both), on.digest)
            for holder, both in shares.items()
            if holder != member
        ),
        share_digests=tuple(one for holder, both in shares.items() for one in share_digests(on, member, holder, both)),
        self_digest=digest(SelfMask(on.digest, member, self_seed(memory, on))),
    )
    body = Deal(on.digest, member, holders(memory, on), digest(contents))
    return replace(memory, roster=encoded), Dealing(SignedDeal(body, sign(key, encode(body))), contents)


def take(memory: Memory, delivery: Delivery, identities: Identities) -> Memory:
    """Agree to a circle and to the shares that others dealt to this site: message 4.

    Raises RosterChanged for a second delivery or another roster; MaskingError when a share is not what its dealer said;
    TooFewSurvivors when too few of this site's own holders are in the circle.
    """
    encoded = encode(delivery)
    if memory.delivery not in {b"", encoded}:
        raise RosterChanged("the aggregator delivered two different circles in one session; stop this session")
    if memory.vote and not memory.delivery:
        raise MaskingError("this site gave the session up before; wait for the next")
    on, member = memory.agreed(), memory.place(memory.agreed().roster)
    check_circle(on, delivery.circle, identities)
    deals = {signed.body.dealer: signed.body for signed in delivery.circle.deals}
    if member not in deals or deals[member].holders != holders(memory, on):
        raise RosterChanged("this site's own deal is not in the circle as it was sent; stop this session")
    if len(set(deals[member].holders) & set(deals)) < on.numbers.beside:
        raise TooFewSurvivors("too few of the sites that hold this site's shares are in the circle; try again later")
    if [parcel.dealer for parcel in delivery.parcels] != [d for d, body in deals.items() if member in body.holders]:
        raise MaskingError("the shares delivered are not those that were dealt to this site; stop this session")
    held_shares(memory, on, delivery)
    return replace(memory, delivery=encoded)


def fix(memory: Memory, tally: bytes, covers: tuple[bytes, ...], earlier: Iterable[Memory]) -> Memory:
    """Fix which counts this session masks; to be written down before the first masked byte leaves.

    Two tallies under one mask, or one tally in two sums, could be subtracted from each other.

    tally    SHA-256 of the plain words
    covers   fingerprints of the windows in them, rising
    earlier  all of the site's memories; its own among them does no harm
    Raises MaskingError.
    """
    there(memory.delivery, "delivery of shares")
    check_covers(memory.session, covers)
    if memory.tally and (memory.tally, memory.covers) != (tally, covers):
        raise MaskingError("other counts were masked in this session before; a mask is used for one tally alone")
    if memory.vote and not memory.tally:
        raise MaskingError("this site voted already and can send no counts in this session; wait for the next")
    for other in earlier:
        shared = sorted(set(other.covers) & set(covers))
        itself = (other.session, other.seed) == (memory.session, memory.seed)
        if shared and other.tally and not other.free and not itself:
            raise MaskingError(
                f"window {shared[0].hex()[:12]} was masked in attempt {other.session.attempt} and may be in its sum; "
                "it can go out again when enough sites agreed to leave it out there"
            )
    return replace(memory, tally=tally, covers=covers)


def mask(memory: Memory, start: int = 0) -> Mask:
    """Make the mask of this site's words: its self-mask, and a pair mask with each neighbour in the circle.

        y_i = x_i + PRG(b_i) + Σ_{j > i} PRG(k_ij) - Σ_{j < i} PRG(k_ij)    mod 2^bits        Bonawitz et al. 2017, §4

    start  index of the first word, to go on after a break
    """
    there(memory.tally, "tally fixed")
    on, within = memory.agreed(), memory.joined()
    member, private = memory.place(on.roster), mask_key(memory)
    plus, minus = [derive(self_seed(memory, on), within.digest, "self mask")], list[bytes]()
    for other in sorted(neighbours(within.circle.deals)[member]):
        key = agree(private, on.roster.members[other].body.mask_key, within.digest, pair(member, other))
        (plus if member < other else minus).append(key)
    return Mask(plus, minus, memory.session.bits, start)


def confirm(memory: Memory, masked: bytes, key: Key) -> tuple[Memory, SignedReceipt]:
    """Sign for the masked upload: message 5, sent with its last byte.

    masked  SHA-256 of the masked words' little-endian bytes
    Raises MaskingError when the site signed for other bytes before, or voted.
    """
    there(memory.tally, "tally fixed")
    on = memory.agreed()
    body = Receipt(on.digest, memory.joined().digest, memory.place(on.roster), memory.covers, masked)
    if memory.receipt:
        signed = decode(SignedReceipt, memory.receipt)
        if signed.body != body:
            raise MaskingError("another masked upload was signed for in this session; send that one")
        return memory, signed
    if memory.vote:
        raise MaskingError("this site voted already and can send no counts in this session; wait for the next")
    signed = SignedReceipt(body, sign(key, encode(body)))
    return replace(memory, receipt=encode(signed)), signed


def vote(
    memory: Memory, survivors: Survivors, key: Key, identities: Identities, *, least: int
) -> tuple[Memory, SignedVote]:
    """Agree to one set of survivors, or to giving the session up (no survivors): message 7.

    least  survivors that the site's own policy asks for
    Raises MaskingError for a second, different set and for one that would bare some site; TooFewSurvivors.
    """
    on = memory.agreed()
    member = memory.place(on.roster)
    body = Vote(on.digest, b"", member, ())
    if survivors.receipts:
        within = memory.joined()
        members = check_survivors(on, within, survivors, identities)
        if len(members) < least:
            raise TooFewSurvivors(f"{len(members)} sites would be summed; this site's policy asks for {least}")
        own = [signed.body for signed in survivors.receipts if signed.body.member == member]
        if own and (not memory.receipt or own[0] != decode(SignedReceipt, memory.receipt).body):
            raise MaskingError("an upload is counted in this site's name that it did not sign for; stop this session")
        body = Vote(on.digest, within.digest, member, members)
    if memory.vote:
        signed = decode(SignedVote, memory.vote)
        if signed.body != body:
            raise MaskingError("the aggregator named two different sets of survivors in one session; stop it")
        return memory, signed
    signed = SignedVote(body, sign(key, encode(body)))
    return replace(memory, vote=encode(signed)), signed


def reveal(memory: Memory, votes: Votes, identities: Identities) -> Reveal:
    """Reveal the shares that this site holds: of survivors' self-masks and of the others' pair keys; message 9.

    Raises MaskingError when the votes are not for what this site voted; TooFewSurvivors.
    """
    on = memory.agreed()
    agreed_to = check_votes(on, votes, identities)
    own = decode(SignedVote, there(memory.vote, "vote")).body
    if (agreed_to.circle, agreed_to.survivors) != (own.circle, own.survivors):
        raise MaskingError("the survivors agreed to are not those for whom this site voted; stop this session")
    if not own.survivors:
        raise MaskingError("the session was given up; there is nothing to reveal")
    held = held_shares(memory, on, memory.delivered())
    held[own.voter] = own_shares(memory, on)[own.voter]
    shares = []
    for dealer, (of_self, of_key) in sorted(held.items()):
        kind, value = (SELF, of_self) if dealer in own.survivors else (KEY, of_key)
        shares.append(Share(on.digest, dealer, own.voter, kind, value))
    return Reveal(on.digest, own.voter, tuple(shares))


def release(memory: Memory, votes: Votes, identities: Identities) -> Memory:
    """Set the tally free for another session, on the proof that enough sites agreed to survivors without this one.

    Two sets cannot both be agreed to (`Rules.threshold`), so these counts are in no sum of this session's.
    Raises MaskingError when this site is among the survivors; TooFewSurvivors.
    """
    on = memory.agreed()
    if memory.place(on.roster) in check_votes(on, votes, identities).survivors:
        raise MaskingError("this site's counts are in the sum; they cannot go out again")
    return replace(memory, free=1)
