# ruff: noqa: ARG001 (one signature for all backends; this one needs no cache)
"""The sketch's kernels, slow and obvious: the definition that every other backend equals bit for bit."""

import numpy as np
import numpy.typing as npt

from cairn.hashing import Keys, RowSeeds, mix, place

Counts = npt.NDArray[np.int64]
Table = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def update(table: Table, keys: Keys, counts: Counts, seeds: RowSeeds) -> None:
    """Add keys to a count sketch, in place.

        S[r, h_r(x)] += s_r(x)·c                   Charikar, Chen & Farach-Colton 2002, §3

    table   int32 or int64[depth, width], arithmetic mod 2^32 or 2^64
    keys    uint64[n]
    counts  int64[n], how often each key; may be negative (to take away)
    seeds   uint64[depth, 3]
    """
    mixed = mix(keys)
    for row, seed in zip(table, seeds, strict=True):
        column, sign = place(mixed, seed, len(row))
        np.add.at(row, column, (sign * counts).astype(row.dtype))


def scatter(table: Table, keys: Keys, counts: Counts) -> None:
    """Add counts to a dense table at its keys, in place.

    table   int32 or int64[m], arithmetic mod 2^32 or 2^64
    keys    uint64[n], each below m; IndexError otherwise
    counts  int64[n]
    """
    np.add.at(table, keys.astype(np.int64), counts.astype(table.dtype))


def estimate(table: Table, keys: Keys, seeds: RowSeeds) -> Counts:
    """Estimate each key's count: the median over rows of sign times bucket.

        f̂(x) = median_r  s_r(x)·S[r, h_r(x)]       Charikar, Chen & Farach-Colton 2002, §3

    An even number of rows takes the mean of the middle two, halves to the even integer: exact, and without the bias
    of the lower middle one.
    table    int32 or int64[depth, width]
    keys     uint64[n]
    seeds    uint64[depth, 3]
    returns  int64[n]
    """
    mixed = mix(keys)
    rows = np.empty((len(table), len(keys)), np.int64)
    for i, (row, seed) in enumerate(zip(table, seeds, strict=True)):
        column, sign = place(mixed, seed, len(row))
        rows[i] = sign * row[column]
    rows.sort(axis=0)
    below, above = rows[(len(rows) - 1) // 2], rows[len(rows) // 2]
    # ⌊(a + b)/2⌋ without overflow, then one more where that is odd and a half was cut off
    middle: Counts = (below & above) + ((below ^ above) >> 1)
    middle += (below ^ above) & middle & 1
    return middle


def combine(
    keys: Keys, counts: Counts | None, shift: int, cache: Keys, skip: int, out_keys: Keys, out_counts: Counts
) -> tuple[int, int]:
    """Add up equal keys, exactly, before they reach a table.

    What is emitted and what stays in the cache have, per key, the same sum as what was taken and what was in the
    cache; which pairs are emitted, and when, is the backend's own affair. This one keeps nothing in the cache.
    keys        uint64[n]
    counts      int64[n], each from 1; None counts every key once
    shift       bits to cut off the low end of each key first, 0 to 62 (to count prefixes)
    cache       uint64[2^b], 8 ≤ b ≤ 24, zero when empty
    skip        a key to leave out, before the shift
    out_keys    uint64[m], m ≥ 2; out_counts int64[m]: the pairs emitted
    returns     keys taken (fewer than n when the room is used up: call again with the rest), pairs emitted
    """
    taken = min(len(keys), len(out_keys))
    wanted = keys[:taken] != np.uint64(skip)
    found, where = np.unique(keys[:taken][wanted] >> np.uint64(shift), return_inverse=True)
    out_counts[: len(found)] = 0
    np.add.at(out_counts, where, 1 if counts is None else counts[:taken][wanted])
    out_keys[: len(found)] = found
    return taken, len(found)


def drain(cache: Keys, out_keys: Keys, out_counts: Counts) -> int:
    """Emit all that is in a cache and leave it empty. The definition's cache is always empty.

    out_keys uint64[m], out_counts int64[m], m ≥ the cache's length
    returns  pairs emitted
    """
    return 0
