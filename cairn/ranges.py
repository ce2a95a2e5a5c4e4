"""Ranges: from the merged histograms, which pixels are tissue and what span each component's digits cover; DESIGN §5.2.

The cut-off is that of Sketch and Scale (Wei, Ivkin, Braverman & Szalay 2020, arXiv 2011.06103): glass makes a narrow
peak in the histogram of log intensity, and what is brighter than the peak by three half widths is tissue.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError, StudyError
from cairn.pixels import UNIT_BINS, intensity_edges

Counts = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

HALF_WIDTHS = 3
MIN_FOREGROUND = 0.05  # of the pixels that are not zero
SMOOTHING = np.array([1, 2, 3, 2, 1]) / 9  # bins; levels are whole numbers, so dark bins are a comb
MIN_PEAK = 0.02  # of the pixels that are not zero; fewer make no peak
CONSTANT_BINS = 2  # of 512; a component within so few is taken for constant
STANDS_OUT = 4.0  # standard deviations; what is below is taken for noise: of 25,000 empty cells, one passes
BLOCKS = (1, 2, 4, 8, 16, 32, 64)  # bins that are looked at together in a noisy histogram
NEARLY_ALL = 0.95  # of the pixels
CONSTANT_WIDTH = 4.0  # 2 bins of 1/256 are then under half a digit at radix 256: the digit is 0 for every pixel
TOO_NOISY = (
    "no pixels stand out of the noise; a larger ε, a smaller unit, more images or fewer components of the projection "
    "would let them"
)


@dataclass(frozen=True)
class Ranges:
    """What the counts stage needs to know of the histograms.

    min_norm          foreground is ‖p‖ > min_norm
    low, high         float64[D]
    foreground        share of the pixels that are not zero which is foreground
    said              one sentence for people: how the cut-off was found
    """

    min_norm: float
    low: Vector
    high: Vector
    foreground: float
    said: str


def ranges(
    tables: Mapping[str, Counts],
    quantile: float = 0.01,
    min_foreground: float = MIN_FOREGROUND,
    noise: float = 0.0,
) -> Ranges:
    """Find the cut-off, and each component's range over the foreground.

    tables          "unit" int64[D, INTENSITY_BINS, UNIT_BINS] of a ranges tally, merged or not
    quantile        share of the foreground that may lie beyond each end, ≥ 0 and < 0.5; 0 for minimum to maximum
    min_foreground  where the rule leaves less than this share of the pixels that are not zero, all of those are kept
    noise           standard deviation of each cell's, in a private tally; sums over bins that do not stand out of it
                    are taken for empty
    Raises StudyError when every pixel is zero, or nothing stands out of the noise.
    """
    unit = tables["unit"]
    if not 0 <= quantile < 0.5:
        raise PlanError(f"a quantile of {quantile} was given for the ranges; it must be at least 0 and under 0.5")
    intensity = _intensity(unit, noise)
    total = int(intensity.sum())
    if total <= 0:
        raise StudyError("every pixel at every site is zero; check the plan's offset and scale against the images")
    first = _cut_off_bin(intensity)
    share = int(intensity[first:].sum()) / total
    if first == 0:
        share, min_norm = 1.0, 0.0
        said = "no glass peak stands out, so all pixels that are not zero are kept"
    elif share < min_foreground:
        said = (
            f"the cut-off by the glass peak would keep {share:.1%} of the pixels that are not zero, under "
            f"{min_foreground:.1%}; there seems to be no glass, so all that are not zero are kept"
        )
        first, share, min_norm = 0, 1.0, 0.0
    else:
        # Just under the bin's edge, so that a norm on the edge is foreground, as the histogram has it.
        min_norm = float(np.nextafter(intensity_edges()[first], 0))
        said = f"the cut-off by the glass peak keeps {share:.1%} of the pixels that are not zero"
    low, high = _spans(_directions(unit, intensity, first, noise), quantile)
    return Ranges(min_norm, low, high, share, said)


def _intensity(unit: Counts, noise: float) -> Counts:
    """Return the histogram of intensity: every component's rows sum to it, and of noisy ones to nearly it."""
    if not noise:
        first: Counts = unit[0].sum(axis=1)
        return first
    mean = np.rint(unit.sum(axis=(0, 2)) / len(unit)).astype(np.int64)
    found: Counts = np.where(mean >= STANDS_OUT * noise * math.sqrt(unit.shape[2] / len(unit)), mean, 0)
    if not found.any():
        raise StudyError(TOO_NOISY)
    return found


