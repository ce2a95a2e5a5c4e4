"""Exact counts of every key over all sites: what the federation never does, and the demo does to judge it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cairn.errors import ImageError
from cairn.images import ImageSource, open_image
from cairn.kernels import Kernels
from cairn.pixels import BACKGROUND, Quantiser

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exact:
    """Every foreground key and its count.

    keys    uint64[n], rising
    counts  int64[n]
    """

    keys: Keys
    counts: Counts

    @property
    def foreground(self) -> int:
        """Number of foreground pixels."""
        return int(self.counts.sum())

    def mass(self, k: int) -> float:
        """Share of the foreground that the k most frequent keys hold."""
        return float(np.sort(self.counts)[::-1][:k].sum() / max(1, self.foreground))

    def recall(self, found: Keys, k: int) -> float:
        """Share of the true top k among the found keys; where ties share the last rank, any of them will do."""
        k = min(k, len(self.keys))
        last = np.sort(self.counts)[::-1][k - 1]
        at = np.searchsorted(self.keys, found)
        known = (at < len(self.keys)) & (self.keys[np.minimum(at, len(self.keys) - 1)] == found)
        hits = int((self.counts[at[known]] >= last).sum())
        return min(hits, k) / k


def exact_counts(sources: Iterable[ImageSource], quantiser: Quantiser, kernels: Kernels) -> Exact:
    """Count every foreground key of some images; those that cannot be read are left out, as at the sites.

    Memory grows with the number of distinct keys, which is why sites send sketches.
    """
    keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for source in sources:
        try:
            found = _image_keys(source, quantiser, kernels)
        except ImageError:
            continue
        once, multiplicity = np.unique(found, return_counts=True)
        keys, place = np.unique(np.concatenate([keys, once]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, multiplicity]), len(keys)).astype(np.int64)
    return Exact(keys, counts)


def _image_keys(source: ImageSource, q: Quantiser, kernels: Kernels) -> Keys:
    parts = []
    with open_image(source) as image:
        for tile in image.tiles(q.pixels.bands):
            values = tile.values.reshape(len(q.pixels.bands), -1)
            levels = kernels.to_levels(values, q.pixels.offset, q.pixels.scale)
            keys = kernels.keys(levels, q.projection, q.min_norm, q.low, q.gain, q.radix)
            parts.append(keys[keys != BACKGROUND])
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
