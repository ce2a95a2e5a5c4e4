"""Print the golden hash vectors with Python's own integers and hmac, sharing no code with cairn.

`python tests/golden/make_hash_vectors.py > tests/golden/pair_multiply_shift_1.json`; a change is a new family.
"""

import hashlib
import hmac
import json

FAMILY = "pair-multiply-shift/1"
M64 = 2**64 - 1
KEYS = [0, 1, 2, 3, 255, 22**8 - 1, 2**36, 2**63 - 1, 2**64 - 2, 0x0123456789ABCDEF, 0x9E3779B97F4A7C15]


def hkdf(seed: bytes, info: bytes, length: int) -> bytes:
    secret = hmac.new(bytes(32), seed, hashlib.sha256).digest()
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(secret, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:length]


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def vectors(seed: bytes, depth: int, width: int) -> dict[str, object]:
    words = hkdf(seed, FAMILY.encode(), 24 * depth)
    rows = [[int.from_bytes(words[24 * r + 8 * i :][:8], "little") for i in range(3)] for r in range(depth)]
    columns, signs = [], []
    for a0, a1, a2 in rows:
        places = [((((a0 + (m >> 32)) * (a1 + m % 2**32) + a2) & M64) >> 32) * 2 * width >> 32 for m in map(mix, KEYS)]
        columns.append([t >> 1 for t in places])
        signs.append([1 - 2 * (t & 1) for t in places])
    return {
        "family": FAMILY,
        "seed": seed.hex(),
        "width": width,
        "row_seeds": [[f"{word:016x}" for word in row] for row in rows],
        "keys": [f"{key:016x}" for key in KEYS],
        "mixed": [f"{mix(key):016x}" for key in KEYS],
        "columns": columns,
        "signs": signs,
    }


if __name__ == "__main__":
    cases = [vectors(bytes(range(32)), 16, 200_000), vectors(bytes(32), 10, 20_000), vectors(b"\xff" * 32, 3, 2**26)]
    print(json.dumps(cases, indent=1))  # noqa: T201
