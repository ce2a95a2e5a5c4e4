"""How far one unit can move a tally, and the noise that each table gets for it; docs/PRIVACY.md, "Sensitivity"."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError
from cairn.privacy.terms import Privacy

Shapes = Mapping[str, tuple[int, ...]]
Levels = npt.NDArray[np.uint16]

LEAST_SIGMA: Final = 4.0  # of one site: sums of discrete Gaussians are then discrete Gaussians to within 1e-60
MOMENT_BITS: Final = 8  # of a level in private moments, so that the sums of 10^11 pixels keep to a cell
SMALL: Final = 0.05  # weight of a table of which only the order of magnitude matters
TOTALS: Final = frozenset({"pixels", "foreground", "sum"})


def bounds(shapes: Shapes, terms: Privacy) -> dict[str, float]:
    """Bound the L2 norm of what one unit adds to each table of a stage.

        histograms, sketches    Δ₂ = √rows · clip       by thinning; a unit's row has an L2 norm of at most clip
        pixels, foreground      Δ  = clip²              pixels of a unit
        sum                     Δ₂ = clip²·b            ‖Σ x‖₂ ≤ Σ ‖x‖₂,   b = brightest, in the table's unit
        second                  Δ₂ = clip²·b²           ‖Σ x·xᵀ‖_F ≤ Σ ‖x‖₂²
        clusters                Δ₂ = clip²              ‖·‖₂ ≤ ‖·‖₁
        profile                 Δ₂ = clip²·b            as sum

    shapes  of the stage's tables (`Stage.shapes`)
    Raises PlanError for a stage that cannot be private.
    """
    most, dim = float(terms.most_pixels), terms.brightest / 2 ** moment_shift(terms)
    found = {}
    for name, shape in shapes.items():
        match name.split("_")[0]:
            case "pixels" | "foreground" | "clusters":
                found[name] = most
            case "sum":
                found[name] = most * dim
            case "second":
                found[name] = most * dim**2
            case "profile":
                found[name] = most * terms.brightest
            case "dense" | "count":
                found[name] = float(terms.clip)
            case "unit" | "sketch":
                found[name] = math.sqrt(shape[0]) * terms.clip
            case _:
                raise PlanError(f"the table {name!r} cannot be private; ask for privacy in studies of pixels alone")
    return found


def scales(shapes: Shapes, terms: Privacy) -> dict[str, float]:
    """Share the privacy of one release among its tables: the standard deviation of the noise of their sum.

        σ_t = z·Δ_t/√w_t,  Σ w_t = 1   so that  Σ (Δ_t/σ_t)² = 1/z²

    The tables together are then one Gaussian mechanism of multiplier z: scaled by σ_t, a unit moves them by 1/z.
    """
    weights = {name: SMALL if name in TOTALS else 1.0 for name in shapes}
    whole = sum(weights.values())
    return {
        name: terms.noise * bound * math.sqrt(whole / weights[name]) for name, bound in bounds(shapes, terms).items()
    }


def site_scale(scale: float, terms: Privacy) -> float:
    """Return the standard deviation of one site's share: those of `sharers` sites have at least the wanted variance.

    σ_site = max(4, σ/√sharers)
    """
    return max(LEAST_SIGMA, scale / math.sqrt(terms.sharers))


def merged_scale(scale: float, terms: Privacy, sites: int) -> float:
    """Return the standard deviation of the noise in a sum of so many sites."""
    return site_scale(scale, terms) * math.sqrt(sites)


def moment_shift(terms: Privacy) -> int:
    """Return by how many bits levels are cut in private moments, whose unit then is 2^shift levels."""
    return max(0, terms.brightest.bit_length() - MOMENT_BITS)


def dimmed(levels: Levels, terms: Privacy) -> Levels:
    """Dim the pixels whose levels have a norm over `brightest` to it, in whole numbers and never above it.

    levels   uint16[B, n]
    returns  uint16[B, n]
    """
    squares = (levels.astype(np.float64) ** 2).sum(axis=0)
    limit = float(terms.brightest) ** 2
    bright = squares > limit
    if not bright.any():
        return levels
    found = levels.copy()
    scaled = np.floor(levels[:, bright] * (terms.brightest / np.sqrt(squares[bright])))
    over = (scaled**2).sum(axis=0) > limit  # a product that was rounded up to a whole number
    scaled[:, over] = np.maximum(scaled[:, over] - 1, 0)
    found[:, bright] = scaled.astype(np.uint16)
    return found
