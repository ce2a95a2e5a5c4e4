"""Adding keys to a sketch, beside what others do and what the machine can; and merging many tallies.

The peers are written anew from the descriptions of what they do. All run on one thread; the lines that say two threads
do so. Peers that are too slow for the whole stream get its beginning, and their rate is compared. On one thread a
second is one of the processor's, so that what else the machine does falls out of all figures alike; on two it is the
clock's.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from benchmarks import gpu
from benchmarks.keys import Keys, image_keys, real_keys, zipf_keys
from benchmarks.recovery import paper_plan
from cairn import kernels
from cairn.hashing import row_seeds
from cairn.heavy import KeyCounter
from cairn.pixels import BACKGROUND
from cairn.plan import CountsPlan
from cairn.tally import add, zeros

KEYS = 20_000_000
SLOW = 1_000_000  # keys (an image) for the peers that take them one by one or hash with divisions
SHAPES = ((16, 200_000), (10, 20_000))
SEED = bytes(range(32))
PRIME = 2**61 - 1
SITES, TABLE = 100, 50 * 2**20

Line = dict[str, Any]


def run() -> Iterator[Line]:
    """Measure updates of both shapes with each stream against each peer, then merging."""
    streams = {"zipf": zipf_keys(KEYS), "image": image_keys(KEYS)}
    real = real_keys()
    if real is not None:
        real = real[real != BACKGROUND]
        streams["real_image"] = np.tile(real, -(-KEYS // len(real)))[:KEYS]
    for stream, keys in streams.items():
        for depth, width in SHAPES:
            yield from updates(f"sketch_update/{depth}x{width}/{stream}", keys, depth, width)
    yield from gpu.run()
    yield from merge()


def rate(work: Callable[[], object], n: int, repeats: int = 3, clock: Callable[[], float] = time.process_time) -> float:
    """Return the best of some runs in million a second; the first run also compiles and touches the memory."""
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        work()
        best = min(best, clock() - start)
    return n / best / 1e6


def updates(name: str, keys: Keys, depth: int, width: int) -> Iterator[Line]:
    """Compare the counter (one sketch of whole keys, and a dense histogram of their high bits) with each peer."""
    ours = rate(lambda: count(keys, paper_plan(depth, width, levels=1)), len(keys))
    few = keys[:SLOW]
    peers = {
        "authors_torch": rate(lambda: authors_torch(few, depth, width), len(few), 2),
        "csvec": csvec(keys[: 4 * SLOW], depth, width),
        "np_unique": rate(lambda: np.unique(keys, return_counts=True), len(keys), 1),
        "datasketches": rate(lambda: datasketches(few, depth, width), len(few), 1),
        "machine_limit": machine_limit(depth, width),
    }
    for peer, speed in peers.items():
        yield {"name": name, "value": ours, "unit": "Mkeys/s", "ratio": ours / speed, "against": peer}
    two = rate(lambda: count(keys, paper_plan(depth, width, levels=1), threads=2), len(keys), clock=time.perf_counter)
    yield {"name": f"{name}/two_threads", "value": two, "unit": "Mkeys/s", "ratio": two / ours, "against": "one_thread"}
    tree = rate(lambda: count(keys, paper_plan(depth, width)), len(keys))
    yield {"name": f"{name}/all_levels", "value": tree, "unit": "Mkeys/s", "ratio": tree / ours, "against": "leaf_only"}


def count(keys: Keys, stage: CountsPlan, threads: int = 1) -> None:
    """Count keys as a site does, tile by tile, each thread its share."""
    counter = KeyCounter(stage, kernels.load("numba"), threads)
    tiles = np.array_split(keys, max(threads, len(keys) // 2**20))

    def work(worker: int) -> None:
        for tile in tiles[worker::threads]:
            counter.add(tile, worker)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    counter.checkpoint()


def authors_torch(keys: Keys, depth: int, width: int) -> None:
    """Sketch-and-Scale's `accumulateVec`: per row a degree-1 and a degree-3 polynomial modulo 2^61 - 1, a bincount, and
    the row's estimate of every key; then the median over rows, from which they keep the frequent ones.

    Its products overflow 64 bits, as theirs do. Their loop over the estimates, in Python, is left out.
    """  # noqa: D205 (one sentence)
    import torch  # noqa: PLC0415 (only the peers need it)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        draw = torch.Generator().manual_seed(42)
        factors = torch.randint(0, PRIME, (depth, 6), dtype=torch.int64, generator=draw).tolist()
        table = torch.zeros((depth, width))
        x = torch.from_numpy(keys.astype(np.int64))
        estimates = torch.zeros((depth, len(x)), dtype=torch.int64)
        for row, found, (a1, a0, b3, b2, b1, b0) in zip(table, estimates, factors, strict=True):
            buckets = (x * a1 + a0).remainder(PRIME).remainder(width)
            signs = (((x * b3 + b2) * x + b1) * x + b0).remainder(PRIME).remainder(2).float() * 2 - 1
            row += torch.bincount(buckets, signs, minlength=width)
            found[:] = row[buckets] * signs
        estimates.median(dim=0)
    finally:
        torch.set_num_threads(threads)


def csvec(keys: Keys, depth: int, width: int) -> float:
    """Time csvec with every hash made beforehand: a gather of buckets and signs and a bincount for each row."""
    import torch  # noqa: PLC0415 (only the peers need it)

    names, index = np.unique(keys, return_inverse=True)
    rng = np.random.default_rng(0)
    buckets = torch.from_numpy(rng.integers(0, width, (depth, len(names))))
    signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), (depth, len(names))))
    x = torch.from_numpy(index.reshape(-1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def work() -> None:
        table = torch.zeros((depth, width))
        for r in range(depth):
            table[r] += torch.bincount(buckets[r][x], signs[r][x], minlength=width)

    try:
        return rate(work, len(keys), 2)
    finally:
        torch.set_num_threads(threads)


def datasketches(keys: Keys, depth: int, width: int) -> None:
    """Add to Apache DataSketches' count-min sketch, which takes one item a call."""
    from datasketches import count_min_sketch  # noqa: PLC0415 (only the peers need it)

    sketch = count_min_sketch(depth, width)
    for key in keys.tolist():
        sketch.update(key)


