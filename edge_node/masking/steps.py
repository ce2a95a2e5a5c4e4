"""One site's way through one session: what the aggregator shows of it, answered step by step.

Each step is pure (`cairn.masking.site`); what it leads to is written down before the answer leaves, so that a site that
was killed anywhere gives the same answers again.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cairn import codec
from cairn.errors import IdentityError, MaskingError
from cairn.files import write_atomically
from cairn.masked import plain_digest, session_of, write_masked
from cairn.masking import site
from cairn.masking.canonical import decode, digest, encode
from cairn.masking.checks import Identities
from cairn.masking.keys import KEY_BYTES
from cairn.masking.memory import Memory
from cairn.masking.messages import Delivery, Roster, Session, SignedVote, Survivors, Votes
from cairn.plan import Plan, fingerprint
from cairn.tally import Tally, add
from cairn.v1 import masking_pb2
from edge_node.masking import peers
from edge_node.masking.memories import Memories
from edge_node.outbox import Sealed

Call = Literal["Advertise", "Deal", "Vote", "Reveal"]


@dataclass(frozen=True)
class Who:
    """This site in a masked sum.

    key        of its certificate
    authority  the federation's CA
    least      sites that its settings ask for in a sum
    peers      patterns of names that it may be summed with; None: all
    """

    name: str
    federation: str
    key: ec.EllipticCurvePrivateKey
    authority: x509.Certificate
    least: int
    peers: tuple[str, ...] | None


class Steps:
    """Answers what is shown of sessions.

    send   hands a message to the aggregator: (call, session, body, plan); raises CairnError
    words  sends the masked words of a file, with the signed receipt; tells whether they are there
    late   lists the sealed tallies that came too late for the sum of their own plan
    """

    def __init__(
        self,
        who: Who,
        memories: Memories,
        send: Callable[[Call, Session, bytes, Plan], None],
        words: Callable[[Sealed, bytes], bool],
        late: Callable[[], list[Sealed]],
        now: Callable[[], datetime],
    ) -> None:
        self._who, self._memories, self._send, self._words, self._now = who, memories, send, words, now
        self._late = late
        self._heard: set[tuple[bytes, str]] = set()  # what the aggregator has taken since this service began

    def answer(self, sealed: Sealed, plan: Plan, seen: masking_pb2.MaskingSession) -> None:
        """Do all that can be done in a session now. Raises MaskingError, OSError, and what the calls raise."""
        session = decode(Session, seen.session)
        if session != session_of(plan, sealed.fingerprint, session.attempt, session.late):
            raise MaskingError("the aggregator began a sum with other numbers than the plan's; it is not followed")
        memory = self._memories.find(session)
        if not seen.roster:
            self._advertise(session, memory, plan)
            return
        if memory is None or self._who.name not in _names(decode(Roster, seen.roster)):
            return  # the roster was made without this site
        with _believed():
            known = self._known(seen)
        if not seen.delivery and not (seen.voting and memory.roster):
            # Also when it is too late to deal: to give the session up, a site must have agreed to its roster.
            memory = self._deal(memory, decode(Roster, seen.roster), known, plan, late=seen.voting)
        if seen.delivery:
            memory = self._take(memory, seen.delivery, known)
            if not seen.voting:
                memory = self._send_words(memory, sealed, plan)
        if seen.voting:
            memory = self._vote(memory, decode(Survivors, seen.survivors), known, plan)
        if seen.votes:
            self._end(memory, decode(Votes, seen.votes), known, plan)

    def forget(self) -> None:
        """Tell everything again when it is asked for: the aggregator may have been restored from an earlier state.

        What is told is the same to the byte, and one that has it already takes it as said.
        """
        self._heard.clear()

    def look_back(self, seen: masking_pb2.MaskingSession) -> None:
        """Set counts free that a session ended without, for a later one to take along. Raises MaskingError."""
        memory = self._memories.find(decode(Session, seen.session))
        if memory is None or not memory.roster or not seen.votes or memory.free:
            return
        with _believed():
            memory = site.release(memory, decode(Votes, seen.votes), self._known(seen))
        self._memories.keep(memory)

    def summed(self, fingerprint: bytes) -> bool:
        """Tell whether this site voted for a sum with its own counts of a plan in it."""
        for memory in self._memories.of_plan(fingerprint):
            if memory.vote and memory.delivery and fingerprint in memory.covers:
                on = memory.agreed()
                if memory.place(on.roster) in decode(SignedVote, memory.vote).body.survivors:
                    return True
        return False

    def _advertise(self, session: Session, memory: Memory | None, plan: Plan) -> None:
        if memory is None:
            memory = site.begin(session, self._who.name, secrets.token_bytes(KEY_BYTES))
            self._memories.keep(memory)
        self._tell("Advertise", memory, site.advertise(memory, self._who.key), plan)

    def _deal(self, memory: Memory, roster: Roster, known: Identities, plan: Plan, *, late: bool) -> Memory:
        with _believed():
            memory, dealing = site.deal(memory, roster, self._who.key, known, least=_least(self._who, plan))
        self._memories.keep(memory)
        if not late:
            self._tell("Deal", memory, dealing, plan)
        return memory

    def _take(self, memory: Memory, delivery: bytes, known: Identities) -> Memory:
        if memory.delivery == delivery:
            return memory
        with _believed():
            memory = site.take(memory, decode(Delivery, delivery), known)
        self._memories.keep(memory)
        return memory

    def _send_words(self, memory: Memory, sealed: Sealed, plan: Plan) -> Memory:
        """Mask the tally, sign for it and send it; a file that is there from before is sent as it is."""
        name = digest(memory.session)
        if (name, "words") in self._heard:
            return memory
        path = self._memories.words(memory.session)
        if not (memory.receipt and path.exists()):
            members = memory.agreed().numbers.members
            tally, covers = self._counts(memory, sealed, plan)
            if not memory.tally:
                plain = plain_digest(plan, tally, members)
                memory = site.fix(memory, plain, covers, self._memories.of_plan(*covers))
                self._memories.keep(memory)
            with write_atomically(path, mode=0o600) as file:
                masked = write_masked(file, plan, tally, members, site.mask(memory))
            memory, _ = site.confirm(memory, masked, self._who.key)
            self._memories.keep(memory)
        words = Sealed(sealed.study, sealed.stage, sealed.window, sealed.fingerprint, path)
        if self._words(words, memory.receipt):
            self._heard.add((name, "words"))
            path.unlink(missing_ok=True)
        return memory

    def _counts(self, memory: Memory, sealed: Sealed, plan: Plan) -> tuple[Tally, tuple[bytes, ...]]:
        """Add up the tallies of a session: its own window's, and those of earlier ones that it takes along.

        Which ones is decided once, before the first word is masked. Raises MaskingError when one is gone since.
        """
        tally, covers = codec.read_tally(sealed.path), [sealed.fingerprint]
        for other in self._late():
            of = other.fingerprint
            if of in memory.covers if memory.tally else self._may_join(other, memory.session, plan):
                add(tally.tables, codec.read_tally(other.path).tables)
                covers.append(of)
        if memory.tally and set(memory.covers) != set(covers):
            raise MaskingError("a tally that was masked in this sum is not in the outbox any more; restore it")
        return tally, tuple(sorted(covers))

    def _may_join(self, other: Sealed, session: Session, plan: Plan) -> bool:
        """Tell whether a sealed tally is of an earlier window of the same stage, and in no sum that may have ended."""
        if other.fingerprint not in session.late:
            return False
        same = fingerprint(codec.encode_plan(replace(plan, window=other.window))) == other.fingerprint
        return same and all(one.free or not one.tally for one in self._memories.of_plan(other.fingerprint))

    def _known(self, seen: masking_pb2.MaskingSession) -> Identities:
        """Check the certificates behind a roster."""
        return peers.identities(seen.peers, self._who.authority, self._who.federation, self._who.peers, self._now())

    def _vote(self, memory: Memory, survivors: Survivors, known: Identities, plan: Plan) -> Memory:
        with _believed():
            memory, vote = site.vote(memory, survivors, self._who.key, known, least=_least(self._who, plan))
        self._memories.keep(memory)
        self._tell("Vote", memory, vote, plan)
        return memory

    def _end(self, memory: Memory, votes: Votes, known: Identities, plan: Plan) -> None:
        """Reveal shares when there is a sum; where this site is not in it, its counts are free for another."""
        survivors = votes.votes[0].body.survivors if votes.votes else ()
        with _believed():
            if memory.place(memory.agreed().roster) not in survivors and not memory.free:
                memory = site.release(memory, votes, known)
                self._memories.keep(memory)
            if survivors and memory.delivery:
                self._tell("Reveal", memory, site.reveal(memory, votes, known), plan)

    def _tell(self, call: Call, memory: Memory, message: Any, plan: Plan) -> None:
        name = digest(memory.session)
        if (name, call) not in self._heard:
            self._send(call, memory.session, encode(message), plan)
            self._heard.add((name, call))


def _least(who: Who, plan: Plan) -> int:
    """Say with how few sites a sum is still followed: the settings' number, or what a private plan's noise needs."""
    return max(who.least, plan.privacy.sites if plan.privacy else 0)


def _names(roster: Roster) -> set[str]:
    return {signed.body.site for signed in roster.members}


@contextmanager
def _believed() -> Iterator[None]:
    """Turn a signature that does not hold, of another site, into MaskingError: it is not this site that is refused."""
    try:
        yield
    except IdentityError as error:
        raise MaskingError(str(error)) from error
