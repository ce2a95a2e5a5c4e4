"""A whole federation in one process, for tests: messages go as bytes, sites forget between steps."""

import hashlib
from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from cairn.masking import server, site
from cairn.masking.canonical import decode, encode
from cairn.masking.checks import Agreed, Joined, agreed, joined
from cairn.masking.memory import Memory
from cairn.masking.messages import (
    Dealing,
    Delivery,
    Reveal,
    Roster,
    Session,
    SignedAdvertisement,
    SignedReceipt,
    SignedVote,
    Survivors,
    Votes,
)
from cairn.masking.stream import cell_limit, from_words, to_words

FINGERPRINT = hashlib.sha256(b"the plan").digest()
T = TypeVar("T")


def wire(message: T) -> T:
    """Send a message: what arrives was made from its bytes alone."""
    return decode(type(message), encode(message))


def a_session(**changes) -> Session:
    values = {
        "fingerprint": FINGERPRINT,
        "stage": "counts",
        "window": 3,
        "attempt": 1,
        "words": 40,
        "bits": 64,
        "may_drop": 499,
        "may_collude": 0,
        "late": (),
    }
    return Session(**{**values, **changes})


class Federation:
    """Sites 0 to n - 1, whose names sort as their numbers, and one aggregator's ledger."""

    def __init__(self, sites: int, *, salt: int = 0, **session) -> None:
        self.session = a_session(**session)
        self.names = [f"spiffe://federation/site/{number:04}" for number in range(sites)]
        self.keys = [ec.derive_private_key(7 + 1000 * number, ec.SECP256R1()) for number in range(sites)]
        self.identities = {name: key.public_key() for name, key in zip(self.names, self.keys, strict=True)}
        seeds = [hashlib.sha256(f"{salt} {number}".encode()).digest() for number in range(sites)]
        self.memories = [site.begin(self.session, n, s) for n, s in zip(self.names, seeds, strict=True)]
        self.roster: Roster
        self.on: Agreed
        self.within: Joined
        self.dealings: dict[int, Dealing] = {}
        self.masked: dict[int, npt.NDArray] = {}
        self.receipts: dict[int, SignedReceipt] = {}
        self.survivors: Survivors
        self.members: tuple[int, ...] = ()
        self.votes: Votes
        self.reveals: list[Reveal] = []

    def step(self, who: int, does: Callable[..., tuple[Memory, T]], *arguments, **named) -> T:
        """Let a site do a step with what it wrote down, and write down what it then remembers."""
        self.memories[who], reply = does(wire(self.memories[who]), *arguments, **named)
        return wire(reply)

    def enlist(self) -> Roster:
        advertisements: list[SignedAdvertisement] = []
        for memory, key in zip(self.memories, self.keys, strict=True):
            advertisements.append(wire(site.advertise(memory, key)))
            server.accept_advertisement(self.session, advertisements[-1], self.identities)
        self.roster = wire(server.make_roster(self.session, advertisements[::-1], self.identities))
        self.on = agreed(self.roster)
        return self.roster

    def deal(self, who: Collection[int]) -> None:
        for number in who:
            dealing = self.step(number, site.deal, self.roster, self.keys[number], self.identities, least=3)
            server.accept_dealing(self.on, dealing, self.identities)
            self.dealings[number] = dealing
        self.within = joined(wire(server.make_circle(self.on, self.dealings, self.identities)))

    def delivery(self, number: int) -> Delivery:
        return wire(server.make_delivery(self.within, self.dealings, number))

    def take(self, number: int) -> None:
        self.memories[number] = site.take(wire(self.memories[number]), self.delivery(number), self.identities)

    def upload(self, number: int, cells: npt.NDArray[np.int64], slices: int = 1) -> SignedReceipt:
        plain = hashlib.sha256(cells.tobytes()).digest()
        self.memories[number] = site.fix(wire(self.memories[number]), plain, (self.session.fingerprint,), ())
        mask, parts = site.mask(wire(self.memories[number])), []
        for part in np.array_split(cells, slices):
            words = to_words(part, self.session.bits, len(self.names))
            mask.apply(words)
            parts.append(words)
        self.masked[number] = np.concatenate(parts)
        digest = hashlib.sha256(self.masked[number].tobytes()).digest()
        receipt = self.step(number, site.confirm, digest, self.keys[number])
        size = self.masked[number].nbytes
        server.accept_receipt(self.on, self.within, receipt, digest, size, self.identities)
        self.receipts[number] = receipt
        return receipt

    def close(self) -> Survivors:
        self.survivors = wire(server.make_survivors(self.on, self.within, self.receipts.values(), self.identities))
        self.members = tuple(receipt.body.member for receipt in self.survivors.receipts)
        return self.survivors

    def vote(self, number: int) -> SignedVote:
        signed = self.step(number, site.vote, self.survivors, self.keys[number], self.identities, least=1)
        circle = self.within.digest if self.members else b""
        server.accept_vote(self.on, circle, self.members, signed, self.identities)
        return signed

    def agree(self, who: Collection[int]) -> Votes:
        self.votes = wire(server.make_votes(self.on, [self.vote(number) for number in who], self.identities))
        return self.votes

    def reveal(self, number: int) -> Reveal:
        reveal = wire(site.reveal(wire(self.memories[number]), self.votes, self.identities))
        server.accept_reveal(self.on, self.members, self.dealings, reveal, number)
        self.reveals.append(reveal)
        return reveal

    def total(self, slices: int = 1) -> npt.NDArray[np.int64]:
        """Add the survivors' masked words and unmask the sum, in slices."""
        total = sum((self.masked[number] for number in self.members[1:]), self.masked[self.members[0]].copy())
        mask = server.unmask(self.on, self.within, self.dealings, self.members, self.reveals)
        for part in np.array_split(total, slices):
            mask.apply(part)
        return from_words(total)

    def run(self, cells: list[npt.NDArray[np.int64]], lost: dict[int, int] | None = None) -> npt.NDArray[np.int64]:
        """Go all the way. lost: site → the step before which it is lost for good, 0 (deal) to 4 (reveal)."""
        stays = [[n for n in range(len(self.names)) if (lost or {}).get(n, 9) > step] for step in range(5)]
        self.enlist()
        self.deal(stays[0])
        for number in stays[1]:
            self.take(number)
        for number in stays[2]:
            self.upload(number, cells[number])
        self.close()
        self.agree(stays[3])
        for number in stays[4]:
            self.reveal(number)
        return self.total()


def some_cells(federation: Federation, salt: int = 0) -> list[npt.NDArray[np.int64]]:
    """Draw every site's cells over all that the modulus allows, with both ends in them."""
    sites, session = len(federation.names), federation.session
    limit = cell_limit(session.bits, sites)
    cells = np.random.default_rng(salt).integers(-limit, limit, (sites, session.words), endpoint=True)
    cells[:, 0], cells[:, -1] = limit, -limit
    return list(cells)
