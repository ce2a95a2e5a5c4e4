"""Pixels on the CPU: the definition of `cairn.kernels.pixels_numpy`, bit for bit, in blocks that stay in the L1 cache.

Scores are summed in int32 where a block's brightest level cannot overflow it, else in float64; both are exact, so
both give the same bits. No fastmath: what follows the scores must round as the definition does.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from cairn.errors import ImageError
from cairn.kernels.pixels_numpy import (
    BACKGROUND,
    INTENSITY_BINS,
    INTENSITY_BITS,
    INTENSITY_FIRST,
    LEVEL_MAX,
    NOT_FINITE,
    UNIT_BINS,
    Counts,
    Levels,
    Projection,
    Vector,
)

Weights: TypeAlias = tuple[Projection, Vector, int]  # as int32 and float64, [D, bands padded to fours]; int32_level
Scratch: TypeAlias = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Vector, Vector]  # rows, sums; rows, sums p

BLOCK = 256  # pixels: 35 bands of int32 levels and 8 components of scores fit the L1 and L2 caches
MOMENT_BLOCK = 2048  # pixels: products under 2^32 sum to under 2^45, exact in float64

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def to_levels(values: npt.NDArray[np.number], offset: float, scale: float) -> Levels:
    """Make levels of values as they were read; see the definition."""
    if offset == 0 and scale == 1 and values.dtype in (np.uint8, np.uint16):
        return values.astype(np.uint16, copy=False)
    flat = np.ascontiguousarray(values).reshape(-1)
    if not flat.dtype.isnative:
        flat = flat.astype(flat.dtype.newbyteorder("="))
    if flat.dtype.kind not in "iu" and flat.dtype not in (np.float32, np.float64):
        flat = flat.astype(np.float64)
    levels = np.empty(flat.shape, np.uint16)
    if not _to_levels(flat, float(offset), float(scale), levels):
        raise ImageError(NOT_FINITE)
    return levels.reshape(values.shape)


def keys(
    levels: Levels, projection: Projection, min_norm: float, low: Vector, gain: Vector, radix: int
) -> npt.NDArray[np.uint64]:
    """Quantise pixels to keys, BACKGROUND where not foreground; see the definition."""
    out = np.empty(levels.shape[1], np.uint64)
    weights, scratch = _prepared(projection)
    low, gain = np.ascontiguousarray(low), np.ascontiguousarray(gain)
    _keys(np.ascontiguousarray(levels), weights, scratch, float(min_norm), low, gain, radix, out)
    return out


def unit_histogram(levels: Levels, projection: Projection, into: Counts) -> None:
    """Count each component of the unit vector by the pixel's intensity; see the definition."""
    weights, scratch = _prepared(projection)
    _unit_histogram(np.ascontiguousarray(levels), weights, scratch, into)


def moments(levels: Levels) -> tuple[Counts, Counts]:
    """Sum a tile's levels and their products, exactly: float64 products of blocks too small to round."""
    bands, n = levels.shape
    ones = np.empty((bands + 1, min(n, MOMENT_BLOCK)), np.float64)
    total = np.zeros((bands + 1, bands + 1), np.int64)
    for start in range(0, n, MOMENT_BLOCK):
        block = levels[:, start : start + MOMENT_BLOCK]
        part = ones[:, : block.shape[1]]
        part[:bands] = block
        part[bands] = 1
        total += (part @ part.T).astype(np.int64)
    return total[bands, :bands].copy(), total[:bands, :bands].copy()


def profile(levels: Levels, clusters: npt.NDArray[np.uint8], counts: Counts, sums: Counts) -> None:
    """Count pixels and sum levels by cluster; see the definition."""
    _profile(np.ascontiguousarray(levels), np.ascontiguousarray(clusters), counts, sums)


def lookup(keys: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64]) -> Counts:
    """Find keys in a rising list, -1 where they are not in it; see the definition."""
    bits = max(4, (2 * len(listed)).bit_length())
    slots = np.full(2**bits, -1, np.int64)
    _fill_slots(listed, slots, 64 - bits)
    found = np.empty(len(keys), np.int64)
    _find(np.ascontiguousarray(keys), listed, slots, 64 - bits, found)
    return found


