"""Tables that stay in a GPU's memory: keys and pixels are counted into all of a counts plan's at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, final

import cupy
import numpy as np
import numpy.typing as npt

from cairn.kernels.cupy_ import (
    ROW_THREADS,
    Array,
    Keys,
    attribute,
    failures_said,
    fitting,
    launch,
    quantiser,
    table_arguments,
    words,
)
from cairn.kernels.pixels_numpy import Levels, Projection, Vector

SLOT = 12  # bytes: a key and a count
SPARE = 1024  # bytes of a multiprocessor's shared memory that a block may not have
SLOTS_MOST = 14  # bits
FAR_MOST = 22  # bits
INT32_MAX = 2**31 - 1
PAYS = 4  # times that adding directly must cost what the private rows' own additions cost
LANE_PART = 2**18  # pixels copied while as many are counted: 18 MB of 35 bands


def count_keys(
    keys: Array,
    shifts: tuple[int, ...],
    sketches: Array,
    dense_shift: int,
    dense: Array,
    seeds: Array,
    *,
    private: bool = True,
) -> None:
    """Count keys into every level of a counts plan, in place, in the GPU's memory.

    keys         uint64[n]; BACKGROUND is left out; n at most 2^31 a call
    shifts       bits to cut off a key for each sketch
    sketches     cupy int32 or int64[len(shifts), depth, width]
    dense_shift  bits to cut off for the dense table
    dense        cupy, as sketches, [2^dense_bits]
    private      rows may be counted in the blocks' own memory, where that pays
    """
    there, tables = words(keys), table_arguments(shifts, sketches, dense_shift, dense, seeds)
    rows, blocks = private_rows(sketches.shape, len(keys)) if private else (0, 0)
    if rows:
        shared = 4 * rows * sketches.shape[2]
        arguments = (*tables, np.int32(rows), there, np.int64(len(keys)))
        launch(f"count_rows_{sketches.dtype}", arguments, threads=ROW_THREADS, blocks=blocks, shared=shared)
        _count_keys(there, (*tables[:2], np.int32(0), *tables[3:]), None)  # no sketch, only the dense table is left
        return
    far = new_slots()
    _count_keys(there, tables, far)
    flush(tables, far)


def count_pixels(
    levels: Array,
    projection: Projection,
    min_norm: float,
    low: Vector,
    gain: Vector,
    radix: int,
    shifts: tuple[int, ...],
    sketches: Array,
    dense_shift: int,
    dense: Array,
    seeds: Array,
) -> None:
    """Quantise pixels and count their keys in one pass; `keys` and `count_keys` together, no key is written down."""
    tables = table_arguments(shifts, sketches, dense_shift, dense, seeds)
    there, far = cupy.ascontiguousarray(cupy.asarray(levels, cupy.uint16)), new_slots()
    _count_pixels(there, projection.shape, tables, quantiser(projection, min_norm, low, gain, radix), far)
    flush(tables, far)


def slot_bits(weights: int = 0) -> int:
    """Choose the number of slots, 2^bits: as many as let two blocks share a multiprocessor's memory.

    weights  int32 that a block keeps there too, each band's in fours
    """
    room = attribute("MaxSharedMemoryPerBlockOptin") // 2 - SPARE - 4 * weights
    return min(SLOTS_MOST, max(room // SLOT, 1).bit_length() - 1)


def new_slots() -> Any:
    """Make slots for all blocks, empty, in half of the L2 cache; the other half is the tables'."""
    bits = min(FAR_MOST, (attribute("L2CacheSize") // 2 // SLOT).bit_length() - 1)
    slots = cupy.empty(SLOT << bits, cupy.uint8)
    _empty(slots)
    return slots


def flush(tables: tuple[Any, ...], far: Array) -> None:
    """Add what the slots hold to the tables, given as the kernels' arguments, and empty them."""
    launch(f"flush_slots_{tables[0].dtype}", (*tables, far, np.int32(_bits(far))))


def private_rows(shape: tuple[int, int, int], n: int) -> tuple[int, int]:
    """Choose how many rows a block counts in its shared memory, 0 for none, and how many blocks there are.

    A row of 20,000 int32 is 80 KB: two fit the 227 KB of an H100's multiprocessor. Keys are then read again for every
    group of rows (2.7 ms a thousand million at 3 TB/s), and every block adds its rows to the table once; without, every
    key that is not combined costs depth additions in the L2 cache (about 6 ms a thousand million each, to be measured).
    So it pays where a row fits and there are many more keys than counters.
    """
    levels, depth, width = shape
    rows = min(depth, (attribute("MaxSharedMemoryPerBlockOptin") - SPARE) // (4 * width))
    if not rows or not levels:
        return 0, 0
    groups = levels * -(-depth // rows)
    shares = max(1, attribute("MultiProcessorCount") // groups)
    if n * depth * levels < PAYS * shares * levels * depth * width:
        return 0, 0
    return rows, shares * groups


class _Lane:
    """A stream with buffers of its own, page-locked on the host and as large on the GPU."""

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream()
        self._here = np.empty(0, np.uint16)
        self._there = cupy.empty(0, cupy.uint16)

    @contextmanager
    def filled(self, levels: Levels) -> Iterator[Any]:
        """Copy levels to the GPU while it works on; inside the block, what is launched comes after the copy."""
        n = levels.size
        self._stream.synchronize()  # what is in the buffers was counted
        if n > len(self._here):
            self._there = cupy.empty(n, cupy.uint16)
            self._here = np.frombuffer(cupy.cuda.alloc_pinned_memory(2 * n), np.uint16, n)
        np.copyto(self._here[:n].reshape(levels.shape), levels)
        with self._stream:
            there = self._there[:n]
            there.set(self._here[:n], stream=self._stream)
            yield there.reshape(levels.shape)


@final
class DeviceTables:
    """A counts plan's tables in a GPU's memory, of what was counted since they were last taken or cleared.

    Counters are int32, as no counter can pass the number of keys; before that could pass 2^31 - 1 they become int64.
    Copies and counting overlap: each worker has two streams, each with page-locked memory of its own, and fills one
    while the other is counted. Workers may count at once; the other methods may not run beside that.
    All raise DeviceError; then nothing of what the tables hold is to be relied on.

    shifts       bits to cut off a key for each sketch
    sketches     shape (depth, width)
    dense        length, and beside it dense_shift
    of_pixels    projection, min_norm, low, gain, radix
    """

    def __init__(
        self,
        shifts: tuple[int, ...],
        sketches: tuple[int, int],
        dense_shift: int,
        dense: int,
        seeds: npt.NDArray[np.uint64],
        of_pixels: tuple[Projection, float, Vector, Vector, int],
        workers: int,
    ) -> None:
        with failures_said():
            self._shape: tuple[int, ...] = of_pixels[0].shape
            self._quantiser = quantiser(*of_pixels)
            self._levels = shifts, dense_shift, words(seeds)
            self._tables = cupy.zeros((len(shifts), *sketches), cupy.int32), cupy.zeros(dense, cupy.int32)
            self._far = new_slots()
            self._lanes = [[_Lane(), _Lane()] for _ in range(workers)]
            self._parts = [LANE_PART] * workers
        self._lock = Lock()
        self._weight = 0  # keys since the slots were empty, and the tables zero or int64

    def count_pixels(self, levels: Levels, worker: int = 0) -> None:
        """Count pixels uint16[bands, n] of the host's memory."""
        n, lanes = levels.shape[1], self._lanes[worker]

        def work(start: int, stop: int) -> None:
            lane = lanes[0]
            with lane.filled(levels[:, start:stop]) as there, self._lock:
                _count_pixels(there, self._shape, self._room(stop - start), self._quantiser, self._far)
            lanes.reverse()

        with failures_said():
            self._parts[worker] = fitting(n, work, self._parts[worker])

    def count_keys(self, keys: Keys) -> None:
        """Count keys uint64[n] of the host's memory; BACKGROUND is left out."""

        def work(start: int, stop: int) -> None:
            there = words(keys[start:stop])
            with self._lock:
                _count_keys(there, self._room(stop - start), self._far)

        with failures_said():
            fitting(len(keys), work)

    def take(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return what was counted, int32 or int64 sketches[levels, depth, width] and dense, and begin anew."""
        with failures_said():
            cupy.cuda.Device().synchronize()
            flush(self._arguments(), self._far)
            taken = self._tables[0].get(), self._tables[1].get()
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what was counted."""
        with failures_said():
            cupy.cuda.Device().synchronize()
            if self._tables[0].dtype == cupy.int32:
                for table in self._tables:
                    table.fill(0)
            else:
                self._tables = tuple(cupy.zeros(table.shape, cupy.int32) for table in self._tables)
            _empty(self._far)
        self._weight = 0

    def _room(self, n: int) -> tuple[Any, ...]:
        """Make sure that n more keys cannot overflow the tables or slots, and list the kernels' arguments for them."""
        if self._weight + n > INT32_MAX:
            cupy.cuda.Device().synchronize()
            flush(self._arguments(), self._far)
            if self._tables[0].dtype == cupy.int32:
                self._tables = tuple(table.astype(cupy.int64) for table in self._tables)
            cupy.cuda.Device().synchronize()  # before another worker's stream may count into them
            self._weight = 0
        self._weight += n
        return self._arguments()

    def _arguments(self) -> tuple[Any, ...]:
        shifts, dense_shift, seeds = self._levels
        arguments: tuple[Any, ...] = table_arguments(shifts, self._tables[0], dense_shift, self._tables[1], seeds)
        return arguments


def _count_keys(there: Array, tables: tuple[Any, ...], far: Array | None) -> None:
    bits, slots = _slots(slot_bits(), far)
    if there.size:
        arguments = (*tables, *slots, there, np.int64(there.size))
        launch(f"count_keys_{tables[0].dtype}", arguments, shared=SLOT << bits)


def _count_pixels(
    there: Array, shape: tuple[int, ...], tables: tuple[Any, ...], of_pixels: tuple[Any, ...], far: Array
) -> None:
    bits, slots = _slots(slot_bits(-(-shape[0] // 4) * 4 * shape[1]), far)
    if there.size:
        arguments = (*tables, *slots, there, np.int64(there.shape[1]), *of_pixels)
        launch(f"count_pixels_{tables[0].dtype}", arguments, shape, shared=SLOT << bits)


def _slots(bits: int, far: Array | None) -> tuple[int, tuple[Any, ...]]:
    """List the kernels' arguments for slots: 2^bits of a block's own, and those of all blocks, which may be None."""
    if far is None:
        return bits, (np.int32(bits), np.uint64(0), np.int32(1))
    return bits, (np.int32(bits), far, np.int32(_bits(far)))


def _empty(far: Array) -> None:
    far[: 8 << _bits(far)] = 0xFF
    far[8 << _bits(far) :] = 0


def _bits(far: Array) -> int:
    return int(far.size // SLOT).bit_length() - 1
