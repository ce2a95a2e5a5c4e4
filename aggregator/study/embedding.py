"""The map of the heavy hitters: UMAP of their digits, clusters of the map, marker profiles, named states (DESIGN §5.5).

The only file that imports umap. The same input and seed give the same map on the same machine.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cairn.pixels import WEIGHT_ONE, Quantiser

Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Profiles = npt.NDArray[np.float64]

OTHER = "other"
STANDS_OUT: Final = 0.5  # standard deviations; what autofluorescence alone adds stays below
MOST_CLUSTERS = 200
UMAP_FROM = 5  # fewer keys are laid out by their principal components: a neighbourhood of two tells nothing


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
    *,
    n_neighbors: int,
    clusters: int,
    clustering: Literal["kmeans", "hdbscan"],
    seed: int,
    rules: Mapping[str, Sequence[str]],
) -> Map:
    """Lay out, cluster and name the heavy hitters.

    digits  uint8[k, D], each row once; k ≥ 1
    counts  int64[k]
    rules   state → bands that mark it
    """
    points = embed(digits, n_neighbors, seed)
    labels = by_mass(cluster(points, clusters, clustering, seed), counts)
    number = int(labels.max()) + 1
    sizes = np.zeros(number, np.int64)
    np.add.at(sizes, labels, counts)
    found = profiles(digits, counts, labels, quantiser)
    return Map(points, labels, sizes, found, name_states(found, quantiser.pixels.bands, rules))


def embed(digits: npt.NDArray[np.uint8], n_neighbors: int, seed: int) -> Points:
    """Lay keys out in the plane by UMAP (McInnes 2018, arXiv 1802.03426), min_dist 0.

    Begins from the principal components (the spectral start costs three times as much here) and from exact neighbours
    (a k-d tree is faster than an approximate search in so few dimensions, and is the same every time).
    """
    start = principal_plane(digits, seed)
    if len(digits) < UMAP_FROM:
        return start
    near = min(n_neighbors, len(digits) - 1)
    data = digits.astype(np.float32)
    with warnings.catch_warnings():
        # Of an optional part that is not installed, of transforming new data, which is not done, and of small inputs.
        warnings.simplefilter("ignore")
        # Both take seconds to import and compile, which only an aggregator that comes here should pay.
        from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415
        from umap import UMAP, umap_  # noqa: PLC0415

        # Compiling them takes 9 s, kept for the next process where there is a folder to keep it in.
        for compiled in (umap_.smooth_knn_dist, umap_.compute_membership_strengths):
            with suppress(RuntimeError):
                compiled.enable_caching()
        distances, neighbours = NearestNeighbors(n_neighbors=near, algorithm="kd_tree").fit(data).kneighbors(data)
        knn = (neighbours, distances.astype(np.float32), None)
        made = UMAP(
            n_neighbors=near, min_dist=0.0, random_state=seed, n_jobs=1, init=start, precomputed_knn=knn
        ).fit_transform(data)
    return np.ascontiguousarray(made, np.float32)


def principal_plane(digits: npt.NDArray[np.uint8], seed: int) -> Points:
    """Project digits onto their two principal components, scaled to ±10, each key apart from every other."""
    centred = digits - digits.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    plane = np.zeros((len(digits), 2))
    kept = min(2, len(axes))
    plane[:, :kept] = centred @ axes[:kept].T
    plane *= 10 / max(float(np.abs(plane).max()), 1e-12)
    plane += np.random.default_rng(seed).normal(0, 1e-4, plane.shape)
    return plane.astype(np.float32)


def cluster(
    points: Points, clusters: int, clustering: Literal["kmeans", "hdbscan"], seed: int
) -> npt.NDArray[np.int64]:
    """Cluster points of the plane; every point belongs to a cluster.

    returns  int64[k], numbers from 0 without a gap
    HDBSCAN's noise goes to the cluster whose centre is nearest.
    """
    from sklearn.cluster import HDBSCAN, KMeans  # noqa: PLC0415 - seconds to import

    n = len(points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer distinct points than clusters
        if clustering == "kmeans":
            labels = KMeans(min(clusters, n), n_init=10, random_state=seed).fit_predict(points)
        else:
            # About three times as many clusters as asked for can be found, and never more than a codebook holds.
            smallest = max(UMAP_FROM, n // (3 * clusters), -(-n // MOST_CLUSTERS))
            labels = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(points) if n > smallest else np.zeros(n)
    labels = np.asarray(labels, np.int64)
    known = np.unique(labels[labels >= 0])
    if not len(known):
        return np.zeros(n, np.int64)
    centres = np.stack([points[labels == c].mean(axis=0) for c in known])
    noise = labels < 0
    away = ((points[noise, None] - centres[None]) ** 2).sum(axis=2)
    labels[noise] = known[away.argmin(axis=1)] if noise.any() else labels[noise]
    return np.searchsorted(known, labels).astype(np.int64)


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
