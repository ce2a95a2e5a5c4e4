"""What is dropped some days after it has served its purpose, where the settings say so; as they come, all is kept.

Never dropped: the ledger's rows and the audit, sums, maps, and the weights of a run's best and last round.
"""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, delete, func, select

from aggregator import database, tables
from aggregator.intake.store import BlobStore
from aggregator.masking.ledger import masked_words
from aggregator.runs.checkpoints import kept_rounds
from aggregator.settings import Retention
from cairn.files import remove_folder

AGGREGATOR = "aggregator"


def tidy(engine: Engine, store: BlobStore, runs: Path, settings: Retention, now: datetime) -> dict[str, int]:
    """Drop what is due; returns how much of each kind, which the audit gets too when it is anything.

    runs  folder of the checkpoints
    """
    dropped: dict[str, int] = {}
    if settings.site_tallies_days is not None:
        dropped["site_tallies"] = _site_tallies(engine, store, now - timedelta(days=settings.site_tallies_days))
    if settings.checkpoints_days is not None:
        dropped["checkpoints"] = _checkpoints(engine, runs, now - timedelta(days=settings.checkpoints_days))
    if settings.run_log_days is not None:
        dropped["run_log_lines"] = _run_logs(engine, now - timedelta(days=settings.run_log_days))
    found = {kind: number for kind, number in dropped.items() if number}
    if found:
        with database.writing(engine) as session:
            database.audit(session, now, AGGREGATOR, "retention", AGGREGATOR, **found)
    return found


def _site_tallies(engine: Engine, store: BlobStore, before: datetime) -> int:
    """Drop the blobs that single sites sent for plans whose sum was made before a moment."""
    with database.reading(engine) as rows:
        over = select(tables.Merge.plan).where(tables.Merge.at < before)
        sent = set(rows.scalars(select(tables.Upload.digest).where(tables.Upload.plan.in_(over))))
        sent |= masked_words(rows, over)
        kept = set(rows.scalars(select(tables.Merge.digest)))  # of one site alone it is the same file
        # Masked words may stand for several windows, of which the last counts.
        kept |= set(rows.scalars(select(tables.Upload.digest).where(tables.Upload.plan.not_in(over))))
    worn = sent - kept
    # Listed once: asking for each would ask a store for all that was ever dropped, every hour.
    there = worn.intersection(store.listed()) if worn else worn
    for digest in there:
        store.drop(digest)
    return len(there)


def _checkpoints(engine: Engine, folder: Path, before: datetime) -> int:
    """Drop checkpoints of runs that were done before a moment, but the best and the last."""
    with database.reading(engine) as rows:
        over = rows.scalars(select(tables.Run.name).where(tables.Run.state == "done", tables.Run.ended_at < before))
        names = list(over)
    dropped = 0
    for name in names:
        rounds, kept = kept_rounds(folder, name)
        for place in (place for number, place in rounds.items() if number not in kept):
            remove_folder(place)
            dropped += not place.exists()
        for left in (folder / name).glob(".*.part"):  # of a deletion that was cut off
            shutil.rmtree(left, ignore_errors=True)
    return dropped


def _run_logs(engine: Engine, before: datetime) -> int:
    """Drop the log lines of runs that were done before a moment."""
    over = select(tables.Run.name).where(tables.Run.state == "done", tables.Run.ended_at < before)
    with database.reading(engine) as rows:
        lines = rows.scalar(select(func.count()).select_from(tables.RunLog).where(tables.RunLog.run.in_(over))) or 0
    if lines:
        with database.writing(engine) as session:
            session.execute(delete(tables.RunLog).where(tables.RunLog.run.in_(over)))
    return lines
