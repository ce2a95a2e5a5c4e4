"""Keys: a vector of digits as one integer in mixed radix, the first digit most significant."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError


@dataclass(frozen=True)
class KeySpace:
    """The integers that `digits` digits of the given radices can write.

        key = (…(d₀·r₁ + d₁)·r₂ + d₂…)      Horner's rule; DESIGN §5.3

    radices  one per digit, each ≥ 2; the product must stay under 2^63. Raises PlanError.
    """

    radices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.radices or min(self.radices) < 2 or self.size > 2**63:
            raise PlanError(f"radices {self.radices} do not make keys of 1 to 63 bits; use fewer or smaller digits")

    @property
    def size(self) -> int:
        """Number of keys, ∏ r."""
        return math.prod(self.radices)

    @property
    def bits(self) -> int:
        """Bits that hold any key, ⌈log₂ ∏ r⌉."""
        return max(1, (self.size - 1).bit_length())

    def encode(self, digits: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
        """Write digits as keys.

        digits   integer[n, D], 0 ≤ d_i < r_i
        returns  uint64[n]
        """
        keys = np.zeros(len(digits), np.uint64)
        for i, radix in enumerate(self.radices):
            keys = keys * np.uint64(radix) + digits[:, i].astype(np.uint64)
        return keys

    def decode(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Read the digits of keys.

        keys     uint64[n], each below `size`
        returns  uint8[n, D] (radices up to 256)
        """
        digits = np.empty((len(keys), len(self.radices)), np.uint8)
        rest = keys
        for i in range(len(self.radices) - 1, -1, -1):
            rest, digit = np.divmod(rest, np.uint64(self.radices[i]))
            digits[:, i] = digit
        return digits