def _directions(unit: Counts, intensity: Counts, first: int, noise: float) -> Counts:
    """Return each component's histogram over the foreground; int64[D, UNIT_BINS].

    Of noisy ones, the rows that hold pixels, and the narrowest blocks of bins that together stand out with nearly all
    of these pixels, each block's spread evenly; what does not stand out is taken for empty.
    """
    if not noise:
        every: Counts = unit[:, first:].sum(axis=1)
        return every
    rows = first + np.flatnonzero(intensity[first:])
    sums, total = unit[:, rows].sum(axis=1), int(intensity[rows].sum())
    spread = noise * math.sqrt(len(rows))
    return np.stack([_standing_out(one, spread, total) for one in sums])


def _standing_out(histogram: Counts, noise: float, total: int) -> Counts:
    """Find the blocks of one noisy histogram that stand out. Raises StudyError when they hold less than half."""
    best, most = histogram, 0.0
    for bins in BLOCKS:
        blocks = histogram.reshape(-1, bins).sum(axis=1)
        blocks[blocks < STANDS_OUT * noise * math.sqrt(bins)] = 0
        share = float(blocks.sum()) / total
        if share > most:
            best, most = np.repeat(blocks // bins, bins), share
        if share >= NEARLY_ALL:
            break
    if most < 0.5:
        raise StudyError(TOO_NOISY)
    return best


def _cut_off_bin(intensity: Counts) -> int:
    """Return the first bin over mode + 3·(half width at half maximum) of glass, the darkest peak.

    A peak is a maximum of the density of log intensity that falls to half on both sides before it rises higher, with
    MIN_PEAK of the pixels between. The narrower side's half width is taken: tissue widens the peak on one side, few
    counts on the other. At least one bin over the mode; 0 where nothing is a peak.
    """
    edges = np.log2(intensity_edges())
    width = np.diff(np.append(edges, edges[-1] + edges[-1] - edges[-2]))
    density = np.convolve(intensity / width, SMOOTHING, mode="same")
    centre = edges + width / 2
    least = MIN_PEAK * int(intensity.sum())
    for mode in np.flatnonzero(density > 0).tolist():
        left, right = _half(density[mode::-1]), _half(density[mode:])
        if left is None or right is None:
            continue
        if int(intensity[mode - math.floor(left) : mode + math.floor(right) + 1].sum()) >= least:
            at = np.arange(len(centre))
            sides = [abs(float(np.interp(place, at, centre)) - centre[mode]) for place in (mode - left, mode + right)]
            cut = centre[mode] + HALF_WIDTHS * min(sides)
            return max(int(np.argmin(np.abs(edges - cut))), min(mode + 1, len(edges) - 1))
    return 0


def _half(density: Vector) -> float | None:
    """Return how many bins a density, walked away from its first bin, takes to fall to half of it.

    By a straight line between bins; None when it rises over the first bin before that. Beyond the last bin it is 0.
    """
    half = density[0] / 2
    walked = np.append(density, 0.0)
    i = int(np.flatnonzero(walked <= half)[0])
    if np.any(walked[1:i] > density[0]):
        return None
    return float(i - 1 + (walked[i - 1] - half) / (walked[i - 1] - walked[i]))


def _spans(histograms: Counts, quantile: float) -> tuple[Vector, Vector]:
    """Return low and high of each component's histogram int64[D, UNIT_BINS], as bins' edges."""
    edges = np.linspace(-1, 1, UNIT_BINS + 1)
    low, high = np.empty(len(histograms)), np.empty(len(histograms))
    for d, histogram in enumerate(histograms):
        beyond = int(quantile * int(histogram.sum()))
        first = int(np.searchsorted(np.cumsum(histogram), beyond, side="right"))
        last = UNIT_BINS - 1 - int(np.searchsorted(np.cumsum(histogram[::-1]), beyond, side="right"))
        low[d], high[d] = edges[first], edges[last + 1]
        if last - first < CONSTANT_BINS:
            high[d] = low[d] + CONSTANT_WIDTH
    return low, high
