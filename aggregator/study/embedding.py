"""The map of the heavy hitters: their layout, its clusters by mass, marker profiles, named states (DESIGN §5.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from aggregator.study.layout import Asked, LayOut, Points
from cairn.pixels import WEIGHT_ONE, Quantiser

Labels = npt.NDArray[np.uint8]
Profiles = npt.NDArray[np.float64]

OTHER = "other"
STANDS_OUT: Final = 0.5  # standard deviations; what autofluorescence alone adds stays below


@dataclass(frozen=True)
class Map:
    """Where the heavy hitters lie and what they belong to.

    points    float32[k, 2]
    clusters  uint8[k], numbered by falling mass
    sizes     int64[clusters], pixels
    profiles  float64[clusters, bands], see `profiles`
    states    a name for each cluster
    """

    points: Points
    clusters: Labels
    sizes: npt.NDArray[np.int64]
    profiles: Profiles
    states: tuple[str, ...]


def make_map(
    digits: npt.NDArray[np.uint8],
    counts: npt.NDArray[np.int64],
    quantiser: Quantiser,
    asked: Asked,
    rules: Mapping[str, Sequence[str]],
    lay_out: LayOut,
) -> Map:
    """Lay out, cluster and name the heavy hitters.

    digits   uint8[k, D], each row once; k ≥ 1
    counts   int64[k]
    rules    state → bands that mark it
    lay_out  here or in a process of its own, see `layout`
    """
    points, groups = lay_out(digits, asked)
    labels = by_mass(groups, counts)
    number = int(labels.max()) + 1
    sizes = np.zeros(number, np.int64)
    np.add.at(sizes, labels, counts)
    found = profiles(digits, counts, labels, quantiser)
    return Map(points, labels, sizes, found, name_states(found, quantiser.pixels.bands, rules))


def by_mass(labels: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Labels:
    """Renumber clusters by falling pixel count; cluster 0 is the largest."""
    sizes = np.zeros(int(labels.max()) + 1, np.int64)
    np.add.at(sizes, labels, counts)
    rank = np.empty(len(sizes), np.uint8)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return rank[labels]


def profiles(
    digits: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], labels: Labels, quantiser: Quantiser
) -> Profiles:
    """Estimate each cluster's marker profile from the middles of its digits' bins, weighted by counts.

        x̂ = Wᵀu / 2^14,   u_d = low_d + digit_d·(high_d - low_d)/(radix - 1)

    A direction in band space, without intensity; mean levels come with the codebook stage.

    returns  float64[clusters, bands]
    """
    u = quantiser.low + digits * ((quantiser.high - quantiser.low) / (quantiser.radix - 1))
    sums = np.zeros((int(labels.max()) + 1, u.shape[1]))
    weights = np.zeros(len(sums))
    np.add.at(sums, labels, u * counts[:, None])
    np.add.at(weights, labels, counts)
    made: Profiles = (sums / np.maximum(weights, 1)[:, None]) @ (quantiser.projection / WEIGHT_ONE)
    return made


def name_states(found: Profiles, bands: Sequence[str], rules: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Give each cluster the state in one of whose bands it stands highest over the other clusters, else "other".

        z_cb = (profile_cb - mean over clusters)/(standard deviation over clusters),  state = argmax_s max_{b in s} z_cb

    if that is over STANDS_OUT. The highest band and not the mean over bands: the markers of a state are of different
    cells (CD8 or CD20 for immune), so no cluster has them all.

    Without rules every cluster is a state of its own: cluster-0, cluster-1, …
    """
    if not rules:
        return tuple(f"cluster-{number}" for number in range(len(found)))
    spread = found.std(axis=0)
    z = (found - found.mean(axis=0)) / np.where(spread > 0, spread, 1)
    names = list(rules)
    scores = np.stack([z[:, [bands.index(band) for band in rules[name]]].max(axis=1) for name in names], axis=1)
    best = scores.argmax(axis=1)
    return tuple(names[b] if scores[i, b] > STANDS_OUT else OTHER for i, b in enumerate(best))
