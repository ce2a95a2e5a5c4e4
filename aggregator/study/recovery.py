"""From merged counts to the federation's heavy hitters: candidates from the tables, then their exact counts."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.study.noise import threshold
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
        return min(1.0, int(self.counts.sum()) / max(1, self.foreground))


def candidates(
    tables: Tables, stage: CountsPlan, top_k: int, kernels: Kernels, min_count: int = 1, noise: float = 0.0
) -> heavy.HeavyHitters:
    """Find the keys to be verified: none whose estimate leaves no hope for `min_count`, for sites get to see them all.

    noise  standard deviation of the dense table's, in a private tally
    Raises StudyError when the tables show none.
    """
    # A sketch's median over rows takes most of its noise away; what is under one standard deviation never verifies.
    found = heavy.recover(
        tables,
        stage,
        math.ceil(OVER_PROVISION * top_k),
        kernels,
        least=max(1, math.ceil(noise if stage.sketch_bits else 2 * noise)),
        dense_noise=math.ceil(noise),
    )
    hopeful = found.counts + found.error_bound >= min_count
    found = heavy.HeavyHitters(found.keys[hopeful], found.counts[hopeful], found.error_bound)
    if not len(found.keys):
        raise StudyError(
            f"none of {int(tables['foreground'][0])} foreground pixels makes a key that stands out; "
            "check the study's bands, offset and scale against the images"
        )
    return found


def verified(tables: Tables, stage: RecoveryPlan, top_k: int, min_count: int, noise: float = 0.0) -> Verified:
    """Choose the heavy hitters from the candidates' exact counts.

    noise  standard deviation of the counts', in a private tally; what does not stand out of it is not shown
    Raises StudyError when none reaches `min_count`.
    """
    counts = tables["count"]
    min_count = threshold(min_count, noise)
    shown = np.flatnonzero(counts >= min_count)
    if not len(shown):
        raise StudyError(
            f"none of {len(counts)} candidate keys has a count of at least {min_count} over all sites; "
            "ask for a smaller min_count, or a larger ε of a private study, or add images"
        )
    keys, counts = stage.candidates[shown], counts[shown]
    order = np.lexsort((keys, -counts))[:top_k]
    return Verified(keys[order], counts[order], int(tables["foreground"][0]))
