"""What rounds leave behind that nobody reads again: masked updates, and their sums once weights were made of them."""

from typing import Final

from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from cairn.masking.canonical import decode
from cairn.masking.messages import SignedReceipt
from cairn.plan import Plan

KEPT: Final = 3  # rounds, as many as there are checkpoints: a run may go on behind each of them
LOOKED_AT: Final = 6  # rounds before those; each round drops what is before it


def drop(engine: Engine, store: BlobStore, newest: Plan) -> None:
    """Drop the blobs of a run's earlier rounds of updates; the ledger keeps their names."""
    last = newest.window - KEPT
    with database.reading(engine) as rows:
        query = select(tables.Plan.fingerprint).filter_by(study=newest.study, stage=newest.stage.stage)
        plans = rows.scalars(query.where(tables.Plan.window.between(last - LOOKED_AT, last - 1))).all()
        worn = set(rows.scalars(select(tables.Merge.digest).where(tables.Merge.plan.in_(plans))))
        receipts = (
            select(tables.MaskingMessage.body)
            .join(tables.MaskingSession, tables.MaskingSession.digest == tables.MaskingMessage.session)
            .where(tables.MaskingSession.plan.in_(plans), tables.MaskingMessage.kind == "receipt")
        )
        worn |= {decode(SignedReceipt, body).body.masked.hex() for body in rows.scalars(receipts)}
    for digest in worn:
        store.drop(digest)
