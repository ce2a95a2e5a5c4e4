"""Adding keys to a sketch, beside what others do and what the machine can; and merging many tallies.

The peers are written anew from the descriptions of what they do. All run on one thread; the lines that say two threads
do so. Peers that are too slow for the whole stream get its beginning, and their rate is compared. All take turns, round
after round, and each one's best turn counts, so that what else the machine does weighs on all alike. On one thread a
second is one of the processor's; where two threads are compared with one it is the clock's.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

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
ROUNDS = 7  # turns of each
SHAPES = ((16, 200_000), (10, 20_000))
SEED = bytes(range(32))
PRIME = 2**61 - 1
SITES, TABLE = 100, 50 * 2**20

Line = dict[str, Any]
Run = tuple[Callable[[], object], float, int]  # what to do; of how many keys or bytes; how often in one turn


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
    yield from merge()


def rates(
    runs: dict[str, Run], rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Return each one's best in million a second, all taking turns; first turns also compile and touch the memory."""
    best = dict.fromkeys(runs, 0.0)
    for _ in range(rounds):
        for name, (work, n, times) in runs.items():
            for _ in range(times):
                start = clock()
                work()
                best[name] = max(best[name], n / (clock() - start) / 1e6)
    return best


def updates(name: str, keys: Keys, depth: int, width: int) -> Iterator[Line]:
    """Compare the counter (one sketch of whole keys, and a dense histogram of their high bits) with each peer."""
    n, few, more = len(keys), keys[:SLOW], keys[: 4 * SLOW]
    leaf, tree = paper_plan(depth, width, levels=1), paper_plan(depth, width)
    peers: dict[str, Run] = {
        "authors_torch": (lambda: authors_torch(few, depth, width), SLOW, 1),
        "csvec": (csvec(more, depth, width), len(more), 1),
        "np_unique": (lambda: np.unique(keys, return_counts=True), n, 1),
        "datasketches": (lambda: datasketches(few, depth, width), SLOW, 1),
        "machine_limit": machine_limit(depth, width),
    }
    best = rates({"ours": (lambda: count(keys, leaf), n, 1), "tree": (lambda: count(keys, tree), n, 1), **peers})
    for peer in peers:
        ratio = best["ours"] / best[peer]
        yield {"name": name, "value": best["ours"], "unit": "Mkeys/s", "ratio": ratio, "against": peer}
    threads: dict[str, Run] = {
        "one": (lambda: count(keys, leaf), n, 1),
        "two": (lambda: count(keys, leaf, threads=2), n, 1),
    }
    by_clock = rates(threads, clock=time.perf_counter)
    two, tree_ratio = by_clock["two"] / by_clock["one"], best["tree"] / best["ours"]
    for part, value, ratio, against in (
        ("two_threads", by_clock["two"], two, "one_thread"),
        ("all_levels", best["tree"], tree_ratio, "leaf_only"),
    ):
        yield {"name": f"{name}/{part}", "value": value, "unit": "Mkeys/s", "ratio": ratio, "against": against}


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


def csvec(keys: Keys, depth: int, width: int) -> Callable[[], None]:
    """Prepare csvec, with every hash made beforehand: a gather of buckets and signs and a bincount for each row."""
    import torch  # noqa: PLC0415 (only the peers need it)

    names, index = np.unique(keys, return_inverse=True)
    rng = np.random.default_rng(0)
    buckets = torch.from_numpy(rng.integers(0, width, (depth, len(names))))
    signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), (depth, len(names))))
    x = torch.from_numpy(index.reshape(-1))

    def work() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            table = torch.zeros((depth, width))
            for r in range(depth):
                table[r] += torch.bincount(buckets[r][x], signs[r][x], minlength=width)
        finally:
            torch.set_num_threads(threads)

    return work


def datasketches(keys: Keys, depth: int, width: int) -> None:
    """Add to Apache DataSketches' count-min sketch, which takes one item a call."""
    from datasketches import count_min_sketch  # noqa: PLC0415 (only the peers need it)

    sketch = count_min_sketch(depth, width)
    for key in keys.tolist():
        sketch.update(key)


def machine_limit(depth: int, width: int) -> Run:
    """Prepare random read-modify-write of one row's counters, in cache, without hashing, signs or counts; a key costs
    one for each row. No sketch that updates every row for every key can pass it, only one that combines equal keys.

    A turn is many short runs, of which the best counts: the highest limit that the machine shows.
    """  # noqa: D205 (one sentence)
    columns = np.random.default_rng(0).integers(0, width, 2**20).astype(np.uint32)
    row = np.zeros(width, np.int32)
    return lambda: read_modify_write(row, columns), len(columns) / depth, 20


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

    best = rates({"add": (lambda: add(tables, other), size, 1), "copy": (copy, size, 1)}, SITES)
    yield {
        "name": "merge/100x50MB",
        "value": best["add"],
        "unit": "MB/s",
        "ratio": best["add"] / best["copy"],
        "against": "memory_copy",
    }
