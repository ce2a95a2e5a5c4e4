"""The one noun that travels: a set of named integer tables that add."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanMismatch
from cairn.plan import Stage

Tables = dict[str, npt.NDArray[np.int64]]
CELL_LIMIT = 2**53  # of one site's cell: a thousand sites' sum stays under 2^63
SIGNED = ("sketch_", "update")  # how the names begin of tables whose cells may be negative; all others never are


@dataclass(frozen=True)
class Tally:
    """What one site (or the sum of many) counted for one plan.

    fingerprint  32 bytes, of the plan
    tables       int64, names and shapes as the plan's stage says
    """

    fingerprint: bytes
    tables: Tables


def zeros(stage: Stage) -> Tables:
    """Make a stage's tables, all zero."""
    return {name: np.zeros(shape, np.int64) for name, shape in stage.shapes().items()}


def add(into: Tables, other: Mapping[str, npt.NDArray[np.int32] | npt.NDArray[np.int64]]) -> None:
    """Add tables to tables in place, mod 2^64. Raises PlanMismatch when names or shapes differ, or for itself."""
    if into is other:
        raise PlanMismatch("a tally was to be merged with itself; merge each upload once")
    if {n: t.shape for n, t in into.items()} != {n: t.shape for n, t in other.items()}:
        raise PlanMismatch("the tallies' tables differ in name or shape; both must be of the same plan")
    for name, table in into.items():
        table += other[name]


def check(tally: Tally, fingerprint: bytes, stage: Stage) -> None:
    """Refuse a tally that is not of this plan. Raises PlanMismatch."""
    if tally.fingerprint != fingerprint:
        raise PlanMismatch(f"the tally is of plan {tally.fingerprint.hex()[:12]}, not of {fingerprint.hex()[:12]}")
    found = {name: table.shape for name, table in tally.tables.items()}
    expected = dict(stage.shapes())
    if found != expected:
        raise PlanMismatch(f"the tally holds tables {found}; the plan's {stage.stage} stage has {expected}")


def check_table(name: str, table: npt.NDArray[np.int32] | npt.NDArray[np.int64], *, noisy: bool = False) -> None:
    """Refuse a table that no count can have made, so that one site cannot overflow a sum. Raises PlanMismatch.

    noisy  of a private plan: noise can bring any cell below 0
    """
    if not table.size:
        return
    lowest, highest = int(table.min()), int(table.max())
    floor = -CELL_LIMIT if noisy or name.startswith(SIGNED) else 0
    if lowest < floor or highest > CELL_LIMIT:
        raise PlanMismatch(
            f"table {name!r} holds cells from {lowest} to {highest} where {floor} to {CELL_LIMIT} can occur; "
            "the site's software or disk is at fault"
        )
