"""The hash family `pair-multiply-shift/1`: a key's column and sign in every row, the same bits for all parties."""

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cairn.errors import PlanError

FAMILY: Final = "pair-multiply-shift/1"
SEED_BYTES: Final = 32

RowSeeds = npt.NDArray[np.uint64]  # [depth, 3]: a₀, a₁, a₂ of each row
Keys = npt.NDArray[np.uint64]

# Stafford's Mix13, the finaliser of SplitMix64 (Steele, Lea & Flood 2014); a bijection of 64-bit words.
MIX_SHIFTS: Final = (30, 27, 31)
MIX_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def row_seeds(seed: bytes, depth: int, family: str = FAMILY) -> RowSeeds:
    """Derive the rows' multipliers from the plan's seed by HKDF-SHA256 (RFC 5869), no salt, the family as info.

    seed     32 bytes
    returns  uint64[depth, 3], the output read as little-endian words; fewer rows are a prefix of more
    Raises PlanError for an unknown family, or a seed of another length.
    """
    if family != FAMILY or len(seed) != SEED_BYTES:
        raise PlanError(f"hash family {family!r} with a seed of {len(seed)} bytes; expected {FAMILY!r} and 32 bytes")
    stream = HKDF(SHA256(), length=24 * depth, salt=None, info=family.encode()).derive(seed)
    return np.frombuffer(stream, "<u8").reshape(depth, 3).astype(np.uint64)


def mix(keys: Keys) -> Keys:
    """Scramble keys by a fixed bijection, because structured keys (grids of digits) otherwise collide.

    x ← x ⊕ x≫30, x ← x·m₁, x ← x ⊕ x≫27, x ← x·m₂, x ← x ⊕ x≫31    mod 2^64

    keys     uint64[n]
    returns  uint64[n]
    """
    x = keys ^ (keys >> np.uint64(MIX_SHIFTS[0]))
    x = x * np.uint64(MIX_MULTIPLIERS[0])
    x ^= x >> np.uint64(MIX_SHIFTS[1])
    x *= np.uint64(MIX_MULTIPLIERS[1])
    x ^= x >> np.uint64(MIX_SHIFTS[2])
    return x


def place(mixed: Keys, row: RowSeeds, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the column and the sign of keys in one row.

        h = (a₀ + x_hi)·(a₁ + x_lo) + a₂ mod 2^64      Thorup, High Speed Hashing, §3.5 (pair-multiply-shift)
        t = ⌊(h ≫ 32)·2C / 2^32⌋,  column = t ≫ 1,  sign = 1 - 2(t & 1)

    mixed    uint64[n], from `mix`
    row      uint64[3]
    width    C, at most 2^26
    returns  int64[n] in 0..C-1 and int64[n] of ±1
    """
    low = mixed & np.uint64(0xFFFFFFFF)
    h = (row[0] + (mixed >> np.uint64(32))) * (row[1] + low) + row[2]
    t = ((h >> np.uint64(32)) * np.uint64(2 * width)) >> np.uint64(32)
    return (t >> np.uint64(1)).astype(np.int64), 1 - 2 * (t & np.uint64(1)).astype(np.int64)
