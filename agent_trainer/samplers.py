"""How replay draws: one formula, four samplers, and the sum tree beneath them.

    P(i) = p_i / Σ p,   p_i = (|δ_i| + ε)^α / f̂(key_i)^β,   w_i = (N·P(i))^(-β_IS) / max w

Schaul et al. 2016, equations 1 and 2, with paper 1's frequencies (§IV) under the TD error.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

FAN = 16  # children of a node; with ROOT the fastest of those tried, for batches of 48 from 10^5 and 10^6 rows
ROOT = 4096  # children of the root at most
SMALLEST_ERROR = 1e-2  # ε, mm: what has no error left is still drawn now and then; Schaul et al. 2016, §3.3


@dataclass(frozen=True)
class Sampler:
    """What a sampler goes by.

    errors  drawn by TD error; otherwise α = 0
    counts  unique tuples only, drawn by inverse frequency; otherwise β = 0 and all tuples are kept
    """

    errors: bool
    counts: bool


SAMPLERS = {
    "uniform": Sampler(errors=False, counts=False),
    "prioritised": Sampler(errors=True, counts=False),
    "sketched": Sampler(errors=False, counts=True),
    "sketched_td": Sampler(errors=True, counts=True),
}


class SumTree:
    """Numbers ≥ 0 under a tree of their sums, flat at the root: set and find whole batches at once."""

    def __init__(self, size: int) -> None:
        self._levels = [np.zeros(-(-size // FAN) * FAN)]  # leaves first, the children of the root last
        while len(self._levels[-1]) > ROOT:
            nodes = len(self._levels[-1]) // FAN
            self._levels.append(np.zeros(-(-nodes // FAN) * FAN))
        self.leaves: Reals = self._levels[0][:size]
        self.nbytes = sum(level.nbytes for level in self._levels)

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._levels[-1].sum())

    def set(self, index: Rows, values: Reals) -> None:
        """Set leaves int64[n] to values float64[n]; of an index given twice, the last value counts."""
        self.leaves[index] = values
        many = len(index) * FAN > len(self.leaves)
        for below, level in zip(self._levels, self._levels[1:], strict=False):
            families = below.reshape(-1, FAN)
            if many:
                families.sum(axis=1, out=level[: len(families)])
            else:  # sums are taken anew, never adjusted, so that no error of rounding piles up
                index = index // FAN
                level[index] = families[index].sum(axis=1)

    def find(self, mass: Reals) -> Rows:
        """Return for each mass the first leaf up to which the leaves sum to more: leaf i with chance leaf_i / total.

        mass  float64[n], 0 ≤ mass < total
        """
        # Sums one after another and sums in pairs differ by rounding: never run past the last child that has mass.
        ends = np.cumsum(self._levels[-1])
        mass = np.minimum(mass, np.nextafter(ends[-1], 0.0))
        node = np.searchsorted(ends, mass, side="right")
        mass = mass - np.where(node > 0, ends[node - 1], 0.0)
        every = np.arange(len(mass))
        for level in reversed(self._levels[:-1]):
            ends = level.reshape(-1, FAN)[node].cumsum(axis=1)
            mass = np.minimum(mass, np.nextafter(ends[:, -1], 0.0))
            child = np.count_nonzero(ends <= mass[:, None], axis=1)
            mass = mass - np.where(child > 0, ends[every, child - 1], 0.0)
            node = node * FAN + child
        return node


class Sampling:
    """The distribution over rows from which replay draws.

    size   rows
    alpha  exponent of the TD error; 0 leaves it out
    beta   exponent of the count; 0 leaves it out
    """

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self._tree = SumTree(size)
        self._error = np.zeros(size, np.float32)
        self._count = np.ones(size, np.float32)
        self._top = np.float32(1.0)  # new tuples come in with the largest error seen: Schaul et al. 2016, algorithm 1
        self.nbytes = self._tree.nbytes + self._error.nbytes + self._count.nbytes

    def put(self, rows: Rows, counts: npt.NDArray[np.int64]) -> None:
        """Take new rows int64[n], seen counts int64[n] times; counts below 1 are taken as 1."""
        self._error[rows] = self._top
        self.recount(rows, counts)

    def recount(self, rows: Rows, counts: npt.NDArray[np.int64]) -> None:
        """Give rows other counts."""
        self._count[rows] = np.maximum(counts, 1)
        self._refresh(rows)

    def learn(self, rows: Rows, td_error: npt.NDArray[np.float32]) -> None:
        """Give rows the TD errors float32[n] that their last update had."""
        self._error[rows] = np.abs(td_error) + np.float32(SMALLEST_ERROR)
        self._top = max(self._top, self._error[rows].max(initial=0))
        self._refresh(rows)

    def remove(self, rows: Rows) -> None:
        """Never draw these rows again, until they are put."""
        self._tree.set(rows, np.zeros(len(rows)))

    def pack(self, rows: Rows) -> None:
        """Move rows int64[m] to places 0 to m - 1 and remove all others."""
        first = slice(len(rows))
        self._error[first], self._count[first] = self._error[rows], self._count[rows]
        self._tree.set(np.arange(len(self._error)), np.zeros(len(self._error)))
        self._refresh(np.arange(len(rows)))

    def draw(self, n: int, held: int, beta_is: float, rng: np.random.Generator) -> tuple[Rows, npt.NDArray[np.float32]]:
        """Draw rows, one from each n-th part of the mass (Schaul et al. 2016, appendix B.2.1), with replacement.

        held     N, rows that can be drawn, at least 1
        beta_is  exponent of the importance weights, 0 (none) to 1 (as if drawn uniformly)
        returns  rows int64[n] and weights float32[n], the largest of the batch 1
        """
        total = self._tree.total
        rows = self._tree.find((np.arange(n) + rng.random(n)) * (total / n))
        weight = (held * self._tree.leaves[rows] / total) ** -beta_is
        return rows, (weight / weight.max()).astype(np.float32)

    def effective(self) -> float:
        """Return the effective sample size (Σp)² / Σp² (Kish 1965): the number of rows if all are drawn alike."""
        p = self._tree.leaves
        squares = float(p @ p)
        return self._tree.total**2 / squares if squares else 0.0

    def _refresh(self, rows: Rows) -> None:
        p = self._error[rows].astype(np.float64) ** self.alpha / self._count[rows].astype(np.float64) ** self.beta
        self._tree.set(rows, p)
