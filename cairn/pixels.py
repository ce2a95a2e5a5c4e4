"""From pixels to integers: levels, scores, the unit vector's digits. All parties get the same bits.

Exact on every backend, because nothing rounds in an order that a machine could choose: levels and projection weights
are integers whose products and sums stay under 2^53 (so a float64 holds them exactly, in any order of summation);
what follows (‖p‖², square root, quotient, digit) is IEEE-754 double arithmetic in the order written here, without
fused multiply-add. The reference implementation is `cairn.kernels.numpy_`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError
from cairn.keyspace import KeySpace

LEVEL_MAX = 65535
WEIGHT_ONE = 2**14  # a projection weight of 1.0; scores are in units of 2^-14 levels
BACKGROUND = np.uint64(2**64 - 1)  # the key of a pixel that is not foreground

# Intensity bins: the exponent and the first two mantissa bits of the double ‖p‖², 4 bins per octave of ‖p‖²;
# piecewise logarithmic, exact and monotone without a logarithm. ‖p‖² is an integer under 2^84.
INTENSITY_BITS = 2
INTENSITY_BINS = 84 << INTENSITY_BITS
UNIT_BINS = 512  # of a unit vector's component, over [-1, 1]


@dataclass(frozen=True)
class PixelLevels:
    """How a band's value becomes a level, an unsigned 16-bit integer.

        level = clip(rint((x - offset)·scale), 0, 65535)

    bands   names, in the order of the axis; 1 to 128, each once
    Raises PlanError.
    """

    bands: tuple[str, ...]
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.bands) <= 128 or len(set(self.bands)) != len(self.bands) or not all(self.bands):
            raise PlanError(f"{len(self.bands)} bands were given; name 1 to 128 bands, each once")
        if not (np.isfinite(self.offset) and np.isfinite(self.scale) and self.scale > 0):
            raise PlanError(f"offset {self.offset} and scale {self.scale} must be finite, the scale above 0")


@dataclass(frozen=True)
class Quantiser:
    """From levels to a key; DESIGN §5.2 and §5.3.

        p = W·level,  u = p/‖p‖,  digit_d = rint((u_d - low_d)/(high_d - low_d)·(radix - 1)), clipped to the range

    projection  int32[components, bands], W = rint(2^14·Uᵀ)
    min_norm    foreground is ‖p‖ > min_norm (score units); a zero vector never is
    low, high   float64[components], -1 ≤ low < high ≤ 1
    """

    pixels: PixelLevels
    projection: npt.NDArray[np.int32]
    min_norm: float
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    radix: int

    def __post_init__(self) -> None:
        check_projection(self.pixels, self.projection)
        if not (self.low.shape == self.high.shape == (len(self.projection),) and np.all(self.low < self.high)):
            raise PlanError("every component needs a range with low below high")
        if not (2 <= self.radix <= 256 and self.min_norm >= 0):
            raise PlanError(
                f"radix {self.radix} must be 2 to 256 and the foreground cut-off {self.min_norm} at least 0"
            )
        _ = self.keyspace

    @cached_property
    def keyspace(self) -> KeySpace:
        """The keys of this quantiser: one digit per component."""
        return KeySpace((self.radix,) * len(self.projection))


def check_projection(pixels: PixelLevels, projection: npt.NDArray[np.int32]) -> None:
    """Refuse a projection of another shape or with weights that could leave the exact range. Raises PlanError."""
    if projection.dtype != np.int32 or projection.ndim != 2 or projection.shape[1] != len(pixels.bands):
        raise PlanError(f"projection {projection.dtype}{projection.shape} does not fit {len(pixels.bands)} bands")
    if len(projection) < 1 or int(np.abs(projection.astype(np.int64)).max(initial=0)) > 2 * WEIGHT_ONE:
        raise PlanError("projection weights must be between -2 and 2, in units of 2^-14")


def intensity_edges() -> npt.NDArray[np.float64]:
    """Return the lower edge of every intensity bin as a norm ‖p‖, in score units; float64[INTENSITY_BINS]."""
    first = int(np.float64(1).view(np.uint64)) >> (52 - INTENSITY_BITS)
    bits = (np.arange(INTENSITY_BINS, dtype=np.uint64) + np.uint64(first)) << np.uint64(52 - INTENSITY_BITS)
    return np.sqrt(bits.view(np.float64))
