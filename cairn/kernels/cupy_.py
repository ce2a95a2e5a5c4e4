"""The sketch and the quantiser on an NVIDIA GPU: `cairn.cu`, compiled by NVRTC through CuPy.

Arrays come from the host's memory and go back there, but for a sketch that `hold` has put on the GPU. Pixels and keys
go over in parts, so that no tile is too large for the GPU's memory; a part for which there is no room is halved. A
function that fails has changed nothing: what it changes it changes last, on the host. All raise DeviceError.
Combining on the host, and what is bound by the host's memory anyway, is left to the CPU's kernels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cupy
import numpy as np
import numpy.typing as npt

from cairn.errors import DeviceError
from cairn.kernels.pixels_numba import to_levels
from cairn.kernels.pixels_numpy import LEVEL_MAX, Counts, Levels, Projection, Vector
from cairn.kernels.sketch_numba import combine, drain, scatter

__all__ = [
    "ROW_THREADS",
    "attribute",
    "cards",
    "combine",
    "drain",
    "estimate",
    "failures_said",
    "fitting",
    "hold",
    "keys",
    "launch",
    "lookup",
    "moments",
    "profile",
    "quantiser",
    "scatter",
    "table_arguments",
    "to_levels",
    "unit_histogram",
    "update",
    "words",
]

OLDEST = 70  # compute capability; NVRTC 13 needs 75
THREADS = 512  # of a block; THREADS, ROW_THREADS and MOMENT_THREADS in cairn.cu
ROW_THREADS = 1024
MOMENT_THREADS = 256
BLOCKS_EACH = 2  # per multiprocessor: of 512 threads with 64 registers each, and half the shared memory
PART = 2**22  # pixels or keys that go over at once: 300 MB of 35 bands
LEAST = 2**12  # where that many find no room, nothing does

Array = Any  # numpy.ndarray or cupy.ndarray
Keys = npt.NDArray[np.uint64]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def cards() -> int:
    """Count the GPUs that this process may use and that are new enough; CuPy raises its own error without a driver."""
    every = range(int(cupy.cuda.runtime.getDeviceCount()))
    return sum(int(cupy.cuda.Device(card).compute_capability) >= OLDEST for card in every)


@contextmanager
def failures_said() -> Iterator[None]:
    """Turn CuPy's errors inside the block (the driver's, NVRTC's, memory's) into a DeviceError."""
    try:
        yield
    except (RuntimeError, MemoryError, cupy.cuda.compiler.CompileException) as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise DeviceError(f"the GPU failed ({type(error).__name__}: {first})") from error


def _clear(function: Callable[_P, _T]) -> Callable[_P, _T]:
    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with failures_said():
            return function(*args, **kwargs)

    return called


def hold(table: Array) -> Array:
    """Put a sketch on the GPU, for many calls of `estimate`."""
    with failures_said():
        return cupy.ascontiguousarray(cupy.asarray(table))


@_clear
def update(table: Array, keys: Keys, counts: Counts, seeds: Keys) -> None:
    """Add keys to a count sketch, in place; see the definition."""
    there = cupy.array(table)
    tables = table_arguments((0,), there[None], 0, None, seeds)

    def work(start: int, stop: int) -> None:
        times = cupy.ascontiguousarray(cupy.asarray(counts[start:stop], cupy.int64))
        arguments = (*tables, words(keys[start:stop]), times, np.int64(stop - start))
        launch(f"sketch_update_{there.dtype}", arguments, blocks=_blocks(stop - start))

    fitting(len(keys), work)
    table[...] = there.get()


@_clear
def estimate(table: Array, keys: Keys, seeds: Keys) -> Counts:
    """Estimate each key's count, the median over rows; see the definition. The table may be on the GPU."""
    there, found = cupy.ascontiguousarray(cupy.asarray(table)), np.empty(len(keys), np.int64)
    depth, width = there.shape
    sketch = (there, np.int32(depth), np.int64(width), words(seeds))

    def work(start: int, stop: int) -> None:
        part = cupy.empty(stop - start, cupy.int64)
        arguments = (*sketch, words(keys[start:stop]), np.int64(stop - start), part)
        launch(f"sketch_estimate_{there.dtype}", arguments, blocks=_blocks(stop - start))
        found[start:stop] = part.get()

    fitting(len(keys), work)
    return found


