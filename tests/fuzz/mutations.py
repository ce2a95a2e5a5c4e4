"""Seeded mutations of bytes: what a fuzzer does to a message that was good."""

import random
from collections.abc import Sequence

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


def mutate(rng: random.Random, seeds: Sequence[bytes], largest: int) -> bytes:
    """Draw a seed, and change it at one to eight places."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 32)))
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
            case 5:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(INTERESTING) & ((1 << 8 * size) - 1)
                data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at:] = other[start:]
            case _:
                del data[at:]
    return bytes(data[:largest])
