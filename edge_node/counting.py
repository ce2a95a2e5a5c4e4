"""From tiles to a tally's tables, for every stage of a study; one image at a time, kept or taken back as a whole.

    counter = Counter(plan.stage, kernels, workers=2)
    for source in sources:
        with counter.image(), open_image(source) as image:
            counter.add(image.tiles(bands))
    tables = counter.tables()

A tile's way: values → levels (`to_levels`) → keys (`Quantiser.keys`) → tables. Whole numbers add exactly, so the tables
do not depend on the tiles' shapes, the order in which workers take them, or the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TypeAlias, assert_never, final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from cairn import moments, tally
from cairn.device import DeviceCounter, key_counter
from cairn.errors import DeviceError, ImageError
from cairn.heavy import KeyCounter
from cairn.images import Tile
from cairn.kernels import Kernels
from cairn.pixels import BACKGROUND, PixelLevels
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, PixelStage, RangesPlan, RecoveryPlan
from cairn.privacy.sensitivity import dimmed, moment_shift
from cairn.privacy.terms import Privacy
from cairn.tally import Tables
from edge_node.labelling import Codebook

Levels: TypeAlias = npt.NDArray[np.uint16]
Clusters: TypeAlias = npt.NDArray[np.uint8]
Labelled: TypeAlias = Callable[[Tile, Clusters], None]  # gets each tile with its cluster image uint8[h, w]
# (levels uint16[B, n], tables to add to) -> clusters uint8[n] in the codebook stage
Work: TypeAlias = Callable[[Levels, Tables], Clusters | None]

IN_WORDS = ("sum", "second", "profile")  # tables of `moments.split`


def despite_a_lost_gpu(count: Callable[[], None]) -> None:
    """Count an image, and where a GPU fails on the way, which takes the image back, once more: then the CPU does."""
    try:
        count()
    except DeviceError:
        count()


@final
class Counter:
    """Count images into the tables of one stage.

    workers  threads that each take a tile, read it and count it; while one reads, the others count
    terms    of a private plan: bright pixels are dimmed where levels are summed
    """

    def __init__(self, stage: PixelStage, kernels: Kernels, workers: int = 1, terms: Privacy | None = None) -> None:
        self._stage = stage
        self._kernels = kernels
        self._keys = key_counter(stage, kernels, workers) if isinstance(stage, CountsPlan) else None
        codebook = Codebook(stage, kernels) if isinstance(stage, CodebookPlan) else None
        self._work = [_work(stage, kernels, terms, self._keys, codebook, worker) for worker in range(workers)]
        self._kept = _small(stage)
        self._open = [_small(stage) for _ in range(workers)]  # of the image at hand, one per worker

    @contextmanager
    def image(self) -> Iterator[None]:
        """Keep what is added inside the block, or, when it raises, take all of it back exactly.

        Raises DeviceError when a GPU failed: count the image again, the CPU does it.
        """
        self._open = [_small(self._stage) for _ in self._open]
        try:
            yield
            if self._keys:
                self._keys.checkpoint()
        except BaseException:
            if self._keys:
                self._keys.rollback()
            raise
        for tables in self._open:
            tally.add(self._kept, tables)
        for name in IN_WORDS:
            if name in self._kept:
                moments.carry(self._kept[name])

    def add(self, tiles: Iterable[Tile], labelled: Labelled | None = None) -> int:
        """Count tiles, inside a block of `image`.

        tiles     taken by one worker at a time
        labelled  called in the codebook stage with each tile and its clusters (0 background, else cluster + 1), one
                  call at a time, in no set order
        returns   pixels counted
        Raises whatever reading the tiles raises, and ImageError for values that are no numbers.
        """
        # One thread a worker: the linear algebra's own, in several sites or workers at once, wait for each other busily
        # (three sites on two cores: 0.15 s an image became 2 to 10 s).
        with threadpool_limits(1, "blas"):
            shared = _Shared(iter(tiles), labelled)
            if len(self._open) == 1:
                return self._run(shared, 0)
            with ThreadPoolExecutor(len(self._open), "count") as pool:
                runs = [pool.submit(self._run, shared, worker) for worker in range(len(self._open))]
                return sum(run.result() for run in runs)

    def tables(self) -> Tables:
        """Return the tables of all images kept so far; a counts tally's are the counter's own arrays, not copies."""
        tables = {name: table.copy() for name, table in self._kept.items()}
        if self._keys:
            tables |= self._keys.tables()
            tables["foreground"] = tables["dense"].sum(keepdims=True)
        return tables

    def _run(self, shared: "_Shared", worker: int) -> int:
        pixels = 0
        try:
            while (tile := shared.take()) is not None:
                levels = levels_of_tile(self._stage, self._kernels, tile)
                clusters = self._work[worker](levels, self._open[worker])
                if clusters is not None:
                    shared.give(tile, clusters)
                pixels += levels.shape[1]
        except BaseException:
            shared.stop()
            raise
        return pixels


class _Shared:
    """One source of tiles and one taker of labels for several workers."""

    def __init__(self, tiles: Iterator[Tile], labelled: Labelled | None) -> None:
        self._tiles: Iterator[Tile] | None = tiles
        self._labelled = labelled
        self._taking, self._giving = Lock(), Lock()

    def take(self) -> Tile | None:
        with self._taking:
            return next(self._tiles, None) if self._tiles is not None else None

    def give(self, tile: Tile, clusters: Clusters) -> None:
        if self._labelled:
            with self._giving:
                self._labelled(tile, clusters.reshape(tile.values.shape[1:]))

    def stop(self) -> None:
        self._tiles = None  # the other workers finish the tile they have


def _small(stage: PixelStage) -> Tables:
    """Make a stage's tables, without those of a counter of keys, which keeps its own."""
    if isinstance(stage, CountsPlan):
        return {"pixels": np.zeros(1, np.int64), "foreground": np.zeros(1, np.int64)}
    return tally.zeros(stage)