@_clear
def keys(levels: Levels, projection: Projection, min_norm: float, low: Vector, gain: Vector, radix: int) -> Keys:
    """Quantise pixels to keys, BACKGROUND where not foreground; see the definition."""
    found = np.empty(levels.shape[1], np.uint64)
    shared = quantiser(projection, min_norm, low, gain, radix)

    def work(start: int, stop: int) -> None:
        part = cupy.empty(stop - start, cupy.uint64)
        launch("pixel_keys", (*_pixels(levels, start, stop), *shared, part), projection.shape)
        found[start:stop] = part.get()

    fitting(levels.shape[1], work)
    return found


@_clear
def unit_histogram(levels: Levels, projection: Projection, into: Counts) -> None:
    """Count each component of the unit vector by the pixel's intensity; see the definition."""
    counted = cupy.zeros(into.shape, cupy.uint32)
    weights = _weights(projection)

    def work(start: int, stop: int) -> None:
        launch("unit_histogram", (*_pixels(levels, start, stop), *weights, counted), projection.shape)

    fitting(levels.shape[1], work)
    into += counted.get()


@_clear
def moments(levels: Levels) -> tuple[Counts, Counts]:
    """Sum a tile's levels and their products, exactly: a row of ones goes with the bands."""
    bands, n = levels.shape
    total = cupy.zeros((bands + 1, bands + 1), cupy.uint64)

    def work(start: int, stop: int) -> None:
        launch("moments", (*_pixels(levels, start, stop), total), (1, bands), threads=MOMENT_THREADS, each=8)

    fitting(n, work)
    upper = total.get().astype(np.int64)
    second = upper[:bands, :bands]
    return upper[:bands, bands].copy(), np.triu(second) + np.triu(second, 1).T


@_clear
def profile(levels: Levels, clusters: npt.NDArray[np.uint8], counts: Counts, sums: Counts) -> None:
    """Count pixels and sum levels by cluster; see the definition."""
    bands, n = levels.shape
    total = cupy.zeros((256, bands + 1), cupy.uint64)

    def work(start: int, stop: int) -> None:
        part = cupy.ascontiguousarray(cupy.asarray(clusters[start:stop], cupy.uint8))
        launch("profile", (*_pixels(levels, start, stop), part, total), blocks=_blocks(stop - start), rows=bands + 1)

    fitting(n, work)
    found = total.get().astype(np.int64)[1 : len(counts) + 1]
    counts += found[:, bands]
    sums += found[:, :bands]


@_clear
def lookup(keys: Keys, listed: Keys) -> Counts:
    """Find keys in a rising list, -1 where they are not in it; see the definition."""
    found, there = np.empty(len(keys), np.int64), words(listed)

    def work(start: int, stop: int) -> None:
        part = cupy.empty(stop - start, cupy.int64)
        arguments = (words(keys[start:stop]), np.int64(stop - start), there, np.int64(len(listed)), part)
        launch("lookup", arguments, blocks=_blocks(stop - start))
        found[start:stop] = part.get()

    fitting(len(keys), work)
    return found


def fitting(n: int, work: Callable[[int, int], None], part: int = PART) -> int:
    """Call work(start, stop) over all of 0..n, in parts for which the GPU has room; returns the part that fitted.

    The work may find that it has no memory only before it has counted anything.
    """
    start = 0
    while start < n:
        stop = min(n, start + part)
        try:
            work(start, stop)
        except cupy.cuda.memory.OutOfMemoryError:
            if part <= LEAST:
                raise
            part //= 2
            cupy.get_default_memory_pool().free_all_blocks()
        else:
            start = stop
    return part


