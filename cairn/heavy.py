"""Heavy hitters: fill a key's prefix levels from a stream, and find the most frequent keys from the tables alone."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanMismatch
from cairn.hashing import Keys, RowSeeds
from cairn.kernels import Kernels
from cairn.kernels.pixels_numpy import Levels
from cairn.pixels import BACKGROUND
from cairn.plan import CountsPlan
from cairn.sketch import error_bound

Counts = npt.NDArray[np.int64]
Private = npt.NDArray[np.int32] | npt.NDArray[np.int64]

LEAF_CACHE = 2**18  # words; whole keys, of which there are many
PREFIX_CACHE = 2**16  # words; prefixes, of which there are fewer
BATCH = 2**17  # combined pairs that go to a table at once
JOURNAL = 2**20  # pairs since the last checkpoint that are kept, to be taken back one by one
INT32_MAX = 2**31 - 1
BEAM = 8  # prefixes expanded per level, at most, for each key that is wanted
CHUNK = 2**18  # estimates that a thread makes at once
SKIP = int(BACKGROUND)


class KeyCounter:
    """Count a stream of keys in the dense table and the sketches of a counts plan.

    Each worker has tables of its own, so that calls of `add` with different workers may run at once; the other
    methods may not run beside any call.
    """

    def __init__(self, stage: CountsPlan, kernels: Kernels, workers: int = 1) -> None:
        self._levels = (*reversed(stage.sketch_bits), stage.dense_bits)  # from the whole key up to the dense prefix
        shapes = stage.shapes()
        self._names = (*(f"sketch_{bits}" for bits in self._levels[:-1]), "dense")
        self._base = _Base([tuple(shapes[name]) for name in self._names], kernels, stage.sketch.seeds())
        self._quantiser = stage.quantiser
        self._workers = [_Worker(self._base, self._levels, stage.quantiser.keyspace.bits) for _ in range(workers)]

    def add(self, keys: Keys, worker: int = 0) -> None:
        """Count keys uint64[n], each below the key space's size; BACKGROUND is left out."""
        self._workers[worker].add(keys)

    def add_pixels(self, levels: Levels, worker: int = 0) -> None:
        """Count the foreground of pixels uint16[bands, n]."""
        self.add(self._quantiser.keys(levels, self._base.kernels), worker)

    def checkpoint(self) -> None:
        """Keep all that was added; `rollback` goes back to here."""
        self._each(_Worker.checkpoint)

    def rollback(self) -> None:
        """Take back, exactly, all that was added since the last checkpoint (an image that broke half-way)."""
        self._each(_Worker.rollback)

    def tables(self) -> dict[str, Counts]:
        """Sum all that was counted; a checkpoint too.

        returns  int64 `dense` and `sketch_<bits>`, shaped as the plan says; the sum of `dense` is the number of keys.
                 They are the counter's own arrays, not copies (they are large): use them before adding more
        """
        self._each(_Worker.checkpoint)
        self._each(_Worker.spill)
        return dict(zip(self._names, self._base.tables(), strict=True))

    def _each(self, do: Callable[["_Worker"], None]) -> None:
        with ThreadPoolExecutor(len(self._workers)) as pool:
            for done in [pool.submit(do, worker) for worker in self._workers]:
                done.result()


class _Base:
    """The int64 tables that all workers add to, made when first needed."""

    def __init__(self, shapes: list[tuple[int, ...]], kernels: Kernels, seeds: RowSeeds) -> None:
        self.shapes = shapes
        self.kernels = kernels
        self.lock = Lock()
        self._seeds = seeds
        self._tables: list[Counts] = []

    def tables(self) -> list[Counts]:
        if not self._tables:
            self._tables = [np.zeros(shape, np.int64) for shape in self.shapes]
        return self._tables

    def apply(self, table: Private, keys: Keys, counts: Counts) -> None:
        """Add pairs to a table of one level: dense (one axis) or a sketch (two)."""
        if table.ndim == 1:
            self.kernels.scatter(table, keys, counts)
        else:
            self.kernels.update(table, keys, counts, self._seeds)


