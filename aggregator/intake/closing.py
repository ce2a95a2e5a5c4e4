"""The end of a plan: it closes with the uploads of certain sites, and just these are merged, once."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake import merging
from aggregator.intake.store import BlobStore
from cairn import codec


def close(session: Session, plan: tables.Plan, sites: Sequence[str], actor: str, now: datetime) -> None:
    """Close an open plan with the uploads of these sites, in the caller's transaction."""
    plan.state, plan.closed_at, plan.sites_expected = "closed", now, list(sites)
    database.audit(
        session, now, actor, "close", plan.fingerprint,
        study=plan.study, stage=plan.stage, window=plan.window, sites=list(sites),
    )  # fmt: skip


def frozen_uploads(session: Session, plan: tables.Plan) -> list[tables.Upload]:
    """List the uploads that a closed plan's merge takes, in the ledger's order."""
    sites = plan.sites_expected or []
    query = select(tables.Upload).filter_by(plan=plan.fingerprint).where(tables.Upload.site.in_(sites))
    found = list(session.scalars(query.order_by(tables.Upload.id)))
    assert len(found) == len(sites)  # frozen from the ledger, from which nothing is removed
    return found


def merge_closed(
    engine: Engine, store: BlobStore, spool: Path, plan: tables.Plan, actor: str, now: Callable[[], datetime]
) -> list[int] | None:
    """Merge the uploads of a closed plan and enter the merge; returns their numbers, None when it was entered before.

    spool  folder for the merged file until it is in the store
    Raises PlanMismatch, ChecksumMismatch, StudyError when a blob is not what the ledger says; StorageFull.
    """
    with database.reading(engine) as session:
        uploads = frozen_uploads(session, plan)
    stage = codec.decode_plan(plan.published).stage
    tally = merging.merge(store, [upload.digest for upload in uploads], plan.fingerprint, stage)
    digest = merging.store_merged(store, tally, spool)
    numbers = [upload.id for upload in uploads]
    with database.writing(engine) as session:
        row = session.get(tables.Plan, plan.fingerprint)
        if row is None or row.state != "closed":
            return None
        row.state = "done"
        session.merge(tables.Merge(plan=plan.fingerprint, digest=digest, uploads=numbers, at=now()))
        database.audit(
            session, now(), actor, "merge", plan.fingerprint,
            study=plan.study, stage=plan.stage, window=plan.window, digest=digest, uploads=numbers,
        )  # fmt: skip
    return numbers
