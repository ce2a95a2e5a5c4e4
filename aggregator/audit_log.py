"""The aggregator's audit as lines of one chain (`cairn.chain`), the same form as a site's.

A row holds the digest of the row before it; its line is made of the row itself, so that a change of any column shows.
Rows from before version 0004 of the schema hold no digest and stand at the beginning.
"""

import json
from collections.abc import Iterator
from datetime import UTC

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from aggregator.tables import Audit
from cairn import chain

AT_A_TIME = 1000  # rows in memory


def line(row: Audit) -> bytes:
    """Write a row as its line; the row has its number."""
    fields = {
        "id": row.id,
        "time": row.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        # A database may give the keys back in another order, and lists for tuples.
        "detail": json.loads(json.dumps(row.detail, sort_keys=True)),
    }
    return chain.write_line(fields, row.previous)


def head(session: Session) -> str:
    """Return the digest of the last row, which the next one holds; of what was added in this session too."""
    last = session.scalars(select(Audit).order_by(Audit.id.desc()).limit(1)).one_or_none()
    return chain.FIRST if last is None else chain.digest(line(last))


def lines(session: Session) -> Iterator[bytes]:
    """Read all lines, oldest first."""
    query = select(Audit).order_by(Audit.id).execution_options(yield_per=AT_A_TIME)
    for row in session.scalars(query):
        yield line(row)


def verify(engine: Engine, known: str = "") -> chain.Verdict:
    """Check the whole chain; `known` as in `chain.verify`."""
    with Session(engine) as session:
        return chain.verify(lines(session), known)
