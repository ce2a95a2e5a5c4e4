"""How good a segmentation is: Dice, 95 % Hausdorff distance and surface Dice of each class, as sums that sites add up.

A class that neither a volume nor its segmentation has says nothing and is left out. One that only one of them has is
Dice 0 and surface Dice 0, and its distance, which is not defined, is the volume's diagonal: as far as two voxels of it
can lie apart. Of a site with one volume its measures are told; they say nothing of what the volume shows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cairn.figures import VALIDATION

Labels: TypeAlias = npt.NDArray[Any]
Table: TypeAlias = npt.NDArray[np.float64]

TOLERANCE_MM: Final = 1.0  # within which a piece of surface is in its place
KINDS: Final = ("dice", "hd95_mm", "surface_dice")
MOST_MM: Final = 1e6  # that a distance can be
MOST: Final = 2**40  # volumes that a site may say it has


@dataclass(frozen=True, eq=False)
class Sums:
    """Of each class what volumes add up to: float64[K, 3] in the order of KINDS, and int64[K] volumes that have it.

    volumes  all that were measured, of whatever classes
    """

    sums: Table
    counts: npt.NDArray[np.int64]
    volumes: int


def measure(found: Labels, true: Labels, spacing_mm: Sequence[float], classes: int) -> Table:
    """Measure one volume: float64[K, 3] in the order of KINDS; NaN where a class is in neither.

    found, true  int[x, y, z] of 0, the background, and k + 1 for class k
    """
    measured = np.full((classes, len(KINDS)), np.nan)
    diagonal = math.sqrt(sum((n * step) ** 2 for n, step in zip(true.shape, spacing_mm, strict=True)))
    for number in range(classes):
        one, other = found == number + 1, true == number + 1
        if one.any() and other.any():
            measured[number] = _both(one, other, spacing_mm)
        elif one.any() or other.any():
            measured[number] = 0.0, diagonal, 0.0
    return measured


def _both(found: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Measure a class that both have.

    Dice = 2 |A ∩ B| / (|A| + |B|)
    HD95 = max(95th percentile of d(a, ∂B), a on ∂A; of d(b, ∂A), b on ∂B)       in mm
    surface Dice = (|{a : d(a, ∂B) ≤ τ}| + |{b : d(b, ∂A) ≤ τ}|) / (|∂A| + |∂B|)     τ = 1 mm; Nikolov et al. 2018
    """
    box = ndimage.find_objects((found | true).astype(np.uint8))[0]
    found, true = found[box], true[box]
    one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (found, true))  # the surfaces: 6 neighbours
    away = [
        ndimage.distance_transform_edt(~surface, spacing_mm)[from_other]
        for surface, from_other in ((other, one), (one, other))
    ]
    dice = 2 * float((found & true).sum()) / float(found.sum() + true.sum())
    hd95 = max(float(np.percentile(some, 95)) for some in away)
    near = sum(int((some <= TOLERANCE_MM).sum()) for some in away)
    return dice, hd95, near / sum(len(some) for some in away)


def add(measured: Sequence[Table], classes: int) -> Sums:
    """Add up volumes."""
    stacked = np.array(measured, np.float64).reshape(-1, classes, len(KINDS))
    return Sums(np.nansum(stacked, axis=0), (~np.isnan(stacked[:, :, 0])).sum(axis=0).astype(np.int64), len(measured))


def means(sums: Sums, classes: Sequence[str]) -> dict[str, float]:
    """Say sums as means: n, dice, hd95_mm, surface_dice, and each of every class that there is.

    Each class's is the mean over the volumes that have it, that over all the mean of the classes': a small or rare one
    counts as much as a large one. {} without a volume.
    """
    if not sums.volumes:
        return {}
    said = {"n": float(sums.volumes)}
    there = [number for number in range(len(classes)) if sums.counts[number]]
    each = sums.sums[there] / sums.counts[there, np.newaxis]
    if there:
        said |= {kind: float(value) for kind, value in zip(KINDS, each.mean(axis=0), strict=True)}
    for number, values in zip(there, each.tolist(), strict=True):
        said |= {f"{kind}/{classes[number]}": value for kind, value in zip(KINDS, values, strict=True)}
    return said


def figures(sums: Sums, classes: Sequence[str]) -> dict[str, float]:
    """Write means and sums under validation/, so that the sums can be added to others'; {} without a volume."""
    if not sums.volumes:
        return {}
    told = means(sums, classes)
    for place, name in enumerate(classes):
        told[f"counts/class/{name}"] = float(place)
        told[f"counts/volumes/{place}"] = float(sums.counts[place])
        told |= {f"counts/{kind}/{place}": float(sums.sums[place, at]) for at, kind in enumerate(KINDS)}
    return {f"{VALIDATION}{name}": value for name, value in told.items()}


def merge_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up the sums of all sites' figures and say them as means; {} when nobody validated.

    The classes are those that most sites have; figures of others, or that cannot be sums, are passed over.
    """
    of_site = [(_classes(site), site) for site in sites]
    often = Counter(classes for classes, _ in of_site if classes)
    if not often:
        return {}
    classes = often.most_common(1)[0][0]
    read = [_sums(site, len(classes)) for found, site in of_site if found == classes]
    known = [one for one in read if one is not None]
    if not known:
        return {}
    whole = Sums(
        np.sum([one.sums for one in known], axis=0),
        np.sum([one.counts for one in known], axis=0),
        sum(one.volumes for one in known),
    )
    return {f"{VALIDATION}{name}": value for name, value in means(whole, classes).items()}


def _classes(site: Mapping[str, float]) -> tuple[str, ...]:
    """Return the names of a site's classes in their order; () when its figures do not tell."""
    start = f"{VALIDATION}counts/class/"
    places = {name.removeprefix(start): place for name, place in site.items() if name.startswith(start)}
    names = sorted(places, key=lambda name: places[name])
    return tuple(names) if sorted(places.values()) == list(range(len(names))) else ()


def _sums(site: Mapping[str, float], classes: int) -> Sums | None:
    """Read a site's sums; None when they cannot be any."""
    at = [
        [site.get(f"{VALIDATION}counts/{kind}/{place}", math.nan) for kind in ("volumes", *KINDS)]
        for place in range(classes)
    ]
    table, volumes = np.array(at, np.float64), site.get(f"{VALIDATION}n", math.nan)
    counts, sums = table[:, 0], table[:, 1:]
    highest = counts[:, np.newaxis] * np.array([1.0, MOST_MM, 1.0])
    whole = (counts == np.rint(counts)) & (counts >= 0) & (counts <= volumes)
    if not (1 <= volumes <= MOST and whole.all() and (sums >= 0).all() and (sums <= highest * (1 + 1e-9)).all()):
        return None  # NaN is none of these
    return Sums(sums, counts.astype(np.int64), int(volumes))
