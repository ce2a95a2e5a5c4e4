"""What the card can do at most, measured: copying, over the bus too, and adding to random counters. Needs CuPy."""

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

SCALE = float(os.environ.get("CAIRN_GPU_SCALE", "1"))  # below 1 to try the script out; such figures mean nothing
TURNS = 3 if SCALE >= 1 else 1
ROW_THREADS = 1024


def sized(n: float, least: int = 1000) -> int:
    """Scale a size."""
    return max(least, int(n * SCALE))


def seconds(work: Callable[[], object], turns: int = TURNS) -> float:
    """Return the card's seconds for the median of some turns, after one that compiles and warms up."""
    work()
    taken = []
    for _ in range(turns):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        taken.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return float(np.median(taken))


def clock_seconds(work: Callable[[], object], turns: int = TURNS) -> float:
    """Return the clock's seconds for the median of some turns, after one that compiles and warms up; all work done."""
    taken = []
    for _ in range(turns + 1):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        work()
        cupy.cuda.Device().synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


@cache
def copy_rate() -> float:
    """Measure bytes a second of a copy from the card to the card, those read and those written."""
    here = cupy.zeros(sized(2**31), cupy.uint8)
    here[:] = 7
    there = cupy.empty(here.shape, cupy.uint8)
    return float(2 * here.nbytes) / seconds(lambda: there.__setitem__(Ellipsis, here), 10)


@cache
def bus_rate() -> float:
    """Measure bytes a second from page-locked memory of the host to the card."""
    n = sized(2**30)
    here = np.frombuffer(cupy.cuda.alloc_pinned_memory(n), np.uint8, n)
    here[:] = 7
    there = cupy.empty(n, cupy.uint8)
    return n / clock_seconds(lambda: there.set(here), 10)


@cache
def additions_rate(where: str, counters: int) -> float:
    """Measure random additions a second to so many int32 counters, `where` is l2 or shared (then each block's own)."""
    card = cupy.cuda.Device()
    blocks = card.attributes["MultiProcessorCount"] * (1 if where == "shared" else 2)
    table, each = cupy.zeros(counters, cupy.uint32), sized(10_000, 4)
    source = Path(__file__).with_name("gpu_floors.cu").read_text(encoding="utf-8")
    kernel = cupy.RawModule(code=source, options=("--std=c++17",)).get_function(f"random_additions_{where}")
    shared = 4 * counters if where == "shared" else 0
    if shared:
        kernel.max_dynamic_shared_size_bytes = shared
    arguments = (table, np.uint32(counters), np.int32(each))
    taken = seconds(lambda: kernel((blocks,), (ROW_THREADS,), arguments, shared_mem=shared))
    return float(blocks * ROW_THREADS * each) / taken


def about() -> dict[str, Any]:
    """Name the card and the software."""
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    free, total = cupy.cuda.runtime.memGetInfo()
    return {
        "name": "gpu/about",
        "card": name,
        "cupy": cupy.__version__,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "memory_gb": round(total / 1e9, 1),
        "free_gb": round(free / 1e9, 1),
        "scale": SCALE,
    }
