"""What rounds leave behind that nobody reads again: masked updates, and their sums once weights were made of them."""

from typing import Final

from sqlalchemy import Engine, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.masking.ledger import masked_words
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
        worn |= masked_words(rows, plans)
    for digest in worn:
        store.drop(digest)
