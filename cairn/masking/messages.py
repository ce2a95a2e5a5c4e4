"""The messages of secure aggregation, in the order in which they are sent (`cairn.masking`).

Members are named by their place in the roster, 0 to n - 1. Digests are SHA-256 of a message's canonical bytes;
a `Signed…` message carries the ECDSA signature of its body's canonical bytes by the site's certificate key.
"""

from dataclasses import dataclass

SELF, KEY = "self", "key"  # the two kinds of share: of a site's self-mask, and of its pair-mask key


@dataclass(frozen=True)
class Session:
    """What a masked sum is for. A site checks it against the plan that it approved.

    fingerprint  32 bytes, of the plan
    attempt      1, 2, …: a session that failed is followed by another; none is ever run twice
    words, bits  of the masked upload: the cells of all tables in order, each mod 2^bits
    may_drop     how many of a thousand sites may be lost before the sum is refused
    may_collude  how many of a thousand sites may side with the aggregator before a site's counts are at risk
    late         fingerprints of earlier windows of the same stage, whose sealed tallies a site may add to its own
    """

    fingerprint: bytes
    stage: str
    window: int
    attempt: int
    words: int
    bits: int
    may_drop: int
    may_collude: int
    late: tuple[bytes, ...]


@dataclass(frozen=True)
class Advertisement:
    """1. A site's two X25519 keys for one session."""

    session: bytes
    site: str
    cipher_key: bytes
    mask_key: bytes


@dataclass(frozen=True)
class SignedAdvertisement:
    """1, as sent."""

    body: Advertisement
    signature: bytes


@dataclass(frozen=True)
class Roster:
    """2. Who takes part, sorted by name; fixed from here on."""

    session: Session
    members: tuple[SignedAdvertisement, ...]


@dataclass(frozen=True)
class Deal:
    """3. To whom a site dealt shares of its two secrets, which makes them its neighbours; rising."""

    roster: bytes
    dealer: int
    holders: tuple[int, ...]
    contents: bytes


@dataclass(frozen=True)
class SignedDeal:
    """3, the part that all sites see."""

    body: Deal
    signature: bytes


@dataclass(frozen=True)
class Contents:
    """3, the part for the holders and the aggregator.

    sealed         one box a holder, with its two shares
    share_digests  of `Share`, two (self, key) for each of holders and dealer together, rising
    self_digest    of `SelfMask`
    """

    sealed: tuple[bytes, ...]
    share_digests: tuple[bytes, ...]
    self_digest: bytes


@dataclass(frozen=True)
class Dealing:
    """3, as sent."""

    deal: SignedDeal
    contents: Contents


@dataclass(frozen=True)
class Circle:
    """4. The sites that dealt, and so the graph of masks; fixed from here on."""

    roster: bytes
    deals: tuple[SignedDeal, ...]


@dataclass(frozen=True)
class Parcel:
    """4, one dealer's box for the receiving holder, with the digests of what should be in it."""

    dealer: int
    sealed: bytes
    self_share_digest: bytes
    key_share_digest: bytes


@dataclass(frozen=True)
class Delivery:
    """4, as sent to one member."""

    circle: Circle
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True)
class Receipt:
    """5. What a site's masked upload is: under which circle, of which windows, and its SHA-256."""

    roster: bytes
    circle: bytes
    member: int
    covers: tuple[bytes, ...]
    masked: bytes


@dataclass(frozen=True)
class SignedReceipt:
    """5, as sent."""

    body: Receipt
    signature: bytes


@dataclass(frozen=True)
class Survivors:
    """6. Whose uploads the aggregator wants to add, rising by member; none: it wants to give the session up."""

    receipts: tuple[SignedReceipt, ...]


@dataclass(frozen=True)
class Vote:
    """7. The one set of survivors that a site agrees to in this session; with none, `circle` is empty too."""

    roster: bytes
    circle: bytes
    voter: int
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class SignedVote:
    """7, as sent."""

    body: Vote
    signature: bytes


@dataclass(frozen=True)
class Votes:
    """8. At least the threshold's number of equal votes, rising by voter."""

    votes: tuple[SignedVote, ...]


@dataclass(frozen=True)
class Share:
    """9, a share that its holder reveals; never of both kinds for one dealer."""

    roster: bytes
    dealer: int
    holder: int
    kind: str
    value: bytes


@dataclass(frozen=True)
class Reveal:
    """9, as sent."""

    roster: bytes
    holder: int
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class SelfMask:
    """Never sent: what `Contents.self_digest` is of."""

    roster: bytes
    dealer: int
    seed: bytes
