"""Start every kernel once, at a size that fills a card, for a profiler to look at: `sh benchmarks/gpu.sh profile`."""

import cupy
import numpy as np

from benchmarks.gpu_data import keys_on_card, tables_on_card, tissue
from benchmarks.gpu_figures import SHAPES, the_gpu
from benchmarks.gpu_floors import sized
from cairn.kernels import cupy_tables
from cairn.pixels import INTENSITY_BINS, UNIT_BINS

KEYS, PIXELS = 100_000_000, 10_000_000


def main() -> None:
    """Print each kernel's name before it starts; ncu prints what it found after it."""
    for stream in ("image", "uniform"):
        some = keys_on_card(stream, sized(KEYS))
        for depth, width in SHAPES:
            sketches, dense, seeds = tables_on_card(depth, width)
            print(f"## count_keys {depth} x {width}, {stream} keys", flush=True)
            cupy_tables.count_keys(some, (0,), sketches, 16, dense, seeds)
            cupy.cuda.Device().synchronize()
    tiles, stage = tissue()
    quantiser, n = stage.quantiser, sized(PIXELS)
    of_pixels = (quantiser.projection, quantiser.min_norm, quantiser.low, quantiser.gain, quantiser.radix)
    levels = np.tile(tiles, (1, -(-n // tiles.shape[1])))[:, :n].copy()
    sketches, dense, seeds = tables_on_card(16, 200_000, 4)
    print("## count_pixels, four levels", flush=True)
    cupy_tables.count_pixels(cupy.asarray(levels), *of_pixels, (0, 4, 8, 12), sketches, 16, dense, seeds)
    print("## moments, unit_histogram, profile, estimate", flush=True)
    gpu = the_gpu()
    gpu.moments(levels)
    gpu.unit_histogram(levels, quantiser.projection, np.zeros((8, INTENSITY_BINS, UNIT_BINS), np.int64))
    clusters = (levels[0] % 11).astype(np.uint8)
    gpu.profile(levels, clusters, np.zeros(10, np.int64), np.zeros((10, len(levels)), np.int64))
    gpu.estimate(gpu.hold(sketches[0].get()), quantiser.keys(levels, gpu), seeds)


if __name__ == "__main__":
    main()
