"""Which blobs an aggregator cannot do without: those that its database names and may read again."""

from sqlalchemy import Engine, select

from aggregator import tables
from aggregator.database import reading
from aggregator.masking.ledger import masked_words


def needed(engine: Engine) -> frozenset[str]:
    """Give the digests of blobs that the database names.

    Not among them: what a site sent for a plan that is done (its sum is there), and the sums of runs' rounds, of which
    weights were made. Both may have been dropped, by `retention` or by aggregator/runs/worn.py.
    """
    with reading(engine) as rows:
        done = set(rows.scalars(select(tables.Plan.fingerprint).filter_by(state="done")))
        runs = set(rows.scalars(select(tables.Run.name)))
        of_runs = set(rows.scalars(select(tables.Plan.fingerprint).where(tables.Plan.study.in_(runs))))
        found = {digest for plan, digest in rows.execute(select(tables.Upload.plan, tables.Upload.digest))
                 if plan not in done}  # fmt: skip
        found |= {digest for plan, digest in rows.execute(select(tables.Merge.plan, tables.Merge.digest))
                  if plan not in of_runs}  # fmt: skip
        found |= {results["heavy_hitters_digest"] for results in rows.scalars(select(tables.Study.results))
                  if "heavy_hitters_digest" in results}  # fmt: skip
        unfinished = select(tables.Run.spec).where(tables.Run.state != "done")
        found |= {spec["first_weights"] for spec in rows.scalars(unfinished) if spec.get("first_weights")}
        found |= masked_words(rows, select(tables.Plan.fingerprint).where(tables.Plan.state != "done"))
    return frozenset(found)
