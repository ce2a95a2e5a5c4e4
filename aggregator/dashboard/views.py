"""What the pages show of studies, read from the database into small records; nothing here changes anything."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from aggregator.dashboard.site_views import SiteView
from aggregator.tables import Answer, Member, Merge, Plan, Progress, Study, Upload

STAGES = ("moments", "ranges", "counts", "recovery", "embedding", "codebook")
AT_SITES = tuple(stage for stage in STAGES if stage != "embedding")

CellState = Literal["waiting", "accepted", "refused", "uploaded", "missed"]


@dataclass(frozen=True)
class Cell:
    """One site in one stage."""

    state: CellState
    reason: str = ""
    bytes: int = 0
    at: datetime | None = None
    pixels_done: int = 0
    pixels_total: int = 0


@dataclass(frozen=True)
class StageView:
    """One stage of one window: its state, and how many sites are where."""

    stage: str
    window: int
    state: str  # open, closed, done; computing (at the aggregator), kept (from the first window), or "" before
    fingerprint: str = ""
    opened: datetime | None = None
    closed: datetime | None = None
    deadline: datetime | None = None
    merged: datetime | None = None
    uploads: int = 0
    refusals: int = 0
    bytes: int = 0
    raw_bytes: int = 0
    expected: int = 0
    cells: dict[str, Cell] = field(default_factory=dict)  # site → its state; filled for a study's own page only


@dataclass(frozen=True)
class StudyView:
    """One study and the stages of the window shown."""

    name: str
    state: str
    window: int
    shown_window: int
    created: datetime
    message: str
    spec: dict[str, Any]
    results: dict[str, Any]
    stages: tuple[StageView, ...]

    @property
    def tone(self) -> str:
        """Return how the state should look: bad, attention, good or busy."""
        return tone(self.state)


@dataclass(frozen=True)
class Notice:
    """Something that a person should see."""

    tone: str  # bad or attention
    where: str
    text: str
    link: str


def tone(state: str) -> str:
    """Return the look of a study's, run's, plan's or member's state: bad, attention, good or busy."""
    match state:
        case "failed" | "revoked" | "refused":
            return "bad"
        case "awaiting_approval" | "invited" | "stopping" | "stopped" | "late" | "absent":
            return "attention"
        case "done" | "enrolled" | "uploaded" | "trained":
            return "good"
        case _:
            return "busy"


def studies(session: Session) -> list[StudyView]:
    """Read all studies, newest first, with each stage's counts in its present window."""
    rows = list(session.scalars(select(Study).order_by(Study.created_at.desc(), Study.name)))
    plans = _plans(session, Plan.study.in_([row.name for row in rows]))
    by_study: dict[str, list[StageView]] = defaultdict(list)
    for study, view in plans:
        by_study[study].append(view)
    return [_study(row, row.window, by_study[row.name]) for row in rows]


def study(session: Session, name: str, window: int | None = None) -> StudyView | None:
    """Read one study with each site's cell in each stage of a window (the present one if none is given)."""
    row = session.get(Study, name)
    if row is None:
        return None
    shown = row.window if window is None else window
    views = [view for _, view in _plans(session, (Plan.study == name) & (Plan.window == shown))]
    names = [view.fingerprint for view in views]
    enrolled = set(session.scalars(select(Member.name).where(Member.role == "site", Member.state == "enrolled")))
    answers = {(row.plan, row.site): row for row in session.scalars(select(Answer).where(Answer.plan.in_(names)))}
    progress = {(row.plan, row.site): row for row in session.scalars(select(Progress).where(Progress.plan.in_(names)))}
    uploads = {(row.plan, row.site): row for row in session.scalars(select(Upload).where(Upload.plan.in_(names)))}
    known = sorted(enrolled | {site for _, site in (*answers, *uploads)})
    for view in views:
        for site in known:
            key = view.fingerprint, site
            view.cells[site] = _cell(view.state, answers.get(key), progress.get(key), uploads.get(key))
    return _study(row, shown, views)


def windows(session: Session, name: str) -> list[int]:
    """List the windows of a study that have plans, newest first."""
    return list(session.scalars(select(Plan.window).where(Plan.study == name).distinct().order_by(Plan.window.desc())))


