"""Windows that were sealed too late for their own sum: a later session of the same stage takes them along."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sqlalchemy import exists, select
from sqlalchemy.orm import Session as Database

from aggregator import tables
from aggregator.masking import ledger
from aggregator.masking.ledger import Held
from cairn import codec
from cairn.plan import UpdatePlan

MOST: Final = 16  # earlier windows that a session takes, the newest first


def joinable(rows: Database, plan: tables.Plan) -> tuple[bytes, ...]:
    """List the earlier windows that sites may add to a plan's tally: fingerprints, the newest first.

    Summed before, of the same stage in every number, and with a site that is enrolled and not in their sum. Updates
    never: what a site learned from old weights is of no use to new ones.
    """
    decoded = codec.decode_plan(plan.published)
    if isinstance(decoded.stage, UpdatePlan):
        return ()
    sent = exists().where(tables.Upload.plan == tables.Plan.fingerprint, tables.Upload.site == tables.Member.name)
    uploaded = sent.correlate(tables.Plan, tables.Member)
    lacking = exists().where(tables.Member.role == "site", tables.Member.state == "enrolled", ~uploaded)
    query = select(tables.Plan).filter_by(study=plan.study, stage=plan.stage, state="done")
    query = query.where(tables.Plan.window < plan.window, lacking.correlate(tables.Plan)).order_by(
        tables.Plan.window.desc()
    )
    found = rows.scalars(query.limit(MOST))
    return tuple(
        bytes.fromhex(row.fingerprint)
        for row in found
        if codec.encode_plan(replace(decoded, window=row.window)) == row.published
    )


def booked(rows: Database, site: str, windows: tuple[bytes, ...]) -> bool:
    """Tell whether one of the windows of a site is in the ledger already."""
    names = [window.hex() for window in windows]
    query = select(tables.Upload.id).where(tables.Upload.site == site, tables.Upload.plan.in_(names))
    return rows.scalar(query.limit(1)) is not None


def ended_without(rows: Database, held: Held, site: str) -> Iterator[Held]:
    """Give the sessions of the windows that this one takes along which were summed without a site of their roster.

    Their votes are the proof by which the site sets its counts free.
    """
    for window in held.session.late:
        for earlier in ledger.of_plan(rows, window.hex()):
            names = [signed.body.site for signed in earlier.on.roster.members] if "roster" in earlier.made else []
            if earlier.votes is not None and site in names and names.index(site) not in earlier.surviving:
                yield earlier
