"""Certificates for those who were invited, and the check at every call that they still hold."""

import hashlib
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Engine, bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from aggregator.database import audit, reading, writing
from aggregator.members import pki
from aggregator.members.tokens import Attempts, token_hash
from aggregator.tables import Certificate, Member
from cairn.errors import BadToken, IdentityError, NotEnrolled, Revoked, TooLarge
from cairn.rpc import Caller, Identity, caller
from cairn.v1 import enrolment_pb2, enrolment_pb2_grpc

AT_A_TIME = 500  # a database takes only so many parameters in one query
CERTIFICATES_A_DAY = 20  # that one member may ask for


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServicer):
    """Exchanges one-time tokens for certificates, on the port that asks for none.

    superlink_address  told to who enrols; "" when the federation does not train
    """

    def __init__(
        self,
        engine: Engine,
        authority: pki.Authority,
        attempts: Attempts,
        now: Callable[[], datetime],
        superlink_address: str = "",
    ) -> None:
        self._engine = engine
        self._authority = authority
        self._attempts = attempts
        self._now = now
        self._superlink_address = superlink_address

    def Enrol(  # noqa: N802 - gRPC's spelling
        self, request: enrolment_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        """Issue the certificate that the token stands for; the same again for the same token and key."""
        peer = context.peer().rpartition(":")[0]  # without the port, which changes from call to call
        self._attempts.check(peer)
        try:
            supernode = pki.supernode_key(request.supernode_key_pem)
            identity, chain = self.enrol(request.token, pki.requested_key(request.csr_pem), supernode)
        except IdentityError:
            self._attempts.failed(peer)
            raise
        return enrolment_pb2.EnrolResponse(
            certificate_chain_pem=chain, identity=str(identity), superlink_address=self._superlink_address
        )

    def enrol(self, token: str, key: ec.EllipticCurvePublicKey, supernode: str | None = None) -> tuple[Identity, bytes]:
        """Issue a certificate to the member whose one-time token this is. Raises BadToken, IdentityError.

        supernode  public key of the site's SuperNode, PEM
        """
        now, shown = self._now(), pki.key_hash(key)
        with writing(self._engine) as session:
            member = session.scalar(select(Member).where(Member.token_hash == token_hash(token)))
            if member is None:
                raise BadToken("the enrolment token is not known here; ask the operator for a new invitation")
            if member.state == "revoked":
                raise BadToken(f"the invitation of {member.name} was withdrawn by the operator")
            identity = Identity(self._authority.federation, member.role, member.name)
            if member.state == "enrolled":
                chain = _same_again(session, member, shown)
                _keep_supernode_key(session, member, supernode, now)
                return identity, chain
            assert member.token_expires is not None  # set together with the token
            if member.token_expires < now:
                raise BadToken(
                    f"the enrolment token expired on {member.token_expires:%Y-%m-%d %H:%M} UTC; "
                    "ask the operator for a new invitation"
                )
            chain = certify(session, self._authority, member, key, now)
            member.state, member.enrolled_at, member.public_key = "enrolled", now, shown
            audit(session, now, f"{member.role}/{member.name}", "enrol", member.name)
            _keep_supernode_key(session, member, supernode, now)
        return identity, chain


class RenewalService(enrolment_pb2_grpc.RenewalServicer):
    """Issues new certificates to those who show a valid one."""

    def __init__(self, engine: Engine, authority: pki.Authority, now: Callable[[], datetime]) -> None:
        self._engine = engine
        self._authority = authority
        self._now = now

    def Renew(  # noqa: N802 - gRPC's spelling
        self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.RenewResponse:
        """Issue a certificate for the identity in the caller's own; the old one holds until it ends."""
        who = caller(context)
        key, now = pki.requested_key(request.csr_pem), self._now()
        supernode = pki.supernode_key(request.supernode_key_pem)
        with writing(self._engine) as session:
            member = _in_good_standing(session, who, now)
            recent = session.scalar(
                select(func.count())
                .select_from(Certificate)
                .where(Certificate.member == member.name, Certificate.issued_at > now - timedelta(days=1))
            )
            if (recent or 0) >= CERTIFICATES_A_DAY:
                raise TooLarge(f"{member.name} got {recent} certificates within a day, which is the most; try tomorrow")
            chain = certify(session, self._authority, member, key, now)
            audit(session, now, f"{member.role}/{member.name}", "renew", member.name)
            _keep_supernode_key(session, member, supernode, now)
        return enrolment_pb2.RenewResponse(certificate_chain_pem=chain)


class Gate:
    """Decides at every call whether the caller's certificate still opens the door, and notes when a member was seen."""

    def __init__(self, engine: Engine, federation: str, now: Callable[[], datetime]) -> None:
        self._engine = engine
        self._federation = federation
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[str, datetime] = {}  # and not yet written

    def __call__(self, who: Caller) -> None:
        """Raise Revoked or NotEnrolled when the caller may not come in (any more). Open streams ask again and again."""
        now = self._now()
        if who.identity.federation != self._federation:
            raise NotEnrolled(f"{who.identity} is of another federation than {self._federation}")
        with reading(self._engine) as session:
            _in_good_standing(session, who, now)
        with self._lock:
            self._seen[who.identity.name] = now

    def keep_seen(self) -> None:
        """Write when members were last seen, of all at once, so that no call waits for it.

        Raises what the database does, and tries those again the next time.
        """
        with self._lock:
            seen, self._seen = self._seen, {}
        if not seen:
            return
        later = or_(Member.last_seen.is_(None), Member.last_seen < bindparam("at"))  # a report may have come since
        of = update(Member).where(Member.name == bindparam("of"), later).values(last_seen=bindparam("at"))
        try:
            with writing(self._engine) as session:
                session.connection().execute(of, [{"of": name, "at": at} for name, at in seen.items()])
        except BaseException:
            with self._lock:
                self._seen = seen | self._seen
            raise

    def shut_out(self, callers: Collection[Caller]) -> set[Caller]:
        """Say which of some callers with open streams may not be here any more."""
        now, serials = self._now(), {pki.serial_hex(who.serial): who for who in callers}
        asked = sorted(serials)
        good: set[str] = set()
        with reading(self._engine) as session:
            for start in range(0, len(asked), AT_A_TIME):
                good |= set(
                    session.scalars(
                        select(Certificate.serial)
                        .join(Member, Member.name == Certificate.member)
                        .where(
                            Certificate.serial.in_(asked[start : start + AT_A_TIME]),
                            Certificate.revoked_at.is_(None),
                            Certificate.not_after >= now,
                            Member.state != "revoked",
                        )
                    )
                )
        return {who for serial, who in serials.items() if serial not in good}


def certify(
    session: Session, authority: pki.Authority, member: Member, key: ec.EllipticCurvePublicKey, now: datetime
) -> bytes:
    """Issue a certificate to a member, enter it into the caller's transaction, and return the chain in PEM."""
    certificate = pki.issue(authority, Identity(authority.federation, member.role, member.name), key, now)
    chain = pki.chain_pem(certificate, authority)
    session.add(
        Certificate(
            serial=pki.serial_hex(certificate.serial_number),
            member=member.name,
            public_key=pki.key_hash(key),
            chain_pem=chain.decode(),
            issued_at=now,
            not_after=certificate.not_valid_after_utc,
        )
    )
    return chain


def _keep_supernode_key(session: Session, member: Member, key: str | None, now: datetime) -> None:
    if key is None or key == member.supernode_key:
        return
    if member.role != "site":
        raise IdentityError(f"{member.name} is {member.role}, and only a site has a SuperNode")
    holder = session.scalar(select(Member.name).where(Member.supernode_key == key))
    if holder is not None:
        raise IdentityError(f"{member.name} came with the SuperNode key of another site; make a key of its own")
    member.supernode_key = key
    digest = hashlib.sha256(key.encode()).hexdigest()
    audit(session, now, f"site/{member.name}", "supernode-key", member.name, sha256=digest)


def _same_again(session: Session, member: Member, shown: str) -> bytes:
    # A retry after a lost answer shows the same token and the same key; anyone else has another key.
    first = (
        select(Certificate.chain_pem)
        .where(Certificate.member == member.name, Certificate.public_key == shown, Certificate.revoked_at.is_(None))
        .order_by(Certificate.issued_at)
        .limit(1)
    )
    chain = session.scalar(first) if member.public_key == shown else None
    if chain is None:
        raise BadToken(
            f"the enrolment token of {member.name} was used on {member.enrolled_at:%Y-%m-%d %H:%M} UTC already; "
            "ask the operator for a new invitation, and tell them if it was not you"
        )
    return chain.encode()


def _in_good_standing(session: Session, who: Caller, now: datetime) -> Member:
    row = session.get(Certificate, pki.serial_hex(who.serial))
    member = session.get(Member, who.identity.name)
    if row is None or member is None or row.member != member.name or member.role != who.identity.role:
        raise NotEnrolled(f"the certificate of {who.identity} was not issued here; enrol with a new invitation")
    if row.revoked_at is not None or member.state == "revoked":
        because = f": {member.revoke_reason}" if member.revoke_reason else ""
        raise Revoked(f"{member.name} was revoked by the operator{because}")
    if row.not_after < now:
        raise NotEnrolled(f"the certificate of {member.name} ended on {row.not_after:%Y-%m-%d}; enrol again")
    return member
