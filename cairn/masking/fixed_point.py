"""Model updates as integers that the masks can carry: fixed point, summed mod 2^64.

    q = round(w · clip(x, ±c) · 2^f),   mean = Σ q / (2^f · Σ w)          round half to even

For float32 x and weights up to 2^29 the product w·x has at most 53 bits and is exact in float64, so that rounding to a
step is a site's only error. With n sites of total weight W the mean is off the clipped weighted mean by at most

    n / (2 W) · 2^-f  (that is 2^-(f+1) for weights of 1)  and 2^-52 of itself, for the division in float64

and a value beyond ±c moves by what was clipped. The weights' sum travels as one more cell: no site's own is known.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import Diverged, MaskingError
from cairn.masking.stream import cell_limit

WEIGHT_LIMIT = 2**29


@dataclass(frozen=True)
class FixedPoint:
    """How a run's updates become integers; part of what all its sites share.

    fraction_bits  f
    clip           c, over 0; exact in float32
    weight_limit   the largest weight (number of examples) that one site may give itself
    """

    fraction_bits: int
    clip: float
    weight_limit: int

    def __post_init__(self) -> None:
        exact = 0 < self.clip < float("inf") and float(np.float32(self.clip)) == self.clip
        if not (0 <= self.fraction_bits <= 40 and exact and 1 <= self.weight_limit <= WEIGHT_LIMIT):
            raise MaskingError(
                f"a fixed point of {self.fraction_bits} bits, clipped at {self.clip}, with weights to "
                f"{self.weight_limit}; expected 0 to 40 bits, a clip that float32 holds, weights to {WEIGHT_LIMIT}"
            )

    def check(self, members: int) -> None:
        """Refuse a form in which the sum over the members could wrap round mod 2^64. Raises MaskingError."""
        largest = self.clip * 2.0**self.fraction_bits * self.weight_limit
        if largest > cell_limit(64, members):
            raise MaskingError(
                f"updates up to {largest:.3g} of {members} sites do not fit into 64 bits; lower the clip, "
                "the fraction's bits or the largest weight"
            )

    def encode(self, values: npt.NDArray[np.float32], weight: int) -> npt.NDArray[np.int64]:
        """Write a site's update and its weight as cells.

        values   float32[n], finite
        weight   0 < weight ≤ weight_limit
        returns  int64[n + 1], the last is the weight
        Raises Diverged for a value that is not finite; MaskingError for a weight out of range.
        """
        if not 0 < weight <= self.weight_limit:
            raise MaskingError(f"a weight of {weight} examples was given; the run allows 1 to {self.weight_limit}")
        if not np.isfinite(values).all():
            raise Diverged("the update holds a value that is not a finite number; it was not sent")
        cells = np.empty(len(values) + 1, np.int64)
        scaled = np.clip(values, -self.clip, self.clip).astype(np.float64)
        scaled *= weight
        scaled *= 2.0**self.fraction_bits
        cells[:-1] = np.rint(scaled, out=scaled)
        cells[-1] = weight
        return cells

    def decode(self, total: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], int]:
        """Read the sum of sites' cells: the weighted mean of their clipped updates, and the weights' sum.

        total    int64[n + 1]
        returns  float64[n], and Σ w
        Raises MaskingError when the weights' sum is not over 0.
        """
        weight = int(total[-1])
        if weight <= 0:
            raise MaskingError(f"the sites' weights add to {weight}; no site's update is in this sum")
        return total[:-1] / (2.0**self.fraction_bits * weight), weight

    def error_bound(self, members: int, weight: int) -> float:
        """Bound |decoded - exact weighted mean of the clipped values| for a sum of `members` sites' cells."""
        return members / (2.0 * weight) * 2.0**-self.fraction_bits + self.clip * 2.0**-52