def levels_of_tile(stage: PixelStage, kernels: Kernels, tile: Tile) -> Levels:
    """Return a tile's levels uint16[B, h·w]. Raises ImageError for values that are no numbers."""
    pixels: PixelLevels = stage.pixels if isinstance(stage, MomentsPlan | RangesPlan) else stage.quantiser.pixels
    if len(tile.values) != len(pixels.bands):
        raise ImageError(f"found a tile of {len(tile.values)} bands; expected the plan's {len(pixels.bands)}")
    return kernels.to_levels(tile.values.reshape(len(pixels.bands), -1), pixels.offset, pixels.scale)


def _work(
    stage: PixelStage,
    kernels: Kernels,
    terms: Privacy | None,
    keys: KeyCounter | DeviceCounter | None,
    codebook: Codebook | None,
    worker: int,
) -> Work:
    match stage:
        case MomentsPlan():
            return partial(_moments, kernels, terms)
        case RangesPlan():
            return partial(_ranges, stage, kernels)
        case CountsPlan():
            assert keys is not None
            return partial(_counts, keys, worker)
        case RecoveryPlan():
            return partial(_recovery, stage, kernels)
        case CodebookPlan():
            assert codebook is not None
            return partial(_codebook, stage, kernels, codebook, terms)
        case _:
            assert_never(stage)


def _moments(kernels: Kernels, terms: Privacy | None, levels: Levels, tables: Tables) -> None:
    """Stage 1: n, Σx, Σxxᵀ; of a private plan in units of 2^shift levels."""
    if terms is not None:
        levels = dimmed(levels, terms) >> np.uint16(moment_shift(terms))
    total, second = kernels.moments(levels)
    tables["pixels"] += levels.shape[1]
    tables["sum"] += moments.split(total)
    tables["second"] += moments.split(second)


def _ranges(stage: RangesPlan, kernels: Kernels, levels: Levels, tables: Tables) -> None:
    """Stage 2: intensity and unit vector, jointly."""
    tables["pixels"] += levels.shape[1]
    kernels.unit_histogram(levels, stage.projection, tables["unit"])


def _counts(keys: KeyCounter | DeviceCounter, worker: int, levels: Levels, tables: Tables) -> None:
    """Stage 3: foreground keys into the dense table, whose sum they are, and the sketches."""
    tables["pixels"] += levels.shape[1]
    keys.add_pixels(levels, worker)


def _recovery(stage: RecoveryPlan, kernels: Kernels, levels: Levels, tables: Tables) -> None:
    """Stage 4: exact counts of the candidates."""
    keys = stage.quantiser.keys(levels, kernels)
    tables["foreground"] += np.count_nonzero(keys != BACKGROUND)
    at = kernels.lookup(keys, stage.candidates)
    tables["count"] += np.bincount(at[at >= 0], minlength=len(stage.candidates))


def _codebook(
    stage: CodebookPlan,
    kernels: Kernels,
    codebook: Codebook,
    terms: Privacy | None,
    levels: Levels,
    tables: Tables,
) -> Clusters:
    """Stage 6: each pixel's cluster, and per cluster the pixels and the sum of levels."""
    clusters = codebook.clusters(stage.quantiser.keys(levels, kernels))
    sums = np.zeros((len(stage.cluster_states), len(levels)), np.int64)
    tables["pixels"] += len(clusters)
    kernels.profile(levels if terms is None else dimmed(levels, terms), clusters, tables["clusters"], sums)
    tables["profile"] += moments.split(sums)
    return clusters
