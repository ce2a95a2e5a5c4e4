"""From pixels to integers: levels, scores, the unit vector's digits. All parties get the same bits.

Exact on every backend, because nothing rounds in an order that a machine could choose: levels and projection weights
are integers whose products and sums stay under 2^53 (so a float64 holds them exactly, in any order of summation);
what follows (‖p‖², square root, quotient, digit) is IEEE-754 double arithmetic in the order written here, without
fused multiply-add. The definition is `cairn.kernels.pixels_numpy`; the argument is in docs/MATHS_PIXELS.md.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError
from cairn.kernels import Kernels
from cairn.kernels.pixels_numpy import (
    BACKGROUND,
    INTENSITY_BINS,
    INTENSITY_BITS,
    INTENSITY_FIRST,
    LEVEL_MAX,
    UNIT_BINS,
    Levels,
    Vector,
)
from cairn.keyspace import KeySpace

__all__ = [
    "BACKGROUND",
    "INTENSITY_BINS",
    "LEVEL_MAX",
    "MIN_RANGE",
    "UNIT_BINS",
    "WEIGHT_ONE",
    "PixelLevels",
    "Quantiser",
    "check_projection",
    "intensity_edges",
]

WEIGHT_ONE = 2**14  # a projection weight of 1.0; scores are in units of 2^-14 levels
MIN_RANGE = 2.0**-20  # least width of a component's range, so that its gain is finite


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

        p = W·level,  u = p/‖p‖,  digit_d = rint(clip((u_d - low_d)·gain_d, 0, radix - 1))
        ‖p‖ = √(p₀² + p₁² + …),  gain_d = (radix - 1)/(high_d - low_d);  rint is half to even

    projection  int32[components, bands], W = rint(2^14·Uᵀ)
    min_norm    foreground is ‖p‖ > min_norm (score units); a zero vector never is
    low, high   float64[components], low + MIN_RANGE ≤ high
    radix       bins per component, 2 to 256
    Raises PlanError.
    """

    pixels: PixelLevels
    projection: npt.NDArray[np.int32]
    min_norm: float
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    radix: int

    def __post_init__(self) -> None:
        check_projection(self.pixels, self.projection)
        if not (
            self.low.shape == self.high.shape == (len(self.projection),)
            and np.all(np.isfinite(self.low) & np.isfinite(self.high))
            and np.all(self.high - self.low >= MIN_RANGE)
        ):
            raise PlanError("every component needs a finite range with low below high, at least 2^-20 wide")
        if not (2 <= self.radix <= 256 and 0 <= self.min_norm < np.inf):
            raise PlanError(
                f"radix {self.radix} must be 2 to 256 and the foreground cut-off {self.min_norm} at least 0"
            )
        _ = self.keyspace

    @cached_property
    def keyspace(self) -> KeySpace:
        """The keys of this quantiser: one digit per component."""
        return KeySpace((self.radix,) * len(self.projection))

    @cached_property
    def gain(self) -> Vector:
        """Digits per unit of each component, (radix - 1)/(high - low); float64[components]."""
        return (self.radix - 1) / (self.high - self.low)

    def keys(self, levels: Levels, kernels: Kernels) -> npt.NDArray[np.uint64]:
        """Quantise pixels uint16[bands, n] to keys uint64[n], BACKGROUND where a pixel is not foreground."""
        return kernels.keys(levels, self.projection, self.min_norm, self.low, self.gain, self.radix)


def check_projection(pixels: PixelLevels, projection: npt.NDArray[np.int32]) -> None:
    """Refuse a projection of another shape or with weights that could leave the exact range. Raises PlanError."""
    if projection.dtype != np.int32 or projection.ndim != 2 or projection.shape[1] != len(pixels.bands):
        raise PlanError(f"projection {projection.dtype}{projection.shape} does not fit {len(pixels.bands)} bands")
    if len(projection) < 1 or int(np.abs(projection.astype(np.int64)).max(initial=0)) > 2 * WEIGHT_ONE:
        raise PlanError("projection weights must be between -2 and 2, in units of 2^-14")


def intensity_edges() -> npt.NDArray[np.float64]:
    """Return the lower edge of every intensity bin as a norm ‖p‖, in score units; float64[INTENSITY_BINS]."""
    bits = (np.arange(INTENSITY_BINS, dtype=np.uint64) + np.uint64(INTENSITY_FIRST)) << np.uint64(52 - INTENSITY_BITS)
    edges: Vector = np.sqrt(bits.view(np.float64))
    return edges
