"""From merged counts to the federation's heavy hitters: candidates from the tables, then their exact counts."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn import heavy
from cairn.errors import StudyError
from cairn.kernels import Kernels
from cairn.plan import CountsPlan, RecoveryPlan
from cairn.tally import Tables

OVER_PROVISION = 1.25  # candidates for each key wanted, so that an estimate that is too low costs no true heavy hitter


@dataclass(frozen=True)
class Verified:
    """The heavy hitters with their exact counts, by falling count and then rising key.

    keys        uint64[k]
    counts      int64[k]
    foreground  foreground pixels of the sites that verified
    """

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    foreground: int

    @property
    def mass(self) -> float:
        """Share of the foreground pixels that the heavy hitters hold."""
        return int(self.counts.sum()) / max(1, self.foreground)


def candidates(tables: Tables, stage: CountsPlan, top_k: int, kernels: Kernels) -> heavy.HeavyHitters:
    """Find the keys to be verified. Raises StudyError when the tables show none."""
    found = heavy.recover(tables, stage, math.ceil(OVER_PROVISION * top_k), kernels)
    if not len(found.keys):
        raise StudyError(
            f"none of {int(tables['foreground'][0])} foreground pixels makes a key that stands out; "
            "check the study's bands, offset and scale against the images"
        )
    return found


def verified(tables: Tables, stage: RecoveryPlan, top_k: int, min_count: int) -> Verified:
    """Choose the heavy hitters from the candidates' exact counts. Raises StudyError when none reaches `min_count`."""
    counts = tables["count"]
    shown = np.flatnonzero(counts >= max(1, min_count))
    if not len(shown):
        raise StudyError(
            f"none of {len(counts)} candidate keys has a count of at least {min_count} over all sites; "
            "ask for a smaller min_count or add images"
        )
    keys, counts = stage.candidates[shown], counts[shown]
    order = np.lexsort((keys, -counts))[:top_k]
    return Verified(keys[order], counts[order], int(tables["foreground"][0]))
