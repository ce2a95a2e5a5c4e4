"""Pixels in plain NumPy: the slow, obvious definition that every other backend equals bit for bit.

A tile is planar, uint16[bands, n]. Nothing here rounds in an order that a machine could choose (docs/MATHS_PIXELS.md):
scores are sums of integer products under 2^53, so a float64 holds them whatever the order; the rest is IEEE-754
double arithmetic in the order written, without fused multiply-add.
"""

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError

Levels = npt.NDArray[np.uint16]
Projection = npt.NDArray[np.int32]
Vector = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVEL_MAX = 65535
BACKGROUND = np.uint64(2**64 - 1)  # the key of a pixel that is not foreground

# Intensity bins: the exponent and the first two mantissa bits of the double ‖p‖², 4 bins per octave of ‖p‖²;
# piecewise logarithmic, exact and monotone without a logarithm. ‖p‖² is an integer under 2^84.
INTENSITY_BITS = 2
INTENSITY_BINS = 84 << INTENSITY_BITS
INTENSITY_FIRST = 1023 << INTENSITY_BITS  # bin 0 begins at ‖p‖² = 1
UNIT_BINS = 512  # of a unit vector's component, over [-1, 1]

NOT_FINITE = "a pixel is not a number or infinite; expected finite values, repair the image or set such pixels to 0"


def to_levels(values: npt.NDArray[np.number], offset: float, scale: float) -> Levels:
    """Make levels of values as they were read.

        level = clip(rint((x - offset)·scale), 0, 65535)        rint: half to even; all in float64

    values   any real dtype, any shape
    returns  uint16 of the same shape; the very same array when it is uint16 already and offset 0, scale 1
    Raises ImageError for NaN or infinity.
    """
    if offset == 0 and scale == 1 and values.dtype in (np.uint8, np.uint16):
        return values.astype(np.uint16, copy=False)
    if np.issubdtype(values.dtype, np.floating) and not np.all(np.isfinite(values)):
        raise ImageError(NOT_FINITE)
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) - offset) * scale
    return np.rint(np.clip(scaled, 0, LEVEL_MAX)).astype(np.uint16)


def scores(levels: Levels, projection: Projection) -> Vector:
    """Project pixels.

        p_d = Σ_b W[d, b]·level_b        an integer, |p_d| < 2^39

    levels      uint16[B, n]
    projection  int32[D, B]
    returns     float64[D, n]
    """
    return (projection.astype(np.int64) @ levels.astype(np.int64)).astype(np.float64)


def squared_norm(p: Vector) -> Vector:
    """Return ‖p‖² of scores float64[D, n], added in the order of the components; float64[n]."""
    total = np.zeros(p.shape[1], np.float64)
    for row in p:
        total += row * row
    return total


def keys(
    levels: Levels, projection: Projection, min_norm: float, low: Vector, gain: Vector, radix: int
) -> npt.NDArray[np.uint64]:
    """Quantise pixels to keys; DESIGN §5.3.

        ‖p‖ = √(p₀² + p₁² + …),  u_d = p_d/‖p‖,  digit_d = rint(clip((u_d - low_d)·gain_d, 0, r - 1))
        key = (…(digit₀·r + digit₁)·r + …)

    levels      uint16[B, n]
    projection  int32[D, B]
    min_norm    a pixel is foreground when ‖p‖ > min_norm
    low, gain   float64[D]; gain_d = (r - 1)/(high_d - low_d), finite
    returns     uint64[n], BACKGROUND where the pixel is not foreground
    """
    p = scores(levels, projection)
    norm = np.sqrt(squared_norm(p))
    foreground = norm > min_norm
    divisor = np.where(foreground, norm, 1.0)
    key = np.zeros(levels.shape[1], np.uint64)
    for d in range(len(projection)):
        u = p[d] / divisor
        digit = np.rint(np.clip((u - low[d]) * gain[d], 0.0, radix - 1.0))
        key = key * np.uint64(radix) + digit.astype(np.uint64)
    return np.where(foreground, key, BACKGROUND)


def unit_histogram(levels: Levels, projection: Projection, into: Counts) -> None:
    """Count each component of the unit vector by the pixel's intensity; DESIGN §5.2.

        intensity bin = top bits of the double ‖p‖², unit bin = min(⌊(u_d + 1)/2·512⌋, 511)

    levels      uint16[B, n]
    projection  int32[D, B]
    into        int64[D, INTENSITY_BINS, UNIT_BINS], added to; a pixel with ‖p‖ = 0 is counted nowhere
    """
    p = scores(levels, projection)
    norm2 = squared_norm(p)
    lit = norm2 > 0
    intensity = (norm2[lit].view(np.uint64) >> np.uint64(52 - INTENSITY_BITS)).astype(np.int64) - INTENSITY_FIRST
    norm = np.sqrt(norm2[lit])
    for d in range(len(projection)):
        unit = np.minimum(np.floor((p[d][lit] / norm + 1.0) * (UNIT_BINS / 2)), UNIT_BINS - 1).astype(np.int64)
        cell = intensity * UNIT_BINS + unit
        into[d] += np.bincount(cell, minlength=INTENSITY_BINS * UNIT_BINS).reshape(INTENSITY_BINS, UNIT_BINS)


def moments(levels: Levels) -> tuple[Counts, Counts]:
    """Sum a tile's levels and their products, exactly.

        sum_b = Σ x_b,  second_ab = Σ x_a·x_b

    levels   uint16[B, n], n < 2^31
    returns  int64[B] and int64[B, B]
    """
    whole = levels.astype(np.int64)
    return whole.sum(axis=1), whole @ whole.T


def profile(levels: Levels, clusters: npt.NDArray[np.uint8], counts: Counts, sums: Counts) -> None:
    """Count pixels and sum levels by cluster.

    levels    uint16[B, n]
    clusters  uint8[n], 0 for background, else cluster + 1
    counts    int64[K], added to
    sums      int64[K, B], added to
    """
    for cluster in range(len(counts)):
        mine = clusters == cluster + 1
        counts[cluster] += np.count_nonzero(mine)
        sums[cluster] += levels[:, mine].sum(axis=1, dtype=np.int64)


def lookup(keys: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64]) -> Counts:
    """Find keys in a list.

    keys     uint64[n]
    listed   uint64[k], rising
    returns  int64[n], the index in `listed`, or -1
    """
    if not len(listed):
        return np.full(len(keys), -1, np.int64)
    at = np.minimum(np.searchsorted(listed, keys), len(listed) - 1)
    return np.where(listed[at] == keys, at, -1).astype(np.int64)
