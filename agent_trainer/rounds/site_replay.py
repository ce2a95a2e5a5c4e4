"""The replay of a DQN run in a site's round: take the federation's counts, hand the new keys to the edge."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_trainer.replay import Estimate, Replay
from agent_trainer.rounds.wire import Order
from cairn import codec, kernels
from cairn.errors import PlanMismatch
from cairn.files import write_atomically
from cairn.hashing import Keys
from cairn.plan import ReplayPlan, ReplayRangesPlan, fingerprint


def take_counts(replay: Replay, order: Order) -> None:
    """Take the coder of the round's plan, and the federation's counts. Raises PlanMismatch, ChecksumMismatch."""
    if not order.coder_plan:
        return
    stage = codec.decode_plan(order.coder_plan).stage
    if not isinstance(stage, ReplayPlan):
        raise PlanMismatch("the round's coder comes in a plan of another kind; update the older side")
    replay.code_with(stage.coder)
    if order.counts:
        replay.count_with(_estimate(stage, order.counts))


def hand_over(replay: Replay, plan: bytes, spool: Path) -> str:
    """Write what the round's plan counts where the edge finds it; returns the plan's fingerprint in hex.

    The edge tallies it by the plan it approved. Raises PlanMismatch for a plan of another kind, OSError.
    """
    found: npt.NDArray[np.uint64] | npt.NDArray[np.uint8]
    match codec.decode_plan(plan).stage:
        case ReplayRangesPlan():
            found = replay.take_cells()
        case ReplayPlan():
            found = replay.take_keys()
        case other:
            raise PlanMismatch(f"the round's plan is of the stage {other.stage}; update the older side")
    name = fingerprint(plan).hex()
    with write_atomically(spool / f"{name}.npy", 0o600) as file:
        np.save(file, found, allow_pickle=False)
    return name


def _estimate(stage: ReplayPlan, counts: bytes) -> Estimate:
    """Return f̂ of the merged tally file. Raises PlanMismatch, ChecksumMismatch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.tally"
        path.write_bytes(counts)
        tally = codec.read_tally(path)
    if {name: table.shape for name, table in tally.tables.items()} != dict(stage.shapes()):
        raise PlanMismatch("the federation's counts have other tables than their plan")
    table, seeds, backend = tally.tables[stage.table], stage.sketch.seeds(), kernels.load("numba")

    def estimate(keys: Keys) -> npt.NDArray[np.int64]:
        return backend.estimate(table, keys, seeds)

    return estimate
