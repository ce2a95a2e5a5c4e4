"""The sketch on the CPU: the definition of `cairn.kernels.sketch_numpy`, bit for bit, at the speed of memory.

Three things make it fast: equal keys meet in a front cache before they reach a table, probed without a branch and
fetched ahead; hashes are made in blocks that the compiler turns into vector code; and a row is updated for a whole
batch before the next, so that it stays in cache.
Nothing holds the interpreter's lock, so two threads with tables of their own run at once.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]  # comes with numba
from numba import njit, types
from numba.extending import intrinsic

from cairn.hashing import MIX_MULTIPLIERS, MIX_SHIFTS, Keys, RowSeeds
from cairn.kernels.sketch_numpy import Counts, Table

AHEAD = np.uint64(64)  # keys whose cache words are fetched together before any is changed
LANES = np.uint64(4)  # equal neighbours are added this far apart, so that none waits for the other's word
BLOCK = 2048  # keys whose columns are found at once; their scratch stays in the L1 or L2 cache
SCRAMBLE = np.uint64(0x9E3779B97F4A7C15)  # 2^64/φ, odd (Fibonacci hashing, Knuth 6.4)
UNSCRAMBLE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))

_U0, _U1 = np.uint64(0), np.uint64(1)
_U32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_S1, _S2, _S3 = (np.uint64(shift) for shift in MIX_SHIFTS)
_M1, _M2 = (np.uint64(multiplier) for multiplier in MIX_MULTIPLIERS)

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")
_inline: Any = njit(nogil=True, cache=True, error_model="numpy", inline="always")


def update(table: Table, keys: Keys, counts: Counts, seeds: RowSeeds) -> None:
    """Add keys to a count sketch, in place; see the definition."""
    _update(table, keys, counts, seeds)


def scatter(table: Table, keys: Keys, counts: Counts) -> None:
    """Add counts to a dense table at its keys, in place; see the definition."""
    if not _scatter(table, keys, counts):
        raise IndexError(f"a key is beyond the dense table's {len(table)} counters; count keys of the plan's key space")


def estimate(table: Table, keys: Keys, seeds: RowSeeds) -> Counts:
    """Estimate each key's count, the median over rows; see the definition."""
    found = np.empty(len(keys), np.int64)
    _estimate(table, keys, seeds, _comparators(len(table)), found)
    return found


def combine(
    keys: Keys, counts: Counts | None, shift: int, cache: Keys, skip: int, out_keys: Keys, out_counts: Counts
) -> tuple[int, int]:
    """Add up equal keys in a direct-mapped cache; see the definition.

    One word holds a key and its count: scrambling is a bijection of 64-bit words, so its low bits, the slot, need not
    be stored, and their place holds the count. A full count, like a key that meets another in its slot, is emitted.
    """
    if counts is None:
        taken, emitted = _combine(keys, shift, cache, np.uint64(skip), out_keys, out_counts)
    else:
        taken, emitted = _combine_pairs(keys, counts, shift, cache, np.uint64(skip), out_keys, out_counts)
    return int(taken), int(emitted)


def drain(cache: Keys, out_keys: Keys, out_counts: Counts) -> int:
    """Emit all that is in a cache and leave it empty; see the definition."""
    return int(_drain(cache, out_keys, out_counts))


@_inline
def _mix(key: np.uint64) -> np.uint64:
    x = key ^ (key >> _S1)
    x = x * _M1
    x = x ^ (x >> _S2)
    x = x * _M2
    return x ^ (x >> _S3)


@_inline
def _scramble(key: np.uint64) -> np.uint64:
    x = key * SCRAMBLE
    return x ^ (x >> _U32)


@_inline
def _unscramble(word: np.uint64) -> np.uint64:
    x = word ^ (word >> _U32)
    return x * UNSCRAMBLE


