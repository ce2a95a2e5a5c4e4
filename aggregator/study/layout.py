"""Where the heavy hitters lie: UMAP of their digits, and clusters of what it gives.

The only file that imports umap and scikit-learn, which with the compiler behind them hold some 250 MB until their
process ends. So an aggregator has it done by a child, `python -m aggregator.study.layout`, and forgets it all with it.
The same input and seed give the same layout on the same machine, here or there.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cairn.errors import CairnError

Digits = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float32]
Groups = npt.NDArray[np.int64]

MOST_CLUSTERS = 200
UMAP_FROM = 5  # fewer keys are laid out by their principal components: a neighbourhood of two tells nothing


@dataclass(frozen=True)
class Asked:
    """How keys are to be laid out; as in a study's specification."""

    n_neighbors: int
    clusters: int
    clustering: Literal["kmeans", "hdbscan"]
    seed: int


LayOut = Callable[[Digits, Asked], tuple[Points, Groups]]


def lay_out(digits: Digits, asked: Asked) -> tuple[Points, Groups]:
    """Lay keys out and cluster them, in this process.

    digits   uint8[k, D], each row once; k ≥ 1
    returns  float32[k, 2]; int64[k], numbers from 0 without a gap
    """
    points = embed(digits, asked.n_neighbors, asked.seed)
    return points, cluster(points, asked.clusters, asked.clustering, asked.seed)


def lay_out_apart(digits: Digits, asked: Asked) -> tuple[Points, Groups]:
    """Lay keys out as `lay_out` does, bit for bit, in a child process that ends with it, or with this process.

    Raises CairnError when the child fails.
    """
    order = json.dumps({"shape": digits.shape, "asked": asdict(asked)})
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", "aggregator.study.layout", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as child,
    ):
        assert child.stdin is not None  # asked for above
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and says below why
            child.stdin.write(np.ascontiguousarray(digits, np.uint8).tobytes())
            child.stdin.flush()  # and is left open: the child ends with it
        answer = child.stdout.read()
        with suppress(BrokenPipeError):
            child.stdin.close()
        code = child.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    rows = len(digits)
    if code or len(answer) != rows * (2 * 4 + 8):
        why = f"by signal {-code}, as when memory runs short" if code < 0 else f"with exit code {code}"
        last = f" ({said[-1][:300]})" if said and code >= 0 else ""
        raise CairnError(f"the map of {rows} keys was not made: the process that lays it out ended {why}{last}")
    points = np.frombuffer(answer, "<f4", 2 * rows).reshape(rows, 2).astype(np.float32)
    return points, np.frombuffer(answer, "<i8", rows, offset=2 * 4 * rows).astype(np.int64)


def embed(digits: Digits, n_neighbors: int, seed: int) -> Points:
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
        # Both take seconds to import and compile, and the memory of what they compiled.
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


def principal_plane(digits: Digits, seed: int) -> Points:
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


def cluster(points: Points, clusters: int, clustering: Literal["kmeans", "hdbscan"], seed: int) -> Groups:
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


def _serve(order: str) -> None:
    """Read digits from standard input, write points and groups to standard output, end when the input does."""
    # What a library prints is no part of the answer.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    wanted = json.loads(order)
    rows, columns = wanted["shape"]
    digits = np.frombuffer(sys.stdin.buffer.read(rows * columns), np.uint8).reshape(rows, columns)
    done = threading.Event()
    threading.Thread(target=_end_with_input, args=(done,), name="input", daemon=True).start()
    points, groups = lay_out(digits, Asked(**wanted["asked"]))
    done.set()
    with out:
        out.write(points.astype("<f4").tobytes() + groups.astype("<i8").tobytes())


def _end_with_input(done: threading.Event) -> None:
    os.read(0, 1)  # nothing more comes: it returns when the other end is closed, or gone with its process
    os._exit(0 if done.is_set() else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
