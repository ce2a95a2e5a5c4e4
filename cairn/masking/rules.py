"""The numbers and the graph of a session: what all parties compute alike, and nobody chooses for another."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Final

import numpy as np

from cairn.errors import MaskingError
from cairn.masking.keys import keystream
from cairn.masking.messages import Session, SignedDeal

LEAST_MEMBERS: Final = 3
COMPLETE_TO: Final = 50  # members; with more, each deals to some
COLLUSION_BITS: Final = 40  # accomplices hold enough shares of some site with a chance under 2^-40 …
LOSS_BITS: Final = 20  # … and losses down to the threshold leave too few of some site with one under 2^-20


@dataclass(frozen=True)
class Rules:
    """The numbers of one roster.

    threshold    T: sites that must survive, agree and answer; 2T > members + accomplices, so that two different sets
                 of survivors cannot both be agreed to
    accomplices  sites that may side with the aggregator
    degree       other sites to whom each site deals shares, its own being one more
    shares       that give a secret back
    beside       of the others who hold a survivor's shares, how many must survive with it: more than are accomplices
    """

    members: int
    threshold: int
    accomplices: int
    degree: int
    shares: int
    beside: int


def rules(session: Session, members: int) -> Rules:
    """Work out the numbers of a roster of so many members. Raises MaskingError when they cannot be safe."""
    threshold = members - members * session.may_drop // 1000
    accomplices = members * session.may_collude // 1000
    if members < LEAST_MEMBERS or 2 * threshold <= members + accomplices or threshold < accomplices + 2:
        raise MaskingError(
            f"{members} sites of which {members - threshold} may be lost and {accomplices} side with the aggregator "
            "cannot be summed secretly: at least three are needed, and losses and accomplices under half of them"
        )
    if members > COMPLETE_TO:
        found = _sparse(members, threshold, accomplices)
        if found:
            degree, shares = found
            return Rules(members, threshold, accomplices, degree, shares, shares)
    return Rules(members, threshold, accomplices, members - 1, threshold, threshold - 1)


@cache
def _sparse(members: int, threshold: int, accomplices: int) -> tuple[int, int] | None:
    """Choose degree and shares: the smallest degree for which both chances are small (Bell et al. 2020, §3).

    A site's holders are drawn at random, so accomplices and losses among them are hypergeometric; the union bound over
    all sites is taken in whole numbers, so that every machine finds the same. None: only the complete graph will do.
    """
    others, lost = members - 1, members - threshold
    for degree in range(4 * members.bit_length(), others):
        # As many shares as losses allow: so many accomplices are needed, and so many others must survive beside a site.
        for shares in range(degree - 1, degree // 4, -1):
            if _tail(others, lost, degree, degree + 1 - shares) * members * 2**LOSS_BITS <= comb(others, degree):
                break
        else:
            continue
        if _tail(others, accomplices, degree, shares) * members * 2**COLLUSION_BITS <= comb(others, degree):
            return degree, shares
    return None


def _tail(others: int, marked: int, drawn: int, least: int) -> int:
    """Count the draws of `drawn` out of `others` with at least `least` of the `marked`."""
    return sum(comb(marked, m) * comb(others - marked, drawn - m) for m in range(least, min(marked, drawn) + 1))


def choose_holders(key: bytes, member: int, numbers: Rules) -> tuple[int, ...]:
    """Choose to whom a member deals: all others, or as many as the degree says, drawn with its own secret key.

    The site draws, not the aggregator, and not from the roster, whose hash the aggregator could steer.
    """
    others = [other for other in range(numbers.members) if other != member]
    if numbers.degree < len(others):
        order = np.argsort(np.frombuffer(keystream(key, 8 * len(others)), "<u8"), kind="stable")
        others = sorted(others[place] for place in order[: numbers.degree])
    return tuple(others)


def neighbours(deals: Iterable[SignedDeal]) -> dict[int, frozenset[int]]:
    """Join each dealer with those dealers to whom it dealt or who dealt to it."""
    found: dict[int, set[int]] = {deal.body.dealer: set() for deal in deals}
    for deal in deals:
        for holder in deal.body.holders:
            if holder in found:
                found[deal.body.dealer].add(holder)
                found[holder].add(deal.body.dealer)
    return {member: frozenset(beside) for member, beside in found.items()}


def connected(graph: Mapping[int, frozenset[int]], members: frozenset[int]) -> bool:
    """Tell whether the members hang together by edges between themselves alone."""
    reached: set[int] = set()
    waiting = [min(members)] if members else []
    while waiting:
        member = waiting.pop()
        if member not in reached:
            reached.add(member)
            waiting.extend((graph[member] & members) - reached)
    return reached == members


def pair(one: int, other: int) -> str:
    """Name the purpose of a pair's mask key, the same on both sides."""
    return f"pair {min(one, other)} {max(one, other)}"
