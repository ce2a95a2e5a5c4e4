"""Moments: exact sums in two words, and the projection that the merged second moments give; DESIGN §5.1.

A sum of products can pass 2^63 (10^12 pixels of 16-bit levels reach 2^72), and a tally's words add mod 2^64, so a sum
travels as two words, value = high·2^32 + low. Both words add by themselves; a carry is only needed to read them.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError, StudyError
from cairn.pixels import WEIGHT_ONE

Words = npt.NDArray[np.int64]
_LOW = 2**32 - 1


def split(values: Words) -> Words:
    """Write int64[...] as words int64[2, ...]: the low 32 bits, and the rest."""
    return np.stack([values & _LOW, values >> 32])


def carry(words: Words) -> None:
    """Bring the low words back under 2^32, in place; the values stay as they are, and equal values become equal words.

    words  int64[2, ...]; do it once per 2^31 additions at the latest, so that a low word cannot overflow
    """
    words[1] += words[0] >> 32
    words[0] &= _LOW


def exact(words: Words) -> npt.NDArray[np.object_]:
    """Read words int64[2, ...] as Python's unbounded integers."""
    values: npt.NDArray[np.object_] = words[1].astype(object) * 2**32 + words[0].astype(object)
    return values


def second_moment(tables: Mapping[str, Words]) -> npt.NDArray[np.float64]:
    """Return the mean of x·xᵀ over all pixels, uncentred; each element rounded once.

    Symmetric: of a noisy tally, in which (i, j) and (j, i) were noised apart, it is the mean of both.

    tables   "pixels" int64[1] and "second" int64[2, B, B] of a moments tally, merged or not
    returns  float64[B, B], squared levels
    Raises StudyError when no pixel was counted.
    """
    pixels = int(tables["pixels"][0])
    if pixels <= 0:
        raise StudyError("no site has counted a pixel; add images at the sites and run the study again")
    mean: npt.NDArray[np.float64] = (exact(tables["second"]) / pixels).astype(np.float64)
    return (mean + mean.T) / 2


def projection(tables: Mapping[str, Words], dimensions: int) -> npt.NDArray[np.int32]:
    """Choose the directions of largest second moment.

        E[x·xᵀ] = U·Λ·Uᵀ, λ falling;  W = rint(2^14·U[:, :D]ᵀ)

    A direction's sign is free; here its largest weight by absolute value (the first of equals) is positive.

    tables      of a moments tally
    dimensions  D, 1 to B
    returns     int32[D, B]
    Raises PlanError for more dimensions than bands, StudyError without pixels or where all are zero.
    """
    matrix = second_moment(tables)
    if not 1 <= dimensions <= len(matrix):
        raise PlanError(f"{dimensions} components were asked of {len(matrix)} bands; ask for 1 to {len(matrix)}")
    if not matrix.any():
        raise StudyError("every pixel at every site is zero; check the plan's offset and scale against the images")
    _, vectors = np.linalg.eigh(matrix)
    weights: npt.NDArray[np.int32] = np.rint(WEIGHT_ONE * vectors[:, ::-1].T[:dimensions]).astype(np.int32)
    largest = weights[np.arange(dimensions), np.argmax(np.abs(weights), axis=1)]
    weights *= np.sign(largest)[:, None]
    return weights


def explained(tables: Mapping[str, Words]) -> npt.NDArray[np.float64]:
    """Return each direction's share of the second moment, λ_i/Σλ, falling; float64[B], adding to 1.

    Raises StudyError without pixels.
    """
    values = np.maximum(np.linalg.eigvalsh(second_moment(tables))[::-1], 0)
    share: npt.NDArray[np.float64] = values / max(float(values.sum()), np.finfo(np.float64).tiny)
    return share
