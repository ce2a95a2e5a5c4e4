"""The sketch and the quantiser on an NVIDIA GPU: `cairn.cu`, compiled by NVRTC through CuPy.

Arrays may lie in the GPU's memory (cupy) or the host's (numpy, copied there and back); what comes back lies where the
keys or levels lay. Combining on the host, and what is bound by memory anyway, is left to the CPU's kernels.
`count_keys` and `count_pixels` are the GPU's own way: from keys or levels to all tables in one pass, equal keys of a
block combined in its shared memory.
"""

from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from cairn.errors import ConfigError
from cairn.kernels.pixels_numba import lookup, moments, profile, to_levels, unit_histogram
from cairn.kernels.sketch_numba import combine, drain, scatter

__all__ = [
    "cards",
    "combine",
    "count_keys",
    "count_pixels",
    "drain",
    "estimate",
    "keys",
    "lookup",
    "moments",
    "profile",
    "scatter",
    "to_levels",
    "unit_histogram",
    "update",
]

BLOCK = 256  # threads
BLOCKS_EACH = 8  # per multiprocessor: eight times 24 KB of slots fit its shared memory
SHARED_WEIGHTS = 6144  # int32; with the slots under the 48 KB that a block may have unasked

Array = Any  # numpy.ndarray or cupy.ndarray


def cards() -> int:
    """Count the GPUs that this process may use; CuPy raises its own error where there is no driver."""
    return int(cupy.cuda.runtime.getDeviceCount())


def update(table: Array, keys: Array, counts: Array, seeds: Array) -> None:
    """Add keys to a count sketch, in place; see the definition."""
    there = cupy.ascontiguousarray(cupy.asarray(table))
    depth, width = there.shape
    no_shift = cupy.zeros(1, cupy.int32)
    arguments = (there, np.int32(depth), np.int64(width), _words(seeds), no_shift, _words(keys), _counts(counts))
    _launch(f"sketch_update_{_name(there)}", len(keys), (*arguments, np.int64(len(keys))))
    if isinstance(table, np.ndarray):
        table[...] = there.get()
    elif there is not table:
        table[...] = there


def estimate(table: Array, keys: Array, seeds: Array) -> Array:
    """Estimate each key's count, the median over rows; see the definition."""
    there = cupy.ascontiguousarray(cupy.asarray(table))
    depth, width = there.shape
    found = cupy.empty(len(keys), cupy.int64)
    arguments = (there, np.int32(depth), np.int64(width), _words(seeds), _words(keys), np.int64(len(keys)), found)
    _launch(f"sketch_estimate_{_name(there)}", len(keys), arguments)
    return found.get() if isinstance(keys, np.ndarray) else found


def keys(
    levels: Array,
    projection: npt.NDArray[np.int32],
    min_norm: float,
    low: npt.NDArray[np.float64],
    gain: npt.NDArray[np.float64],
    radix: int,
) -> Array:
    """Quantise pixels to keys, BACKGROUND where not foreground; see the definition."""
    n = levels.shape[1]
    found = cupy.empty(n, cupy.uint64)
    quantiser = _quantiser(levels, projection, min_norm, low, gain, radix)
    _launch("pixel_keys", n, (*quantiser, found), projection.shape)
    return found.get() if isinstance(levels, np.ndarray) else found


def count_keys(
    keys: Array, shifts: tuple[int, ...], sketches: Array, dense_shift: int, dense: Array, seeds: Array
) -> None:
    """Count keys into every level of a counts plan, in place, in one pass.

    keys         uint64[n]; BACKGROUND is left out; n at most 2^31 a call where the tables are int32
    shifts       bits to cut off a key for each sketch
    sketches     cupy int32 or int64[len(shifts), depth, width]
    dense_shift  bits to cut off for the dense table
    dense        cupy, as sketches, [2^dense_bits]
    """
    n = len(keys)
    tables = _tables(shifts, sketches, dense_shift, dense, seeds)
    _launch(f"count_keys_{_name(sketches)}", n, (*tables, _words(keys), np.int64(n)))


def count_pixels(
    levels: Array,
    projection: npt.NDArray[np.int32],
    min_norm: float,
    low: npt.NDArray[np.float64],
    gain: npt.NDArray[np.float64],
    radix: int,
    shifts: tuple[int, ...],
    sketches: Array,
    dense_shift: int,
    dense: Array,
    seeds: Array,
) -> None:
    """Quantise pixels and count their keys in one pass; `keys` and `count_keys` together, no key is written down."""
    quantiser = _quantiser(levels, projection, min_norm, low, gain, radix)
    tables = _tables(shifts, sketches, dense_shift, dense, seeds)
    _launch(f"count_pixels_{_name(sketches)}", levels.shape[1], (*tables, *quantiser), projection.shape)


@cache
def _module(components: int, bands: int) -> Any:
    if components * bands > SHARED_WEIGHTS:
        raise ConfigError(
            f"{components} components of {bands} bands are {components * bands} weights, over the GPU's "
            f"{SHARED_WEIGHTS}; use the backend 'numba'"
        )
    source = Path(__file__).with_name("cairn.cu").read_text(encoding="utf-8")
    options = ("--std=c++17", "--fmad=false", f"-DCOMPONENTS={components}", f"-DBANDS={bands}")
    return cupy.RawModule(code=source, options=options)


def _launch(name: str, n: int, arguments: tuple[Any, ...], shape: tuple[int, ...] = (1, 1)) -> None:
    """Start a kernel of the module for a quantiser of shape (components, bands); the sketch's own need none."""
    if not n:
        return
    multiprocessors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    grid = min(-(-n // BLOCK), BLOCKS_EACH * multiprocessors)
    _module(*shape).get_function(name)((grid,), (BLOCK,), arguments)


def _name(table: Array) -> str:
    return str(table.dtype)


def _words(values: Array) -> Any:
    return cupy.ascontiguousarray(cupy.asarray(values, cupy.uint64))


def _counts(values: Array) -> Any:
    return cupy.ascontiguousarray(cupy.asarray(values, cupy.int64))


def _quantiser(
    levels: Array, projection: Array, min_norm: float, low: Array, gain: Array, radix: int
) -> tuple[Any, ...]:
    """List the kernels' arguments for a quantiser."""
    planar = cupy.ascontiguousarray(cupy.asarray(levels, cupy.uint16))
    weights = cupy.ascontiguousarray(cupy.asarray(projection, cupy.int32))
    ranges = (cupy.asarray(low, cupy.float64), np.float64(min_norm), cupy.asarray(gain, cupy.float64))
    return planar, np.int64(planar.shape[1]), weights, ranges[1], ranges[0], ranges[2], np.int32(radix)


def _tables(shifts: tuple[int, ...], sketches: Array, dense_shift: int, dense: Array, seeds: Array) -> tuple[Any, ...]:
    """List the kernels' arguments for the tables of a counts plan."""
    levels, depth, width = sketches.shape
    cuts = cupy.asarray(shifts, cupy.int32)
    sizes = _words(seeds), np.int32(depth), np.int64(width)
    return sketches, cuts, np.int32(levels), dense, np.int32(dense_shift), *sizes