class _Worker:
    """One thread's caches and tables.

    Pairs fall from level to level: the cache of whole keys emits into the leaf's batch; a full batch goes to the leaf's
    table and, cut to the next shorter prefix, through that level's cache, and so up to the dense table.

    Private tables count in int32: no counter can pass the number of keys added since they were zero, and before that
    could pass 2^31 - 1 they are added into the base and zeroed. What a rollback takes back is the journal, while
    it is short; a longer one is closed, with the tables spilled, so that from there on they hold nothing else.
    """

    def __init__(self, base: _Base, levels: tuple[int, ...], key_bits: int) -> None:
        self._base = base
        self._shifts = [a - b for a, b in zip((key_bits, *levels), levels, strict=False)]
        sizes = [LEAF_CACHE] + [PREFIX_CACHE] * max(
            0, len(levels) - 2
        )  # the dense table needs none, unless it is alone
        self._caches = [np.zeros(size, np.uint64) for size in sizes]
        self._keys = [np.empty(BATCH, np.uint64) for _ in sizes]
        self._counts = [np.empty(BATCH, np.int64) for _ in sizes]
        self._filled = [0] * len(sizes)
        self._tables: list[Private] = [np.zeros(shape, np.int32) for shape in base.shapes]
        self._weight = 0  # keys added since the tables were zero
        self._journal: list[tuple[int, Keys, Counts]] = []
        self._journal_pairs = 0
        self._journal_open = True

    def add(self, keys: Keys) -> None:
        for start in range(0, len(keys), INT32_MAX // 2):
            part = keys[start : start + INT32_MAX // 2]
            if self._weight + len(part) > INT32_MAX:
                self._make_room()
            self._weight += len(part)
            self._push(0, part, None)

    def checkpoint(self) -> None:
        self._drain()
        self._journal = []
        self._journal_pairs = 0
        if self._tables[0].dtype != np.int32:
            self.spill()
            self._weight = 0
        self._journal_open = True

    def rollback(self) -> None:
        for cache in self._caches:
            cache[:] = 0
        self._filled = [0] * len(self._filled)
        if self._journal_open:
            self._take_back(self._tables)
        else:
            with self._base.lock:
                self._take_back(self._base.tables())
            self._zero()
            self._weight = 0
        self.checkpoint()

    def spill(self) -> None:
        """Add the private tables into the base and zero them; what is still in the caches stays there."""
        with self._base.lock:
            for into, table in zip(self._base.tables(), self._tables, strict=True):
                into += table
        self._zero()

    def _zero(self) -> None:
        self._tables = [np.zeros(shape, np.int32) for shape in self._base.shapes]

    def _make_room(self) -> None:
        self._drain()
        if self._journal_open:
            self._close_journal()
            self._weight = 0
        else:  # over 2^31 keys since the checkpoint, all still to be told from what was kept before
            self._tables = [table.astype(np.int64) for table in self._tables]
            self._weight = -(2**62)

    def _close_journal(self) -> None:
        self.spill()
        self._journal_open = False

    def _take_back(self, tables: list[Private] | list[Counts]) -> None:
        for level, keys, counts in self._journal:
            self._base.apply(tables[level], keys, -counts)

    def _push(self, level: int, keys: Keys, counts: Counts | None) -> None:
        """Combine keys, cut to this level's prefix, into its batch; hand every full batch on."""
        while len(keys):
            at = self._filled[level]
            out = self._keys[level][at:], self._counts[level][at:]
            shift, cache = self._shifts[level], self._caches[level]
            taken, emitted = self._base.kernels.combine(keys, counts, shift, cache, SKIP, *out)
            self._filled[level] = at + emitted
            keys, counts = keys[taken:], None if counts is None else counts[taken:]
            if len(keys) or BATCH - self._filled[level] < 2:
                self._flush(level)

    def _flush(self, level: int) -> None:
        filled, self._filled[level] = self._filled[level], 0
        self._hand_on(level, self._keys[level][:filled], self._counts[level][:filled])

    def _hand_on(self, level: int, keys: Keys, counts: Counts) -> None:
        """Add combined pairs to this level's table and, cut shorter, to the levels after it."""
        if not len(keys):
            return
        self._record(level, keys, counts)
        if level + 2 < len(self._shifts):
            self._push(level + 1, keys, counts)
        elif level + 2 == len(self._shifts):  # the dense table, to which adding costs less than combining
            self._record(level + 1, keys >> np.uint64(self._shifts[level + 1]), counts)

    def _record(self, level: int, keys: Keys, counts: Counts) -> None:
        """Add pairs to this level's table and to the journal."""
        self._base.apply(self._tables[level], keys, counts)
        if self._journal_open:
            self._journal.append((level, keys.copy(), counts.copy()))
            self._journal_pairs += len(keys)
            if self._journal_pairs > JOURNAL:
                self._close_journal()

    def _drain(self) -> None:
        """Empty every cache and batch into the tables, the whole keys first."""
        for level, cache in enumerate(self._caches):
            self._flush(level)
            keys, counts = np.empty(len(cache), np.uint64), np.empty(len(cache), np.int64)
            emitted = self._base.kernels.drain(cache, keys, counts)
            self._hand_on(level, keys[:emitted], counts[:emitted])


@dataclass(frozen=True)
class HeavyHitters:
    """The most frequent keys that the tables show, by falling estimate.

    keys         uint64[k], each once, below the key space's size
    counts       int64[k], estimates, each at least 1
    error_bound  each estimate is within this of the true count with probability 99 % (`sketch.error_bound`); 0 when
                 the counts are exact
    """

    keys: Keys
    counts: Counts
    error_bound: int


def recover(
    tables: Mapping[str, Counts],
    stage: CountsPlan,
    k: int,
    kernels: Kernels,
    threads: int = 2,
    *,
    least: int = 1,
    dense_noise: int = 0,
) -> HeavyHitters:
    """Find the k most frequent keys of a counts tally from its tables alone; docs/MATHS.md, "Recovery".

    A key is no more frequent than its prefixes. For a falling threshold, expand every prefix whose estimate passes it,
    level by level from the dense table to the whole keys; stop when k keys pass, or nothing is left to expand. At most
    BEAM·k prefixes a level are expanded, the most frequent first, so that noise cannot make the work explode.

    tables   int64, those of the plan's shapes
    k        ask for more than are wanted (1.25 times) when the candidates are verified afterwards
    least        smallest estimate that is looked for
    dense_noise  standard deviation of the noise in the dense table of a private tally
    Raises PlanMismatch when a table is missing or has another shape.
    """
    for name, shape in stage.shapes().items():
        if name not in ("pixels", "foreground") and (name not in tables or tables[name].shape != tuple(shape)):
            raise PlanMismatch(f"table {name!r} of shape {tuple(shape)} is needed to recover keys; merge a whole tally")
    with ThreadPoolExecutor(threads) as pool:
        search = _Search(tables, stage, k, kernels, pool, least, dense_noise)
        keys, counts = search.run()
    order = np.lexsort((keys, -counts))[:k]
    bound = error_bound(tables[f"sketch_{stage.sketch_bits[-1]}"]) if stage.sketch_bits else 0
    return HeavyHitters(keys[order], counts[order], bound)


class _Search:
    """The open prefixes of each level, and how they are expanded."""

    def __init__(
        self,
        tables: Mapping[str, Counts],
        stage: CountsPlan,
        k: int,
        kernels: Kernels,
        pool: ThreadPoolExecutor,
        least: int,
        dense_noise: int,
    ) -> None:
        self.least = max(1, least)
        self.tables, self.k, self.kernels, self.pool = tables, k, kernels, pool
        self.bits = (stage.dense_bits, *stage.sketch_bits)
        self.size = stage.quantiser.keyspace.size
        self.seeds = stage.sketch.seeds()
        self.sketches = [kernels.hold(tables[f"sketch_{bits}"]) for bits in stage.sketch_bits]
        self.noise = [dense_noise, *(_noise(tables[f"sketch_{bits}"]) for bits in stage.sketch_bits)]
        self.budget = [BEAM * max(k, 1)] * (len(self.bits) - 1)
        # Without sketches the dense table holds whole keys, and a noisy cell is shown only where it stands out.
        floor = 0 if stage.sketch_bits else self.least - 1
        inside = ((self.size - 1) >> (self.bits[-1] - self.bits[0])) + 1  # noise is over the prefixes of no key too
        dense = np.flatnonzero(tables["dense"][:inside] > floor)
        nothing = np.empty(0, np.uint64), np.empty(0, np.int64)
        self.open: list[tuple[Keys, Counts]] = [nothing for _ in self.bits]
        self.open[0] = dense.astype(np.uint64), tables["dense"][dense]

    def run(self) -> tuple[Keys, Counts]:
        """Lower the threshold until k whole keys pass it."""
        total = int(self.tables["dense"].sum())
        threshold = max(self.least, total // max(self.k, 1))
        while True:
            for level in range(len(self.bits) - 1):
                self._expand(level, threshold)
            passed = int(np.count_nonzero(self.open[-1][1] >= threshold))
            waiting = any(len(keys) and left for (keys, _), left in zip(self.open, self.budget, strict=False))
            if passed >= self.k or threshold == self.least or not waiting:
                return self.open[-1]
            threshold = max(self.least, threshold * 7 // 10)

    def _expand(self, level: int, threshold: int) -> None:
        """Replace the prefixes that pass, less what noise may have cost them, by their children."""
        if not self.budget[level]:
            return
        keys, counts = self.open[level]
        passed = np.flatnonzero(counts >= threshold - 2 * self.noise[level])
        if len(passed) > self.budget[level]:
            best = np.argpartition(counts[passed], len(passed) - self.budget[level])
            passed = np.sort(passed[best[len(passed) - self.budget[level] :]])
        if not len(passed):
            return
        self.budget[level] -= len(passed)
        parents, limits = keys[passed], counts[passed]
        self.open[level] = np.delete(keys, passed), np.delete(counts, passed)
        step = self.bits[level + 1] - self.bits[level]
        rows = max(1, CHUNK >> step)
        parts = self.pool.map(
            lambda start: self._children(level, step, parents[start : start + rows], limits[start : start + rows]),
            range(0, len(parents), rows),
        )
        children, estimates = zip(self.open[level + 1], *parts, strict=True)
        self.open[level + 1] = np.concatenate(children), np.concatenate(estimates)

    def _children(self, level: int, step: int, parents: Keys, limits: Counts) -> tuple[Keys, Counts]:
        """Estimate the children of prefixes; keep those over the noise, none above its parent."""
        digits = np.arange(2**step, dtype=np.uint64)
        children = ((parents << np.uint64(step))[:, None] | digits).ravel()
        last = np.uint64((self.size - 1) >> (self.bits[-1] - self.bits[level + 1]))
        inside = children <= last
        limits = np.repeat(limits, 2**step)[inside]
        children = children[inside]
        found = self.kernels.estimate(self.sketches[level], children, self.seeds)
        if level + 2 < len(self.bits):
            found = np.minimum(found, limits + 2 * self.noise[level])
        kept = found >= max(1, self.noise[level + 1])
        return children[kept], found[kept]


def _noise(table: Counts) -> int:
    """Estimate the standard error of an estimate, robustly: 1.25/√R times the buckets' own, 1.48·median|S|."""
    sample = np.abs(table.ravel()[:: max(1, table.size // 2**16)])
    return int(1.2533 * 1.4826 * float(np.median(sample)) / np.sqrt(len(table)))