def notices(all_sites: Sequence[SiteView], all_studies: Sequence[StudyView]) -> list[Notice]:
    """Gather what a person should see: studies that wait or failed, refusals, problems at sites, certificates."""
    found = [
        Notice("bad" if view.state == "failed" else "attention", view.name, view.message, f"/studies/{view.name}")
        for view in all_studies
        if view.message and view.state != "done"
    ]
    for view in all_studies:
        for stage in view.stages:
            if stage.state == "open" and stage.refusals:
                who = "1 site refuses" if stage.refusals == 1 else f"{stage.refusals} sites refuse"
                found.append(Notice("attention", view.name, f"{who} the {stage.stage} stage", f"/studies/{view.name}"))
    for site in all_sites:
        if site.state == "enrolled":
            link = f"/sites#{site.name}"
            found.extend(Notice("bad", site.name, problem, link) for problem in site.problems[:3])
            if site.certificate_ends_soon:
                found.append(Notice("attention", site.name, "its certificate ends within a week", link))
    return sorted(found, key=lambda notice: notice.tone != "bad")


def _plans(session: Session, where: Any) -> list[tuple[str, StageView]]:
    # The published bytes can be megabytes: columns are named one by one, so that they stay in the database.
    uploads = (
        select(
            Upload.plan,
            func.count().label("uploads"),
            func.sum(Upload.size).label("bytes"),
            func.sum(Upload.raw_bytes).label("raw_bytes"),
        )
        .group_by(Upload.plan)
        .subquery()
    )
    refusals = (
        select(Answer.plan, func.count().label("refusals"))
        .where(Answer.accepted.is_(False))
        .group_by(Answer.plan)
        .subquery()
    )
    query = (
        select(
            Plan.fingerprint,
            Plan.study,
            Plan.stage,
            Plan.window,
            Plan.state,
            Plan.opened_at,
            Plan.closed_at,
            Plan.deadline,
            Plan.sites_expected,
            Merge.at,
            uploads.c.uploads,
            uploads.c.bytes,
            uploads.c.raw_bytes,
            refusals.c.refusals,
        )
        .outerjoin(Merge, Merge.plan == Plan.fingerprint)
        .outerjoin(uploads, uploads.c.plan == Plan.fingerprint)
        .outerjoin(refusals, refusals.c.plan == Plan.fingerprint)
        .where(where)
        .order_by(Plan.opened_at)
    )
    enrolled = select(func.count()).where(Member.role == "site", Member.state == "enrolled")
    now_enrolled = session.scalar(enrolled) or 0
    return [
        (
            row.study,
            StageView(
                row.stage,
                row.window,
                row.state,
                row.fingerprint,
                row.opened_at,
                row.closed_at,
                row.deadline,
                row.at,
                row.uploads or 0,
                row.refusals or 0,
                int(row.bytes or 0),
                int(row.raw_bytes or 0),
                now_enrolled if row.sites_expected is None else len(row.sites_expected),
            ),
        )
        for row in session.execute(query)
    ]


def _study(row: Study, window: int, views: Sequence[StageView]) -> StudyView:
    stages = {view.stage: view for view in views if view.window == window}
    return StudyView(
        name=row.name,
        state=row.state,
        window=row.window,
        shown_window=window,
        created=row.created_at,
        message=row.message,
        spec=row.spec,
        results=row.results,
        stages=tuple(stages.get(name, _elsewhere(name, window, row)) for name in STAGES),
    )


def _elsewhere(stage: str, window: int, row: Study) -> StageView:
    # A stage without a plan in this window: computed here, kept from the first window, or not begun.
    past = row.window > window
    if stage == "embedding":
        done = past or row.state in {"awaiting_approval", "codebook", "done"}
        return StageView(stage, window, "done" if done else "computing" if row.state == "embedding" else "")
    if stage == "recovery" and row.state == "recovering" and not past:
        return StageView(stage, window, "computing")
    return StageView(stage, window, "kept" if window > 0 and stage in {"moments", "ranges"} else "")


def _cell(stage_state: str, answer: Answer | None, progress: Progress | None, upload: Upload | None) -> Cell:
    if upload is not None:
        return Cell("uploaded", bytes=upload.size, at=upload.committed_at)
    if answer is not None and not answer.accepted:
        return Cell("refused", answer.reason, at=answer.at)
    if stage_state != "open":
        return Cell("missed", "the stage closed without this site's tally")
    if answer is None:
        return Cell("waiting")
    if progress is None:
        return Cell("accepted", at=answer.at)
    return Cell("accepted", at=progress.at, pixels_done=progress.pixels_done, pixels_total=progress.pixels_total)
