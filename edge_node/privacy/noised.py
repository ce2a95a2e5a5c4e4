"""The noise of a site over its tally, table by table."""

import numpy as np

from cairn.errors import StudyError
from cairn.moments import carry, exact
from cairn.plan import Plan
from cairn.privacy.noise import RandomBytes, add_noise
from cairn.privacy.sensitivity import scales, site_scale
from cairn.tally import CELL_LIMIT, Tables, Tally

IN_WORDS = ("sum", "second", "profile")


def noised(plan: Plan, tally: Tally, random: RandomBytes) -> Tally:
    """Return a tally with this site's share of the plan's noise in every cell.

    A sum in two words gets its noise on the value, which then stands in the low word alone: how often words overflowed
    would tell of each site's own value, beside the sum.

    tally  exact; stays as it is
    Raises StudyError when a sum is too large for one word.
    """
    terms = plan.privacy
    assert terms is not None  # the caller has paid for it
    tables: Tables = {}
    for name, scale in scales(plan.stage.shapes(), terms).items():
        table = tally.tables[name].copy()
        cells = table
        if name in IN_WORDS:
            carry(table)
            if int(np.abs(table[1]).max(initial=0)) >= CELL_LIMIT >> 33:
                raise StudyError("there are too many pixels for a private sum; ask for a smaller brightest norm")
            table[0] = exact(table).astype(np.int64)
            table[1] = 0
            cells = table[0]
        add_noise(cells, site_scale(scale, terms), random)
        tables[name] = table
    return Tally(tally.fingerprint, tables)
