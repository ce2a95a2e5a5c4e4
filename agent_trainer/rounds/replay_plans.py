"""What the sites tally of their replay in each round, and what the merged tables make of it. Pure.

Round 1 (and again until one was merged): histograms of the pooled cells, from which the coder's thresholds are fitted.
Every later round: the keys of the new transitions, in one count sketch; the merged sketches are added up.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent_trainer.config import DqnConfig
from cairn import codec
from cairn.codec import decode_plan, encode_plan
from cairn.errors import PlanMismatch
from cairn.plan import Plan, ReplayPlan, ReplayRangesPlan, Secrecy
from cairn.sketch import SketchSpec
from cairn.tally import Tables, Tally, add
from cairn.transitions import TransitionCoder, fit_thresholds

COUNTING = ("sketched", "sketched_td")  # the samplers that need the federation's counts


@dataclass
class ReplayPlans:
    """A run's replay plans and the sum of their merged tallies.

    config     None for a run of another algorithm, which has no replay and no plans
    published  the plan of the latest replay round, whose coder and sketch hold for all; b"" before the first
    tables     the sum of all merged tallies of replay rounds; empty before the first
    secrecy    of a masked run: its tallies are summed secretly too
    """

    run: str
    config: DqnConfig | None
    published: bytes = b""
    tables: Tables | None = None
    secrecy: Secrecy | None = None

    def plan(self, number: int) -> bytes:
        """Return the plan of a round as published bytes; empty when the run's sampler needs no counts."""
        if self.config is None or self.config.replay not in COUNTING:
            return b""
        stage = self._stage() or ReplayRangesPlan(self.config.pool)
        return encode_plan(Plan(self.run, number, stage, self.secrecy))

    def absorb(self, published: bytes, merged: Tally) -> None:
        """Take the merged tally of a round's plan: fit the coder, or add up. Raises PlanMismatch for another's."""
        stage = decode_plan(published).stage
        if {name: table.shape for name, table in merged.tables.items()} != dict(stage.shapes()):
            raise PlanMismatch("the merged replay tally has other tables than its plan; nothing was added")
        if not int(merged.tables["transitions"][0]):
            return  # nobody tallied in time
        if isinstance(stage, ReplayRangesPlan):
            assert self.config is not None  # else there was no plan
            self.published = encode_plan(Plan(self.run, 0, self._first(merged.tables, self.config)))
        elif self.tables is None:
            self.tables = {name: table.copy() for name, table in merged.tables.items()}
        else:
            add(self.tables, merged.tables)

    def counts(self) -> Tally | None:
        """Return the sum of the merged tallies, under the fingerprint of the plan that holds its coder."""
        if self.tables is None:
            return None
        return Tally(hashlib.sha256(self.published).digest(), self.tables)

    def _stage(self) -> ReplayPlan | None:
        if not self.published:
            return None
        stage = decode_plan(self.published).stage
        assert isinstance(stage, ReplayPlan)
        return stage

    def _first(self, tables: Tables, config: DqnConfig) -> ReplayPlan:
        thresholds = fit_thresholds(tables["cells"], config.radix)
        coder = TransitionCoder(config.pool, thresholds, len(config.tasks), config.actions, config.reward_edges)
        seed = hashlib.sha256(f"cairn replay sketch of {self.run}".encode()).digest()
        return ReplayPlan(coder, SketchSpec(config.sketch_depth, config.sketch_width, seed))


def written(tally: Tally) -> bytes:
    """Write a tally as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        codec.write_tally(Path(folder) / "counts.tally", tally)
        return (Path(folder) / "counts.tally").read_bytes()


def read(content: bytes) -> Tally:
    """Read a tally from the bytes of its file. Raises ChecksumMismatch, PlanMismatch."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "counts.tally").write_bytes(content)
        return codec.read_tally(Path(folder) / "counts.tally")
