"""Counting unit by unit: of each image or patient a bounded sample, so that none can move a table by more than planned.

    counter = UnitCounter(plan.stage, kernels, terms, seed)
    for images in units:
        with counter.unit():
            for image in images:
                with counter.image(name):
                    counter.add(tiles)
    tables = counter.tables()

What a unit adds depends on its own pixels alone, so that a unit more or less changes the tally by just its sample.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from cairn.hashing import mix, place
from cairn.images import Tile
from cairn.kernels import Kernels
from cairn.pixels import BACKGROUND
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, PixelStage, RangesPlan, RecoveryPlan
from cairn.privacy.terms import Privacy
from cairn.tally import Tables
from edge_node.counting import Counter, Labelled, levels_of_tile
from edge_node.labelling import Codebook

Values = npt.NDArray[Any]
Levels = npt.NDArray[np.uint16]
Ranks = npt.NDArray[np.uint64]


class _Sample:
    """The pixels of lowest rank seen so far; ranks are pseudo-random, so it is a sample without replacement."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[tuple[Ranks, Values]] = []
        self._held = 0

    def add(self, ranks: Ranks, values: Values) -> None:
        """Look at pixels: uint64[n] and native dtype[B, n]."""
        self.parts.append((ranks, values))
        self._held += len(ranks)
        if self._held > 4 * self.most:
            self.sorted()

    def sorted(self) -> Values | None:
        """Return the sample by rising rank, None when it is empty."""
        if not self.parts:
            return None
        ranks = np.concatenate([part[0] for part in self.parts])
        values = np.concatenate([part[1] for part in self.parts], axis=1)
        order = np.argsort(ranks, kind="stable")[: self.most]
        self.parts, self._held = [(ranks[order], values[:, order])], len(order)
        return self.parts[0][1]


@final
class UnitCounter:
    """Count units into the tables of one stage.

    seed  32 bytes, by which pixels are chosen
    """

    def __init__(self, stage: PixelStage, kernels: Kernels, terms: Privacy, seed: bytes) -> None:
        self._stage, self._kernels, self._terms, self._seed = stage, kernels, terms, seed
        self._counter = Counter(stage, kernels.cpu or kernels, 1, terms)  # a unit is too small for a GPU
        self._codebook = Codebook(stage, kernels) if isinstance(stage, CodebookPlan) else None
        self._unit = self._image = _Sample(terms.most_pixels)
        self._salt = np.uint64(0)
        self._libraries = ThreadpoolController()  # found once: looking for them takes longer than a small image

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Count what the images inside the block were sampled for, thinned to the plan's clip."""
        self._unit = _Sample(self._terms.most_pixels)
        yield
        values = self._unit.sorted()
        if values is None:
            return
        n = values.shape[1]
        with self._libraries.limit(limits=1, user_api="blas"):
            n = thinned(self._stage, self._kernels, self._levels(values), self._terms.clip)
        with self._counter.image():
            self._counter.add([Tile(0, 0, 0, np.ascontiguousarray(values[:, None, :n]))])

    @contextmanager
    def image(self, name: str) -> Iterator[None]:
        """Keep what is sampled inside the block, or, when it raises, nothing of it.

        name  of its own, by which its pixels' ranks differ from other images'
        """
        self._image = _Sample(self._terms.most_pixels)
        self._salt = np.frombuffer(hashlib.sha256(self._seed + name.encode()).digest()[:8], "<u8")[0]
        yield
        values = self._image.sorted()
        if values is not None:
            self._unit.add(self._image.parts[0][0], values)

    def add(self, tiles: Iterable[Tile], labelled: Labelled | None = None) -> int:
        """Sample tiles, inside a block of `image`; returns pixels seen. Raises as `Counter.add` does."""
        seen = 0
        with self._libraries.limit(limits=1, user_api="blas"):
            for tile in tiles:
                bands = len(tile.values)
                values = tile.values.reshape(bands, -1)
                levels = levels_of_tile(self._stage, self._kernels, tile)
                wanted = np.flatnonzero(self._wanted(levels, tile, labelled))
                self._image.add(self._ranks(tile, wanted), values[:, wanted])
                seen += values.shape[1]
        return seen

    def tables(self) -> Tables:
        """Return the tables of all units so far."""
        return self._counter.tables()

    def _levels(self, values: Values) -> Levels:
        return levels_of_tile(self._stage, self._kernels, Tile(0, 0, 0, np.ascontiguousarray(values[:, None])))

    def _wanted(self, levels: Levels, tile: Tile, labelled: Labelled | None) -> npt.NDArray[np.bool_]:
        """Tell which pixels say anything in this stage; the codebook's labels are written of all on the way."""
        stage = self._stage
        if isinstance(stage, MomentsPlan | RangesPlan):
            some: npt.NDArray[np.bool_] = np.any(levels, axis=0)
            return some
        keys = stage.quantiser.keys(levels, self._kernels)
        if self._codebook is not None and labelled is not None:
            labelled(tile, self._codebook.clusters(keys).reshape(tile.values.shape[1:]))
        foreground: npt.NDArray[np.bool_] = keys != BACKGROUND
        return foreground

    def _ranks(self, tile: Tile, at: npt.NDArray[np.int64]) -> Ranks:
        """Give pixels ranks by their places, so that tiles may come in any order and shape."""
        y, x = np.divmod(at, tile.values.shape[2])
        place_ = (np.uint64(tile.z) << np.uint64(48)) | ((y + tile.y).astype(np.uint64) << np.uint64(24))
        return mix(mix(place_ | (x + tile.x).astype(np.uint64)) ^ self._salt)