def machine_limit(depth: int, width: int) -> float:
    """Measure random read-modify-write of one row's counters, in cache, and divide by the rows: the limit of any
    sketch that updates every row for every key. Combining equal keys is the only way past it.
    """  # noqa: D205 (one sentence)
    columns = np.random.default_rng(0).integers(0, width, 2**20).astype(np.uint32)
    row = np.zeros(width, np.int32)
    return rate(lambda: read_modify_write(row, columns), len(columns), 20) / depth


@njit(nogil=True)  # type: ignore[untyped-decorator]
def read_modify_write(row: npt.NDArray[np.int32], columns: npt.NDArray[np.uint32]) -> None:
    """Add one at every column."""
    for i in range(len(columns)):
        row[columns[i]] += 1


def merge() -> Iterator[Line]:
    """Merge 100 tallies of 50 MB one after the other; the speed of adding beside that of copying the same bytes."""
    width = TABLE // 8 // 16
    stage = paper_plan(16, width, levels=1)
    tables, other = zeros(stage), zeros(stage)
    seeds = row_seeds(SEED, 16)
    kernels.load("numba").update(other["sketch_36"], image_keys(10**6), np.ones(10**6, np.int64), seeds)
    size = sum(table.nbytes for table in tables.values())
    copied = zeros(stage)

    def copy() -> None:
        for name, table in copied.items():
            np.copyto(table, other[name])

    adding, copying = (rate(work, size, SITES) for work in (lambda: add(tables, other), copy))
    yield {
        "name": "merge/100x50MB",
        "value": adding,
        "unit": "MB/s",
        "ratio": adding / copying,
        "against": "memory_copy",
    }
