"""What a site must keep of a session, and the secrets that follow from it."""

from dataclasses import dataclass

from cairn.errors import MaskingError, RosterChanged
from cairn.masking.canonical import decode, digest
from cairn.masking.checks import Agreed, Joined, agreed, joined
from cairn.masking.keys import agree, derive, public_half, unseal
from cairn.masking.messages import KEY, SELF, Advertisement, Delivery, Roster, Session, Share
from cairn.masking.rules import choose_holders
from cairn.masking.shares import SHARE_BYTES, split

BothShares = tuple[bytes, bytes]  # of the self-mask's seed, and of the pair-mask key


@dataclass(frozen=True)
class Memory:
    """All that a site must keep of a session; secret, like a private key. Empty: not come to yet.

    seed      32 secret random bytes, drawn for this session alone
    roster    what the site agreed to, encoded: Roster
    delivery  Delivery
    tally     SHA-256 of the plain words; from here on these counts must not go out in another session
    covers    the windows in them
    receipt   SignedReceipt
    vote      SignedVote
    free      1 when enough sites agreed to survivors without this one: the counts may go out in another session
    """

    session: Session
    site: str
    seed: bytes
    roster: bytes = b""
    delivery: bytes = b""
    tally: bytes = b""
    covers: tuple[bytes, ...] = ()
    receipt: bytes = b""
    vote: bytes = b""
    free: int = 0

    def agreed(self) -> Agreed:
        """Return the roster that this site agreed to. Raises MaskingError before there is one."""
        return agreed(decode(Roster, there(self.roster, "roster")))

    def delivered(self) -> Delivery:
        """Return what was delivered to this site. Raises MaskingError before there is anything."""
        return decode(Delivery, there(self.delivery, "delivery of shares"))

    def joined(self) -> Joined:
        """Return the circle that this site agreed to. Raises MaskingError before there is one."""
        return joined(self.delivered().circle)

    def place(self, roster: Roster) -> int:
        """Return this site's place in a roster. Raises RosterChanged when it is not in it."""
        for member, signed in enumerate(roster.members):
            if signed.body.site == self.site:
                return member
        raise RosterChanged("this site advertised keys and is not in the roster; wait for the next session")


def there(part: bytes, what: str) -> bytes:
    """Refuse a step that comes before what it needs. Raises MaskingError."""
    if not part:
        raise MaskingError(f"this session has no {what} yet; follow its messages in their order")
    return part


def advertisement(memory: Memory) -> Advertisement:
    """Work out the site's public keys."""
    session = digest(memory.session)
    return Advertisement(session, memory.site, public_half(_cipher_key(memory)), public_half(mask_key(memory)))


def mask_key(memory: Memory) -> bytes:
    """Work out the private X25519 key of the pair masks; revealed when the site is lost."""
    return derive(memory.seed, digest(memory.session), "mask key")


def self_seed(memory: Memory, on: Agreed) -> bytes:
    """Work out the seed of the self-mask; revealed when the site survives."""
    return derive(memory.seed, on.digest, "self seed")


def holders(memory: Memory, on: Agreed) -> tuple[int, ...]:
    """Work out to whom this site deals."""
    return choose_holders(derive(memory.seed, on.digest, "holders"), memory.place(on.roster), on.numbers)


def own_shares(memory: Memory, on: Agreed) -> dict[int, BothShares]:
    """Split both secrets for the holders and the site itself, rising."""
    members = sorted((*holders(memory, on), memory.place(on.roster)))
    points, needed = tuple(member + 1 for member in members), on.numbers.shares
    seeds = split(self_seed(memory, on), points, needed, derive(memory.seed, on.digest, "self coefficients"))
    keys = split(mask_key(memory), points, needed, derive(memory.seed, on.digest, "key coefficients"))
    return dict(zip(members, zip(seeds, keys, strict=True), strict=True))


def box_key(memory: Memory, on: Agreed, dealer: int, holder: int) -> bytes:
    """Agree on the key of the one box from a dealer to a holder, of whom this site is one."""
    other = holder if memory.place(on.roster) == dealer else dealer
    theirs = on.roster.members[other].body.cipher_key
    return agree(_cipher_key(memory), theirs, on.digest, f"share {dealer} {holder}")


def held_shares(memory: Memory, on: Agreed, delivery: Delivery) -> dict[int, BothShares]:
    """Open the shares that others dealt to this site, by dealer.

    Raises MaskingError, with the dealer's name, when a box was altered or does not hold what its dealer said.
    """
    member = memory.place(on.roster)
    held = {}
    for parcel in delivery.parcels:
        dealer = repr(on.name(parcel.dealer)[:80])
        plain = unseal(box_key(memory, on, parcel.dealer, member), parcel.sealed, on.digest, dealer)
        both = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        if share_digests(on, parcel.dealer, member, both) != (parcel.self_share_digest, parcel.key_share_digest):
            raise MaskingError(f"the shares of {dealer} are not those that it signed for; leave that site out")
        held[parcel.dealer] = both
    return held


def share_digests(on: Agreed, dealer: int, holder: int, both: BothShares) -> tuple[bytes, bytes]:
    """Name a holder's two shares."""
    own, key = both
    return digest(Share(on.digest, dealer, holder, SELF, own)), digest(Share(on.digest, dealer, holder, KEY, key))


def _cipher_key(memory: Memory) -> bytes:
    return derive(memory.seed, digest(memory.session), "cipher key")