def thinned(stage: PixelStage, kernels: Kernels, levels: Levels, clip: int) -> int:
    """Say how many pixels of a sample, from its first on, keep every table of the stage under its bound.

        ‖T‖₂² ≤ rows·clip²     for each of the stage's histograms and sketches

    levels  uint16[B, n] in the order of the sample
    returns at least 1 when n is, for one pixel adds 1 to a row
    """
    measure = _measure(stage, kernels)
    n = int(levels.shape[1])
    while n > 1:
        worst = measure(levels[:, :n])
        if worst <= clip**2:
            return n
        n = max(1, min(n - 1, int(n * clip / worst**0.5)))
    return n


def _measure(stage: PixelStage, kernels: Kernels) -> Callable[[Levels], float]:
    """Return what finds the largest ‖T‖₂²/rows of a sample's tables."""
    match stage:
        case RangesPlan():

            def by_ranges(levels: Levels) -> float:
                into = np.zeros(stage.shapes()["unit"], np.int64)
                kernels.unit_histogram(np.ascontiguousarray(levels), stage.projection, into)
                return float((into**2).sum()) / len(into)

            return by_ranges
        case CountsPlan():
            return lambda levels: _of_counts(stage, stage.quantiser.keys(np.ascontiguousarray(levels), kernels))
        case RecoveryPlan():

            def by_candidates(levels: Levels) -> float:
                at = kernels.lookup(stage.quantiser.keys(np.ascontiguousarray(levels), kernels), stage.candidates)
                return float((np.bincount(at[at >= 0]) ** 2).sum())

            return by_candidates
        case MomentsPlan() | CodebookPlan():
            return lambda _levels: 0.0  # bounded by the number of pixels alone


def _of_counts(stage: CountsPlan, keys: npt.NDArray[np.uint64]) -> float:
    bits = stage.quantiser.keyspace.bits
    keys = keys[keys != BACKGROUND]
    _, counts = np.unique(keys >> np.uint64(bits - stage.dense_bits), return_counts=True)
    worst = float((counts**2).sum())
    seeds = stage.sketch.seeds()
    for prefix in stage.sketch_bits:
        each, counts = np.unique(keys >> np.uint64(bits - prefix), return_counts=True)
        mixed, squares = mix(each), 0.0
        for row in seeds:
            column, sign = place(mixed, row, stage.sketch.width)
            squares += float((np.bincount(column, sign * counts) ** 2).sum())
        worst = max(worst, squares / len(seeds))
    return worst
