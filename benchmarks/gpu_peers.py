"""Others' ways to count a thousand million keys on the same card. Each is prepared and then called again and again."""

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from cairn.hashing import MIX_MULTIPLIERS, MIX_SHIFTS, RowSeeds

Array = Any  # cupy.ndarray


def bincount_rows(keys: Array, seeds: RowSeeds, width: int) -> Callable[[], Array]:
    """Prepare our own sketch in array operations: hashing all keys and a weighted bincount, row by row.

    The result is float64[depth, width] and equals the sketch: whole numbers far under 2^53.
    """
    there = cupy.asarray(seeds)

    def work() -> Array:
        mixed = keys ^ (keys >> np.uint64(MIX_SHIFTS[0]))
        mixed = mixed * np.uint64(MIX_MULTIPLIERS[0])
        mixed = mixed ^ (mixed >> np.uint64(MIX_SHIFTS[1]))
        mixed = mixed * np.uint64(MIX_MULTIPLIERS[1])
        mixed = mixed ^ (mixed >> np.uint64(MIX_SHIFTS[2]))
        high, low = mixed >> np.uint64(32), mixed & np.uint64(0xFFFFFFFF)
        rows = []
        for row in range(len(seeds)):
            h = (there[row, 0] + high) * (there[row, 1] + low) + there[row, 2]
            t = ((h >> np.uint64(32)) * np.uint64(2 * width)) >> np.uint64(32)
            signs = 1.0 - 2.0 * (t & np.uint64(1)).astype(cupy.float64)
            rows.append(cupy.bincount((t >> np.uint64(1)).astype(cupy.int64), weights=signs, minlength=width))
        return cupy.stack(rows)

    return work


def unique(keys: Array) -> Callable[[], Any]:
    """Prepare exact counting: sort, and the lengths of the runs."""
    return lambda: cupy.unique(keys, return_counts=True)


def csvec(keys: Array, depth: int, width: int, device: str) -> Callable[[], Any]:
    """Prepare csvec with torch, every hash made beforehand: per row a gather of buckets and signs, and a bincount."""
    import torch  # noqa: PLC0415 (only this peer needs it)

    names, index = cupy.unique(keys, return_inverse=True)
    rng = np.random.default_rng(0)
    buckets = torch.from_numpy(rng.integers(0, width, (depth, len(names)))).to(device)
    signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), (depth, len(names)))).to(device)
    x = torch.from_numpy(index.reshape(-1).get()).to(device)

    def work() -> Any:
        table = torch.zeros((depth, width), device=device)
        for r in range(depth):
            table[r] += torch.bincount(buckets[r][x], signs[r][x], minlength=width)
        return table

    return work
