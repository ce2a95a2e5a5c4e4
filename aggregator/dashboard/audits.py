"""What was merged of what, and the log of what happened, for the pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator.tables import Audit, Merge, Plan, Upload

MERGES_SHOWN = 50
ENTRIES_A_PAGE = 50


@dataclass(frozen=True)
class UploadView:
    """One tally in a merge."""

    site: str
    size: int
    digest: str


@dataclass(frozen=True)
class MergeView:
    """A merged tally and exactly what is in it."""

    plan: str
    study: str
    stage: str
    window: int
    at: datetime
    digest: str
    uploads: tuple[UploadView, ...]

    @property
    def bytes(self) -> int:
        """Size of the tallies together."""
        return sum(upload.size for upload in self.uploads)

    @property
    def sites(self) -> str:
        """The sites in a few words."""
        names = sorted(upload.site for upload in self.uploads)
        return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def merges(session: Session, study: str | None = None) -> list[MergeView]:
    """Read the latest merges, newest first, of one study or of all."""
    query = (
        select(Merge.plan, Merge.at, Merge.digest, Merge.uploads, Plan.study, Plan.stage, Plan.window)
        .join(Plan, Plan.fingerprint == Merge.plan)
        .order_by(Merge.at.desc())
        .limit(MERGES_SHOWN)
    )
    rows = session.execute(query if study is None else query.where(Plan.study == study)).all()
    wanted = [number for row in rows for number in row.uploads]
    uploads = {row.id: UploadView(row.site, row.size, row.digest) for row in _uploads(session, wanted)}
    return [
        MergeView(
            row.plan,
            row.study,
            row.stage,
            row.window,
            row.at,
            row.digest,
            tuple(uploads[number] for number in row.uploads if number in uploads),
        )
        for row in rows
    ]


def entries(session: Session, action: str, before: int | None) -> tuple[Sequence[Audit], int | None]:
    """Read a page of the log, newest first, and the id to ask for the page of older rows, if there are any."""
    query = select(Audit).order_by(Audit.id.desc()).limit(ENTRIES_A_PAGE + 1)
    if action:
        query = query.where(Audit.action == action)
    if before is not None:
        query = query.where(Audit.id < before)
    found = session.scalars(query).all()
    shown = found[:ENTRIES_A_PAGE]
    return shown, shown[-1].id if len(found) > len(shown) else None


def actions(session: Session) -> list[str]:
    """List the kinds of what happened so far."""
    return sorted(session.scalars(select(Audit.action).distinct()))


def _uploads(session: Session, wanted: Sequence[int]) -> list[Upload]:
    # In portions: a database takes only so many parameters in one query.
    found: list[Upload] = []
    for start in range(0, len(wanted), 500):
        found += session.scalars(select(Upload).where(Upload.id.in_(wanted[start : start + 500])))
    return found
