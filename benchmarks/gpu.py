"""The GPU's updates and the fused way from levels to tables, beside the time in which it can copy the same bytes.

Called by `benchmarks.sketch`; without CuPy and a GPU there is nothing to measure, and no line.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.keys import image_keys
from cairn.errors import ConfigError
from cairn.hashing import row_seeds
from cairn.kernels import load

KEYS = 1_000_000_000
PIXELS, BANDS, COMPONENTS = 100_000_000, 35, 8
SHAPES = ((16, 200_000), (10, 20_000))


def run() -> Iterator[dict[str, Any]]:
    """Measure a thousand million keys into each shape, and 100 million pixels of 35 bands."""
    try:
        load("cupy")
    except ConfigError:
        return
    import cupy  # noqa: PLC0415 (only where there is a GPU)

    from cairn.kernels import cupy_tables as cupy_  # noqa: PLC0415

    some = cupy.asarray(image_keys(20_000_000))
    keys = cupy.tile(some, KEYS // len(some))
    dense = cupy.zeros(2**20, cupy.int32)
    floor = len(keys) * 8 / copy_rate(keys)
    for depth, width in SHAPES:
        sketches, seeds = cupy.zeros((1, depth, width), cupy.int32), row_seeds(bytes(32), depth)
        took = seconds(partial(cupy_.count_keys, keys, (0,), sketches, 16, dense, seeds))
        name = f"sketch_update/{depth}x{width}/gpu"
        yield {
            "name": name,
            "value": KEYS / took / 1e6,
            "unit": "Mkeys/s",
            "ratio": floor / took,
            "against": "gpu_copy",
        }
    del keys
    levels = cupy.random.default_rng(0).integers(0, 4096, (BANDS, PIXELS), dtype=cupy.uint16)
    projection = np.random.default_rng(0).integers(-(2**13), 2**13, (COMPONENTS, BANDS), np.int32)
    quantiser = (levels, projection, 0.0, np.full(COMPONENTS, -1.0), np.full(COMPONENTS, 10.5), 22)
    floor = levels.nbytes / copy_rate(levels)
    sketches, seeds = cupy.zeros((4, 16, 200_000), cupy.int32), row_seeds(bytes(32), 16)
    took = seconds(partial(cupy_.count_pixels, *quantiser, (0, 4, 8, 12), sketches, 16, dense, seeds))
    name = "sketch_update/16x200000/gpu_fused_35_bands"
    yield {
        "name": name,
        "value": PIXELS / took / 1e6,
        "unit": "Mpixels/s",
        "ratio": floor / took,
        "against": "gpu_copy",
    }


def copy_rate(array: Any) -> float:
    """Measure bytes read, per second, by a copy on the GPU."""
    other = array.copy()
    return float(array.nbytes / seconds(lambda: other.__setitem__(Ellipsis, array)))


def seconds(work: Callable[[], object]) -> float:
    """Return the GPU's seconds for the best of three runs, after one that compiles."""
    import cupy  # noqa: PLC0415 (only where there is a GPU)

    work()
    best = float("inf")
    for _ in range(3):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        best = min(best, cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return best
