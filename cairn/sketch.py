"""Count sketch (Charikar, Chen & Farach-Colton 2002): spec, merge, error bounds, and a size for a guarantee."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError, PlanMismatch
from cairn.hashing import FAMILY, SEED_BYTES, Keys, RowSeeds, row_seeds
from cairn.kernels import Kernels

__all__ = ["FAMILY", "MAX_DEPTH", "MAX_WIDTH", "Sketch", "SketchSpec", "error_bound", "suggest", "suggest_for_top"]

MAX_DEPTH = 64
MAX_WIDTH = 2**26
COLUMNS_PER_KEY = 10  # of the wanted top k; measured in DESIGN §6: 200,000 columns for the top 20,000


@dataclass(frozen=True)
class SketchSpec:
    """What two sketches must share to be added.

    depth   rows R, 1 to 64
    width   columns C, 2 to 2^26
    seed    32 bytes, of which the rows' multipliers are derived
    family  name of the hash family
    """

    depth: int
    width: int
    seed: bytes
    family: str = FAMILY

    def __post_init__(self) -> None:
        if self.family != FAMILY:
            raise PlanError(f"hash family {self.family!r} is not known; this version has {FAMILY!r}, update Cairn")
        if not (1 <= self.depth <= MAX_DEPTH and 2 <= self.width <= MAX_WIDTH and len(self.seed) == SEED_BYTES):
            raise PlanError(
                f"a sketch of {self.depth} x {self.width} with a seed of {len(self.seed)} bytes was asked for; "
                "depth must be 1 to 64, width 2 to 2^26, the seed 32 bytes"
            )

    def seeds(self) -> RowSeeds:
        """Derive the rows' multipliers; uint64[depth, 3]."""
        return row_seeds(self.seed, self.depth, self.family)


class Sketch:
    """One table of counters with its spec: the sketch by itself, outside a tally.

    table  int64[depth, width], arithmetic mod 2^64
    """

    def __init__(self, spec: SketchSpec, kernels: Kernels) -> None:
        self.spec = spec
        self.table = np.zeros((spec.depth, spec.width), np.int64)
        self._kernels = kernels
        self._seeds = spec.seeds()

    def update(self, keys: Keys, counts: npt.NDArray[np.int64] | None = None) -> None:
        """Add keys uint64[n], each once or counts int64[n] times."""
        self._kernels.update(self.table, keys, np.ones(len(keys), np.int64) if counts is None else counts, self._seeds)

    def estimate(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Estimate the counts of keys uint64[n]: the median over rows of sign times bucket; int64[n]."""
        return self._kernels.estimate(self.table, keys, self._seeds)

    def merge(self, other: "Sketch") -> None:
        """Add another sketch: the sketch of both streams. Raises PlanMismatch for a foreign spec or itself."""
        if other is self:
            raise PlanMismatch("a sketch was to be merged with itself; merge each sketch once")
        if other.spec != self.spec:
            raise PlanMismatch(
                f"a {other.spec.depth} x {other.spec.width} sketch of another spec was to be merged into one of "
                f"{self.spec.depth} x {self.spec.width}; depth, width, seed and family must be the same"
            )
        self.table += other.table


def error_bound(table: npt.NDArray[np.int64], delta: float = 0.01) -> int:
    """Bound the error of an estimate, from the table as it is.

    What else lies in a key's bucket is over t with probability p(t), the share of the table's buckets over t, and adds
    or takes away with equal chance; a median of R rows errs only where half of them err to the same side:

        Pr[|f̂(x) - f(x)| > t] ≤ 2·Pr[Binomial(R, p(t)/2) ≥ R/2] ≤ δ       docs/MATHS.md, "The bound that is shown"

    table    int64[depth, width]
    delta    probability for one key, over 0 and under 1
    returns  the smallest t seen in the table that satisfies it; 0 when most buckets are empty
    """
    if not 0 < delta < 1:
        raise PlanError(f"a probability of {delta} was given for the error bound; it must be over 0 and under 1")
    share = _share(len(table), delta)
    size = np.abs(table).ravel()
    rank = min(size.size - 1, math.ceil((1 - share) * size.size))
    return int(np.partition(size, rank)[rank])


def suggest(epsilon: float, delta: float) -> tuple[int, int]:
    """Choose depth and width for |f̂(x) - f(x)| ≤ ε‖f‖₂ with probability 1 - δ for each key.

    Chebyshev: a row errs by more with probability p ≤ 1/(Cε²); Chernoff: the median with (4p(1 - p))^(R/2).
    p = 1/8 makes the table smallest: C = 8/ε², R = 2.42·ln(1/δ).       docs/MATHS.md, "Bounds"

    returns (depth, width). Raises PlanError where no sketch within the limits has this guarantee.
    """
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise PlanError(f"ε {epsilon} and δ {delta} were asked for; both must be over 0 and under 1")
    depth, width = _depth(delta), max(2, math.ceil(8 / epsilon**2))
    if depth > MAX_DEPTH or width > MAX_WIDTH:
        raise PlanError(
            f"ε {epsilon} and δ {delta} need {depth} x {width} counters; ask for less, "
            f"at most {MAX_DEPTH} x {MAX_WIDTH} are allowed"
        )
    return depth, width


def suggest_for_top(k: int, keys: int) -> tuple[int, int]:
    """Choose depth and width to recover the k most frequent of a stream.

    width = 10·k; depth so that of `keys` keys at most about k are wrongly taken for frequent, δ = k/keys.

    keys     keys in the whole stream (all sites' pixels); only its order of magnitude matters
    returns  (depth, width), within the limits of a spec
    Raises PlanError for k or keys below 1.
    """
    if k < 1 or keys < 1:
        raise PlanError(f"the top {k} of {keys} keys were asked for; both must be at least 1")
    delta = min(0.1, k / keys)
    width = COLUMNS_PER_KEY * min(k, keys)
    return min(_depth(delta), MAX_DEPTH), min(max(width, 2), MAX_WIDTH)


def _share(depth: int, delta: float) -> float:
    """Solve 2·Pr[Binomial(R, p/2) ≥ R/2] = δ for p, which may not pass 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 4
        tail = sum(math.comb(depth, i) * p**i * (1 - p) ** (depth - i) for i in range((depth + 1) // 2, depth + 1))
        low, high = ((low + high) / 2, high) if 2 * tail <= delta else (low, (low + high) / 2)
    return low


def _depth(delta: float) -> int:
    return math.ceil(math.log(1 / delta) * 2 / math.log(16 / 7))  # 2.42·ln(1/δ), from 4p(1 - p) = 7/16