@intrinsic
def _prefetch(_: Any, array: Any, index: Any) -> Any:
    """Fetch array[index] into the first-level cache, to be written; the program does not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        at = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [at.type, word, word, word])
        to_write, keep, of_data = word(1), word(3), word(1)
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", fnty=kind), [at, to_write, keep, of_data])
        return context.get_dummy_value()

    return types.void(array, index), generate


@_jit
def _update(table: Any, keys: Keys, counts: Counts, seeds: RowSeeds) -> int:
    n = np.uint64(len(keys))
    width2 = np.uint64(2 * table.shape[1]) & _LOW  # so that the compiler sees a 32-bit factor
    mixed = np.empty(n, np.uint64)
    signed = np.empty((n, 2), table.dtype)  # each count and its opposite, for the sign bit to choose
    for i in range(n):
        mixed[i] = _mix(keys[i])
        signed[i, 0], signed[i, 1] = counts[i], -counts[i]
    places = np.empty(BLOCK, np.uint32)
    touched = 0
    for r in range(table.shape[0]):
        row = table[r]
        a0, a1, a2 = seeds[r, 0], seeds[r, 1], seeds[r, 2]
        if 4 * len(keys) > len(row):  # read the row through once: memory gives it faster in order than at random
            for i in range(0, len(row), 8):
                touched += row[i]
        for start in range(_U0, n, np.uint64(BLOCK)):
            m = min(np.uint64(BLOCK), n - start)
            block, choices = mixed[start : start + m], signed[start : start + m]
            for i in range(m):
                h = (a0 + (block[i] >> _U32)) * (a1 + (block[i] & _LOW)) + a2
                places[i] = np.uint32(((h >> _U32) * width2) >> _U32)
            for i in range(m):
                t = places[i]
                row[t >> np.uint32(1)] += choices[i, t & np.uint32(1)]
    return touched  # so that the compiler keeps the reading


@_jit
def _scatter(table: Any, keys: Keys, counts: Counts) -> bool:
    size = np.uint64(len(table))
    for i in range(len(keys)):
        if keys[i] >= size:
            return False
        table[keys[i]] += counts[i]
    return True


@_jit
def _estimate(table: Any, keys: Keys, seeds: RowSeeds, comparators: npt.NDArray[np.int64], found: Counts) -> None:
    depth = table.shape[0]
    n = len(keys)
    width2 = np.uint64(2 * table.shape[1]) & _LOW  # so that the compiler sees a 32-bit factor
    mixed = np.empty(BLOCK, np.uint64)
    columns = np.empty(BLOCK, np.int32)
    signs = np.empty(BLOCK, np.int64)
    rows = np.empty((depth, BLOCK), np.int64)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        for i in range(m):
            mixed[i] = _mix(keys[start + i])
        for r in range(depth):
            a0, a1, a2 = seeds[r, 0], seeds[r, 1], seeds[r, 2]
            for i in range(m):
                h = (a0 + (mixed[i] >> _U32)) * (a1 + (mixed[i] & _LOW)) + a2
                t = ((h >> _U32) * width2) >> _U32
                columns[i] = np.int32(t >> _U1)
                signs[i] = np.int64(t & _U1)
            source = table[r]
            into = rows[r]
            for i in range(m):
                s = signs[i]
                into[i] = (np.int64(source[np.uint32(columns[i])]) ^ -s) + s
        for c in range(len(comparators)):
            low = rows[comparators[c, 0]]
            high = rows[comparators[c, 1]]
            for i in range(m):
                a, b = low[i], high[i]
                low[i] = min(a, b)
                high[i] = max(a, b)
        below = rows[(depth - 1) // 2]
        above = rows[depth // 2]
        for i in range(m):
            a, b = below[i], above[i]
            middle = (a & b) + ((a ^ b) >> 1)
            found[start + i] = middle + ((a ^ b) & middle & 1)


@cache
def _comparators(depth: int) -> npt.NDArray[np.int64]:
    """List the comparators of Batcher's odd-even merge sort of `depth` wires (Knuth 5.3.4 M); int64[c, 2]."""
    pairs = []
    top = 1 << max(depth - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(depth - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return np.array(pairs, np.int64).reshape(-1, 2)


@_jit
def _combine(
    keys: Keys, shift: int, cache: Keys, skip: np.uint64, out_keys: Keys, out_counts: Counts
) -> tuple[int, int]:
    mask = np.uint64(len(cache) - 1)
    cut = np.uint64(shift)
    n, room = np.uint64(len(keys)), np.uint64(len(out_keys))
    words = np.empty(AHEAD, np.uint64)
    taken = emitted = _U0
    while taken < n and emitted < room:
        m = min(AHEAD, n - taken, room - emitted)
        wanted = _U0
        for i in range(taken, taken + m):
            key = keys[i]
            x = _scramble(key >> cut)
            words[wanted] = x
            wanted += np.uint64(key != skip)
            _prefetch(cache, x & mask)
        for lane in range(LANES):
            for i in range(lane, wanted, LANES):
                at, tag = words[i] & mask, words[i] & ~mask
                word = cache[at]
                out_keys[emitted], out_counts[emitted] = word, np.int64(at)  # to stay unless it is a hit
                hit = (word ^ tag) < mask  # then it is the count: the same key, with room for one more
                cache[at] = (word if hit else tag) + _U1
                emitted += np.uint64(not hit)
        taken += m
    kept = _U0
    for i in range(emitted):
        word, at = out_keys[i], np.uint64(out_counts[i])
        out_keys[kept], out_counts[kept] = _unscramble(word & ~mask | at), np.int64(word & mask)
        kept += np.uint64(word != _U0)  # not what was in an empty slot
    return int(taken), int(kept)


@_jit
def _combine_pairs(
    keys: Keys, counts: Counts, shift: int, cache: Keys, skip: np.uint64, out_keys: Keys, out_counts: Counts
) -> tuple[int, int]:
    mask = np.uint64(len(cache) - 1)
    cut = np.uint64(shift)
    n, room = np.uint64(len(keys)), np.uint64(len(out_keys))
    taken = emitted = _U0
    while taken < n and emitted < room:
        m = min(AHEAD, n - taken, room - emitted)
        for i in range(taken, taken + m):
            _prefetch(cache, _scramble(keys[i] >> cut) & mask)
        for i in range(taken, taken + m):
            key, count = keys[i], np.uint64(counts[i])
            if key == skip:
                continue
            x = _scramble(key >> cut)
            at, tag = x & mask, x & ~mask
            word = cache[at]
            if count > mask:  # more than a word can hold
                out_keys[emitted], out_counts[emitted] = _unscramble(x), np.int64(count)
                emitted += _U1
            elif (word ^ tag) <= mask - count:
                cache[at] = word + count
            else:
                out_keys[emitted], out_counts[emitted] = _unscramble(word & ~mask | at), np.int64(word & mask)
                emitted += np.uint64(word != _U0)
                cache[at] = tag + count
        taken += m
    return int(taken), int(emitted)


@_jit
def _drain(cache: Keys, out_keys: Keys, out_counts: Counts) -> int:
    mask = np.uint64(len(cache) - 1)
    emitted = 0
    for at in range(len(cache)):
        word = cache[at]
        if word & mask:
            out_keys[emitted] = _unscramble(word & ~mask | np.uint64(at))
            out_counts[emitted] = np.int64(word & mask)
            emitted += 1
            cache[at] = 0
    return emitted
