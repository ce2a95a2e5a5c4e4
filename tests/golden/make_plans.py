"""Write the golden plans and the golden tally; a change of them is a decision with an ADR, as old sites read new plans.

python -m tests.golden.make_plans
"""

from pathlib import Path

import numpy as np

from cairn import codec
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser
from cairn.plan import (
    CodebookPlan,
    CountsPlan,
    MomentsPlan,
    Plan,
    RangesPlan,
    RecoveryPlan,
    ReplayPlan,
    ReplayRangesPlan,
    Stage,
    UpdatePlan,
    fingerprint,
)
from cairn.sketch import SketchSpec
from cairn.tally import Tally, zeros
from cairn.transitions import TransitionCoder

FOLDER = Path(__file__).parent
PIXELS = PixelLevels(("dapi", "keratin", "cd45"), 1.5, 0.25)
PROJECTION = np.array([[WEIGHT_ONE, 0, 0], [0, -WEIGHT_ONE // 2, WEIGHT_ONE // 3]], np.int32)
QUANTISER = Quantiser(PIXELS, PROJECTION, 12.75, np.array([-0.5, -1.0]), np.array([0.5, 1.0]), 22)
CODER = TransitionCoder((2, 1), np.array([[10, 200], [0, 255]], np.uint8), 2, 4, (-0.5, 0.5))
KEYS = np.array([0, 7, 22, 483], np.uint64)
STAGES: tuple[Stage, ...] = (
    MomentsPlan(PIXELS),
    RangesPlan(PIXELS, PROJECTION),
    CountsPlan(QUANTISER, SketchSpec(3, 16, bytes(range(32))), 4, (6, 9)),
    RecoveryPlan(QUANTISER, KEYS),
    CodebookPlan(QUANTISER, KEYS, np.array([0, 1, 1, 0], np.uint8), (1, 0), ("tumour", "other")),
    ReplayRangesPlan((2, 1)),
    ReplayPlan(CODER, SketchSpec(2, 8, bytes(range(32)))),
    UpdatePlan(1000, 20, 64.0, 2**20),
)


def plan(stage: Stage) -> Plan:
    """Make the golden plan of a stage."""
    return Plan("breast", 2, stage)


def tally() -> Tally:
    """Make the golden tally, of the counts plan: one table of wide cells, the others of narrow ones."""
    stage = STAGES[2]
    made = zeros(stage)
    made["pixels"][0], made["foreground"][0] = 2**40, 1000
    made["dense"] += np.arange(16)
    for sign, name in ((1, "sketch_6"), (-1, "sketch_9")):
        made[name] += sign * np.arange(48).reshape(3, 16)
    return Tally(fingerprint(codec.encode_plan(plan(stage))), made)


def main() -> None:
    """Write the files beside this one."""
    for stage in STAGES:
        (FOLDER / f"{stage.stage}.plan").write_bytes(codec.encode_plan(plan(stage)))
    codec.write_tally(FOLDER / "counts.tally", tally())


if __name__ == "__main__":
    main()
