"""What the pages show of sites, read from the database into small records."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from aggregator.members.sites_service import CONNECTED_WITHIN
from aggregator.tables import Certificate, Member, Plan, Progress, Upload


@dataclass(frozen=True)
class SiteView:
    """One site: who it is, whether it is there, what it does."""

    name: str
    state: str  # invited, enrolled or revoked
    connected: bool
    last_seen: datetime | None
    version: str
    enrolled: datetime | None
    certificate_until: datetime | None
    bytes_received: int
    uploads: int
    study: str  # worked on now; empty when idle
    stage: str
    pixels_done: int
    pixels_total: int
    files_done: int
    files_total: int
    problems: tuple[str, ...]  # newest first
    revoke_reason: str

    @property
    def certificate_ends_soon(self) -> bool:
        """Tell whether the certificate ends within a week of the site's last call, so that a person should look."""
        until, seen = self.certificate_until, self.last_seen
        return until is not None and seen is not None and until - seen < timedelta(days=7)


def sites(session: Session, now: datetime) -> list[SiteView]:
    """Read every site that was ever invited, by name."""
    received = {
        row.site: (int(row.size), row.n)
        for row in session.execute(
            select(Upload.site, func.sum(Upload.size).label("size"), func.count().label("n")).group_by(Upload.site)
        )
    }
    until = {
        row.member: row.until
        for row in session.execute(
            select(Certificate.member, func.max(Certificate.not_after).label("until"))
            .where(Certificate.revoked_at.is_(None))
            .group_by(Certificate.member)
        )
    }
    work = {
        row.site: row
        for row in session.execute(
            select(
                Progress.site,
                Progress.pixels_done,
                Progress.pixels_total,
                Progress.files_done,
                Progress.files_total,
            ).join(Member, (Member.name == Progress.site) & (Member.working_fingerprint == Progress.plan))
        )
    }
    plans = {
        row.fingerprint: row
        for row in session.execute(
            select(Plan.fingerprint, Plan.study, Plan.stage).join(
                Member, Member.working_fingerprint == Plan.fingerprint
            )
        )
    }
    found = []
    for member in session.scalars(select(Member).where(Member.role == "site").order_by(Member.name)):
        plan = plans.get(member.working_fingerprint or "")
        progress = work.get(member.name)
        size, uploads = received.get(member.name, (0, 0))
        found.append(
            SiteView(
                name=member.name,
                state=member.state,
                connected=connected(member, now),
                last_seen=member.last_seen,
                version=member.version,
                enrolled=member.enrolled_at,
                certificate_until=until.get(member.name),
                bytes_received=size,
                uploads=uploads,
                study=plan.study if plan else "",
                stage=plan.stage if plan else "",
                pixels_done=progress.pixels_done if progress else 0,
                pixels_total=progress.pixels_total if progress else 0,
                files_done=progress.files_done if progress else 0,
                files_total=progress.files_total if progress else 0,
                problems=tuple(reversed(member.problems)),
                revoke_reason=member.revoke_reason,
            )
        )
    return found


def connected(member: Member, now: datetime) -> bool:
    """Tell whether an enrolled member called recently enough to count as connected."""
    return member.state == "enrolled" and member.last_seen is not None and now - member.last_seen < CONNECTED_WITHIN