def _prepared(projection: Projection) -> tuple[Weights, Scratch]:
    """Pad the bands to fours, find the brightest level for which no sum can leave int32, and make room for a block."""
    components, bands = projection.shape
    weights = np.zeros((components, -(-bands // 4) * 4), np.int32)
    weights[:, :bands] = projection
    heaviest = max(1, int(np.abs(weights.astype(np.int64)).sum(axis=1).max()))
    int32_level = min(LEVEL_MAX, (2**31 - 1) // heaviest)
    scratch = (
        np.empty((4, BLOCK), np.int32),
        np.empty((components, BLOCK), np.int32),
        np.empty((4, BLOCK), np.float64),
        np.empty((components, BLOCK), np.float64),
    )
    return (weights, weights.astype(np.float64), int32_level), scratch


@_jit
def _to_levels(values: Any, offset: float, scale: float, levels: Levels) -> bool:
    finite = True
    for i in range(values.size):
        x = np.float64(values[i])
        finite = finite and np.isfinite(x)
        y = min(max((x - offset) * scale, 0.0), 65535.0)
        levels[i] = np.uint16(np.int32(np.rint(y)))
    return finite


@_jit
def _scores(levels: Levels, start: int, m: int, w: Weights, scratch: Scratch) -> None:
    """Project the m pixels from start into the scratch's p[D, :m]."""
    weights32, weights64, int32_level = w
    rows32, sums32, rows64, p = scratch
    brightest = np.uint16(0)
    for b in range(levels.shape[0]):
        row = levels[b, start : start + m]
        for j in range(m):
            brightest |= row[j]  # not under the maximum, and under twice it: quicker, and near enough here
    if brightest <= int32_level:
        _sum_products(levels, start, m, weights32, rows32, sums32)
        for d in range(len(p)):
            for j in range(m):
                p[d, j] = sums32[d, j]
    else:
        _sum_products(levels, start, m, weights64, rows64, p)


@_jit
def _sum_products(levels: Levels, start: int, m: int, weights: Any, rows: Any, sums: Any) -> None:
    """Sum weights times levels in the arrays' own type, four bands a pass: they and the sums stay in L1."""
    bands = levels.shape[0]
    sums[:] = 0
    for b in range(0, weights.shape[1], 4):
        for i in range(4):
            row = rows[i]
            if b + i < bands:
                source = levels[b + i, start : start + m]
                for j in range(m):
                    row[j] = source[j]
            else:
                row[:] = 0
        r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
        for d in range(weights.shape[0]):
            out = sums[d]
            w0, w1, w2, w3 = weights[d, b], weights[d, b + 1], weights[d, b + 2], weights[d, b + 3]
            for j in range(m):
                out[j] += w0 * r0[j] + w1 * r1[j] + w2 * r2[j] + w3 * r3[j]


@_jit
def _squared_norm(p: Vector, m: int, norm2: Vector) -> None:
    for j in range(m):
        norm2[j] = 0.0
    for d in range(p.shape[0]):
        row = p[d]
        for j in range(m):
            norm2[j] += row[j] * row[j]


@_jit
def _keys(
    levels: Levels,
    w: Weights,
    scratch: Scratch,
    min_norm: float,
    low: Vector,
    gain: Vector,
    radix: int,
    out: npt.NDArray[np.uint64],
) -> None:
    p = scratch[3]
    norm = np.empty(BLOCK, np.float64)
    divisor = np.empty(BLOCK, np.float64)
    digit = np.empty(BLOCK, np.int32)
    key = np.empty(BLOCK, np.uint64)
    top = np.float64(radix - 1)
    base = np.uint64(radix)
    for start in range(0, levels.shape[1], BLOCK):
        m = min(BLOCK, levels.shape[1] - start)
        _scores(levels, start, m, w, scratch)
        _squared_norm(p, m, norm)
        for j in range(m):
            norm[j] = np.sqrt(norm[j])
            divisor[j] = norm[j] if norm[j] > min_norm else 1.0
            key[j] = 0
        for d in range(len(p)):
            row = p[d]
            low_d = low[d]
            gain_d = gain[d]
            for j in range(m):
                digit[j] = np.int32(np.rint(min(max((row[j] / divisor[j] - low_d) * gain_d, 0.0), top)))
            for j in range(m):
                key[j] = key[j] * base + np.uint64(np.uint32(digit[j]))
        for j in range(m):
            out[start + j] = key[j] if norm[j] > min_norm else BACKGROUND


@_jit
def _unit_histogram(levels: Levels, w: Weights, scratch: Scratch, into: Counts) -> None:
    p = scratch[3]
    norm2 = np.empty(BLOCK, np.float64)
    norm = np.empty(BLOCK, np.float64)
    intensity = np.empty(BLOCK, np.int32)
    unit = np.empty(BLOCK, np.int32)
    bits = norm2.view(np.uint64)
    for start in range(0, levels.shape[1], BLOCK):
        m = min(BLOCK, levels.shape[1] - start)
        _scores(levels, start, m, w, scratch)
        _squared_norm(p, m, norm2)
        for j in range(m):
            norm[j] = np.sqrt(norm2[j]) if norm2[j] > 0.0 else 1.0
            intensity[j] = np.int32(np.int64(bits[j] >> np.uint64(52 - INTENSITY_BITS)) - INTENSITY_FIRST)
        for d in range(len(p)):
            row = p[d]
            for j in range(m):
                unit[j] = np.int32(min((row[j] / norm[j] + 1.0) * (UNIT_BINS / 2), UNIT_BINS - 0.5))
            table = into[d]
            for j in range(m):
                if 0 <= intensity[j] < INTENSITY_BINS:
                    table[intensity[j], unit[j]] += 1


@_jit
def _profile(levels: Levels, clusters: npt.NDArray[np.uint8], counts: Counts, sums: Counts) -> None:
    bands, n = levels.shape
    # A row for background too, so that the inner loop has no branch; two copies break the chain of additions
    # to one word where neighbours share a cluster.
    part = np.zeros((2, 256), np.int64)
    for j in range(n):
        part[j & 1, clusters[j]] += 1
    for k in range(len(counts)):
        counts[k] += part[0, k + 1] + part[1, k + 1]
    for b in range(bands):
        part[:] = 0
        row = levels[b]
        for j in range(n):
            part[j & 1, clusters[j]] += np.int64(row[j])
        for k in range(len(counts)):
            sums[k, b] += part[0, k + 1] + part[1, k + 1]


@_jit
def _fill_slots(listed: npt.NDArray[np.uint64], slots: Counts, shift: int) -> None:
    """Hash a list into open slots (Fibonacci hashing, Knuth 6.4)."""
    mask = len(slots) - 1
    for i in range(len(listed)):
        at = np.int64((listed[i] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = i


@_jit
def _find(
    keys: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64], slots: Counts, shift: int, found: Counts
) -> None:
    mask = len(slots) - 1
    for j in range(len(keys)):
        key = keys[j]
        at = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))
        while slots[at] >= 0 and listed[slots[at]] != key:
            at = (at + 1) & mask
        found[j] = slots[at]
