"""Sites of masked sums over the aggregator's real parts, without the network between them: a call is a call."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from aggregator import database, tables
from aggregator.intake.uploads import MESSAGE
from aggregator.masking.service import view
from aggregator.members import enrolment_service, pki
from cairn import codec
from cairn.masking.canonical import decode, digest
from cairn.masking.messages import Session
from cairn.plan import Plan
from cairn.tally import Tally, zeros
from edge_node.masking.memories import Memories
from edge_node.masking.steps import Call, Steps, Who
from edge_node.outbox import Outbox, Sealed
from tests.aggregator.simulated import Federation

FEDERATION = "trial"


class Sites:
    """Hospitals with certificates of one CA, each with a tally for the open plan."""

    def __init__(self, federation: Federation, names: tuple[str, ...], folder: Path) -> None:
        self.federation, self.folder = federation, folder
        self.authority = pki.make_authority(FEDERATION, federation.clock())
        federation.enrol(*names)
        self.sites = {name: Site(self, name, folder / name, number) for number, name in enumerate(names)}

    def turn(self, *silent: str) -> None:
        """Let everybody who is not silent do what can be done, and the aggregator too."""
        for name, site in self.sites.items():
            if name not in silent:
                site.look()
        self.federation.coordinator.turn()

    def until(self, so: Callable[[], bool], *silent: str) -> None:
        """Take turns until something is so."""
        for _ in range(40):
            if so():
                return
            self.turn(*silent)
        raise AssertionError(f"not within 40 turns; {self.federation.study().message}")

    def made(self) -> set[str]:
        """The kinds of messages that the newest session of any plan holds, the aggregator's own and the sites'."""
        with database.reading(self.federation.engine) as rows:
            newest = rows.query(tables.MaskingSession).order_by(tables.MaskingSession.attempt.desc()).first()
            if newest is None:
                return set()
            return {row.kind for row in rows.query(tables.MaskingMessage).filter_by(session=newest.digest)}

    def everybody(self, kind: str, *silent: str) -> bool:
        """Whether all who are not silent have sent a kind of message."""
        with database.reading(self.federation.engine) as rows:
            sent = {row.site for row in rows.query(tables.MaskingMessage).filter_by(kind=kind)}
        return sent >= set(self.sites) - set(silent)

    def sent(self, name: str, kind: str, plan: str) -> bool:
        """Whether a site has sent a kind of message for a plan."""
        query = select(tables.MaskingMessage.kind).join(
            tables.MaskingSession, tables.MaskingSession.digest == tables.MaskingMessage.session
        )
        with database.reading(self.federation.engine) as rows:
            return kind in rows.scalars(
                query.where(tables.MaskingSession.plan == plan, tables.MaskingMessage.site == name)
            )

    def pass_patience(self) -> None:
        """Let the patience of a step pass."""
        self.federation.clock.advance(timedelta(minutes=11))  # type: ignore[attr-defined]


class Site:
    """One hospital. What it keeps is in its folder; `restart` forgets the rest."""

    def __init__(self, among: Sites, name: str, folder: Path, number: int) -> None:
        self.among, self.name, self.folder = among, name, folder
        self.number = number
        self.key = ec.generate_private_key(ec.SECP256R1())
        federation = among.federation
        with database.writing(federation.engine) as rows:
            member = rows.get_one(tables.Member, name)
            enrolment_service.certify(rows, among.authority, member, self.key.public_key(), federation.clock())
        self.lose_words = False
        self.restart()

    def restart(self) -> None:
        """Come back from the disk alone."""
        who = Who(self.name, FEDERATION, self.key, x509_authority(self.among), 3, None)
        self.memories = Memories(self.folder / "masking")
        self.outbox = Outbox(self.folder / "outbox")
        late = lambda: self.outbox.listed("parked")  # noqa: E731 - as the node does
        self.steps = Steps(who, self.memories, self._send, self._words, late, self.among.federation.clock)

    def look(self) -> None:
        """Do all that can be done now."""
        federation = self.among.federation
        row = federation.open_plan()
        if row is None:
            return
        plan = codec.decode_plan(row.published)
        sealed = self.outbox.seal(plan, self.tally(plan, row.fingerprint))
        for seen in view(federation.engine, self.name).sessions:
            if decode(Session, seen.session).fingerprint == sealed.fingerprint:
                self.steps.answer(sealed, plan, seen)
            else:
                self.steps.look_back(seen)

    def tally(self, plan: Plan, fingerprint: str) -> Tally:
        """What this hospital counted: numbers of its own in every table."""
        tables_ = zeros(plan.stage)
        rng = np.random.default_rng([self.number, *bytes.fromhex(fingerprint)[:4]])
        for table in tables_.values():
            table += rng.integers(0, 1000, table.shape)
        return Tally(bytes.fromhex(fingerprint), tables_)

    def _send(self, call: Call, session: Session, body: bytes, plan: Plan) -> None:
        arrivals = self.among.federation.arrivals
        take = {
            "Advertise": arrivals.advertise,
            "Deal": arrivals.deal,
            "Vote": arrivals.vote,
            "Reveal": arrivals.reveal,
        }[call]
        take(self.name, digest(session), body)

    def _words(self, words: Sealed, receipt: bytes) -> bool:
        if self.lose_words:
            return False
        data, uploads = words.path.read_bytes(), self.among.federation.uploads
        plan, name = words.fingerprint.hex(), words.digest().hex()
        at = uploads.query(plan, self.name, name)
        if not at.complete:
            first = max(at.size, len(data) - MESSAGE)
            for begin in range(at.size, first, MESSAGE):
                uploads.append(plan, self.name, begin, data[begin : min(begin + MESSAGE, first)])
            uploads.finish(plan, self.name, first, data[first:], name, receipt)
        return True


def x509_authority(among: Sites) -> x509.Certificate:
    """The CA that sites pinned at their enrolment."""
    return among.authority.certificate