def launch(
    name: str,
    arguments: tuple[Any, ...],
    shape: tuple[int, ...] = (1, 1),
    *,
    threads: int = THREADS,
    each: int = BLOCKS_EACH,
    blocks: int | None = None,
    rows: int = 1,
    shared: int = 0,
) -> None:
    """Start a kernel.

    shape   the quantiser's (components, bands), where the kernel has one
    each    blocks per multiprocessor, unless `blocks` says how many in all
    rows    the grid's second axis
    shared  bytes of dynamic shared memory
    """
    kernel = _kernel(name, cupy.cuda.runtime.getDevice(), *shape)
    blocks = blocks or each * attribute("MultiProcessorCount")
    kernel((blocks, rows), (threads,), arguments, shared_mem=shared)


def attribute(name: str) -> int:
    """Ask the card for one of its limits."""
    return int(cupy.cuda.Device().attributes[name])


def words(values: Array) -> Any:
    """Put uint64 values on the GPU, aligned to the 16 bytes in which they are read."""
    there = cupy.ascontiguousarray(cupy.asarray(values, cupy.uint64))
    return there if there.data.ptr % 16 == 0 else there.copy()


def table_arguments(shifts: tuple[int, ...], sketches: Array, dense_shift: int, dense: Array, seeds: Array) -> Any:
    """List the kernels' arguments for tables: sketches [levels, depth, width] and, unless None, the dense one."""
    levels, depth, width = sketches.shape
    cuts = cupy.asarray(np.array(shifts, np.int32))
    return (
        *(sketches, cuts, np.int32(levels), np.uint64(0) if dense is None else dense, np.int32(dense_shift)),
        *(words(seeds), np.int32(depth), np.int64(width)),
    )


def quantiser(projection: Projection, min_norm: float, low: Vector, gain: Vector, radix: int) -> tuple[Any, ...]:
    """List the kernels' arguments for a quantiser, behind those for the pixels."""
    ends, gains = (cupy.asarray(np.ascontiguousarray(part, np.float64)) for part in (low, gain))
    return (*_weights(projection), np.float64(min_norm), ends, gains, np.int32(radix))


@cache
def _kernel(name: str, card: int, components: int, bands: int) -> Any:
    """Compile a kernel for a card, the current one."""
    capability = cupy.cuda.Device(card).compute_capability
    if int(capability) < OLDEST:
        raise DeviceError(
            f"the GPU has compute capability {capability[:-1]}.{capability[-1]}; expected {OLDEST / 10} or more"
        )
    source = Path(__file__).with_name("cairn.cu").read_text(encoding="utf-8")
    options = ("--std=c++17", "--fmad=false", f"-DCOMPONENTS={components}", f"-DBANDS={bands}")
    kernel = cupy.RawModule(code=source, options=options).get_function(name)
    kernel.max_dynamic_shared_size_bytes = attribute("MaxSharedMemoryPerBlockOptin") - kernel.shared_size_bytes
    return kernel


def _weights(projection: Projection) -> tuple[Any, ...]:
    """Put a projection on the GPU; beside it the brightest level for which no sum can leave int32."""
    heaviest = max(1, int(np.abs(projection.astype(np.int64)).sum(axis=1).max()))
    weights = cupy.asarray(np.ascontiguousarray(projection, np.int32))
    return weights, np.uint32(min(LEVEL_MAX, (2**31 - 1) // heaviest))


def _pixels(levels: Levels, start: int, stop: int) -> tuple[Any, ...]:
    part = cupy.asarray(np.ascontiguousarray(levels[:, start:stop], np.uint16))
    return part, np.int64(stop - start)


def _blocks(n: int) -> int:
    """Give a kernel that strides over n as many blocks as there is work for, and the card threads."""
    return min(-(-n // THREADS), 4 * attribute("MultiProcessorCount"))
