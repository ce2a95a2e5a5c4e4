"""Who is in the federation: invite, revoke, list."""

from collections.abc import Callable
from datetime import datetime, timedelta

import grpc
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from aggregator.database import audit, reading, writing
from aggregator.members.tokens import new_token, token_hash
from aggregator.tables import Certificate, DashboardToken, Member, Plan, Progress, Upload
from cairn.errors import StudyError
from cairn.invitation import Invitation
from cairn.rpc import NAME, caller
from cairn.v1 import operations_pb2, operations_pb2_grpc

CONNECTED_WITHIN = timedelta(seconds=15)  # a site that watches for plans is seen every few seconds
VALID_BY_DEFAULT = timedelta(days=7)
VALID_AT_MOST = timedelta(days=90)
TRAINER = "trainer"  # name and role of the aggregator's own trainer


class SitesService(operations_pb2_grpc.SitesServicer):
    """Sites and operators, for operators.

    invitation  the part that all invitations share; name, role and token are filled in
    """

    def __init__(self, engine: Engine, invitation: Invitation, now: Callable[[], datetime]) -> None:
        self._engine = engine
        self._invitation = invitation
        self._now = now

    def InviteSite(  # noqa: N802 - gRPC's spelling
        self, request: operations_pb2.InviteSiteRequest, context: grpc.ServicerContext
    ) -> operations_pb2.InviteSiteResponse:
        """Make a one-time invitation; an earlier one that was not used is void from now on."""
        name, role = _name(request.name), request.role or "site"
        if role not in {"site", "operator"}:
            raise StudyError(f"{role[:40]!r} is not a role; site or operator is expected")
        seconds = request.valid_for.seconds if request.HasField("valid_for") else VALID_BY_DEFAULT.total_seconds()
        if not 1 <= seconds <= VALID_AT_MOST.total_seconds():
            raise StudyError(f"an invitation holds for 1 s to {VALID_AT_MOST.days} days; {seconds} s was asked for")
        token, now = new_token(), self._now()
        with writing(self._engine) as session:
            member = session.get(Member, name)
            if name == TRAINER or (member is not None and member.role == "trainer"):
                raise StudyError(f"the name {name} is kept for the aggregator's own trainer; choose another one")
            if member is not None and member.state == "enrolled":
                raise StudyError(f"the name {name} is taken by an enrolled {member.role}; revoke it first")
            if member is not None and member.role != role and member.state == "revoked":
                raise StudyError(f"{name} was {_a(member.role)} before; invite {_a(role)} under another name")
            if member is None:
                member = Member(name=name)
                session.add(member)
            member.role = "operator" if role == "operator" else "site"
            member.state, member.invited_at, member.revoke_reason = "invited", now, ""
            member.token_hash, member.token_expires = token_hash(token), now + timedelta(seconds=seconds)
            member.public_key = None
            audit(session, now, _actor(context), "invite", name, role=role, valid_for_s=int(seconds))
        invitation = self._invitation.model_copy(update={"name": name, "role": role, "token": token})
        return operations_pb2.InviteSiteResponse(invitation=invitation.text())

    def RevokeSite(  # noqa: N802 - gRPC's spelling
        self, request: operations_pb2.RevokeSiteRequest, context: grpc.ServicerContext
    ) -> operations_pb2.RevokeSiteResponse:
        """Take every certificate and every open invitation of a member back; revoking twice changes nothing."""
        name, now, actor = _name(request.name), self._now(), _actor(context)
        if actor == f"operator/{name}":
            raise StudyError("you cannot revoke yourself; ask another operator")
        with writing(self._engine) as session:
            member = session.get(Member, name)
            if member is None:
                raise StudyError(f"there is no site or operator {name}; `cairn aggregator sites` lists them")
            if member.role == "trainer":
                raise StudyError("the trainer is the aggregator's own; take [training] out of aggregator.toml")
            if member.state != "revoked":
                member.state, member.revoked_at, member.revoke_reason = "revoked", now, request.reason[:300]
                member.working_fingerprint = member.supernode_key = None
                session.execute(delete(DashboardToken).where(DashboardToken.member == name))
                session.execute(
                    update(Certificate)
                    .where(Certificate.member == name, Certificate.revoked_at.is_(None))
                    .values(revoked_at=now)
                )
                audit(session, now, actor, "revoke", name, reason=member.revoke_reason)
        return operations_pb2.RevokeSiteResponse()

    def ListSites(  # noqa: N802 - gRPC's spelling
        self,
        request: operations_pb2.ListSitesRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,  # noqa: ARG002 - gRPC's signature
    ) -> operations_pb2.ListSitesResponse:
        """List all members, by name."""
        with reading(self._engine) as session:
            return operations_pb2.ListSitesResponse(sites=list_sites(session, self._now()))


def list_sites(session: Session, now: datetime) -> list[operations_pb2.Site]:
    """Read what is known of every member, by name; also what the dashboard shows."""
    received = dict(session.execute(select(Upload.site, func.sum(Upload.size)).group_by(Upload.site)).all())
    rows = session.execute(
        select(Member, Plan, Progress)
        .outerjoin(Plan, Plan.fingerprint == Member.working_fingerprint)
        .outerjoin(Progress, (Progress.plan == Plan.fingerprint) & (Progress.site == Member.name))
        .order_by(Member.name)
    )
    return [_site(member, plan, progress, int(received.get(member.name, 0)), now) for member, plan, progress in rows]


def connected_sites(session: Session, now: datetime) -> int:
    """Count the enrolled sites that were seen lately."""
    lately = (Member.role == "site", Member.state == "enrolled", Member.last_seen > now - CONNECTED_WITHIN)
    return session.scalar(select(func.count()).select_from(Member).where(*lately)) or 0


def received_bytes(session: Session) -> int:
    """Add up the bytes of all uploads in the ledger."""
    return int(session.scalar(select(func.sum(Upload.size))) or 0)


def _site(
    member: Member, plan: Plan | None, progress: Progress | None, received: int, now: datetime
) -> operations_pb2.Site:
    seen = member.last_seen
    site = operations_pb2.Site(
        name=member.name,
        role=member.role,
        state=member.state,
        connected=member.state == "enrolled" and seen is not None and now - seen < CONNECTED_WITHIN,
        version=member.version,
        bytes_received=received,
        working_on=f"{plan.study}/{plan.stage}" if plan else "",
        pixels_done=progress.pixels_done if progress else 0,
        pixels_total=progress.pixels_total if progress else 0,
        problems=member.problems,
    )
    if seen is not None:
        site.last_seen.FromDatetime(seen)
    return site


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise StudyError(
            f"{text[:80]!r} is not a name: 1 to 63 lower-case letters, digits and inner hyphens are expected"
        )
    return text


def _a(role: str) -> str:
    return "an operator" if role == "operator" else "a site"


def _actor(context: grpc.ServicerContext) -> str:
    identity = caller(context).identity
    return f"{identity.role}/{identity.name}"
