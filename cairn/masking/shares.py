"""Shamir's secret sharing over the prime field of p = 2^256 + 297, the smallest that holds every 32-byte secret.

Own code, because the libraries for it draw their own randomness, and it is ten lines:

    f(x) = secret + c₁x + … + c_{t-1}x^{t-1} mod p,  share x = f(x),  x = 1, 2, …       Shamir 1979
    secret = Σ_i f(x_i) Π_{j≠i} x_j / (x_j - x_i) mod p                                Lagrange at 0
"""

from collections.abc import Mapping

from cairn.errors import MaskingError
from cairn.masking.keys import keystream

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, points: tuple[int, ...], threshold: int, key: bytes) -> tuple[bytes, ...]:
    """Split a secret so that any `threshold` shares give it back and fewer tell nothing.

    secret   32 bytes
    points   where the polynomial is read, each over 0 and once
    key      32 secret bytes from which the coefficients are drawn, used for this secret alone
    returns  33 bytes (little-endian) a point
    """
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= len(points) == len(set(points))
    assert min(points) > 0
    # 512 bits reduced mod p: the bias is under 2^-255.
    drawn = keystream(key, 64 * (threshold - 1))
    coefficients = [int.from_bytes(drawn[i : i + 64], "little") % PRIME for i in range(0, len(drawn), 64)]
    coefficients.append(int.from_bytes(secret, "little"))  # of x^0, the last in Horner's order
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "little"))
    return tuple(shares)


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Join shares, point to 33 bytes, into the secret; of more than enough those of the lowest points are taken.

    Raises MaskingError when shares are too few, of another length or not of one secret of 32 bytes.
    """
    if len(shares) < threshold or any(len(share) != SHARE_BYTES for share in shares.values()):
        raise MaskingError(f"{len(shares)} shares were given where {threshold} of {SHARE_BYTES} bytes are needed")
    points = sorted(shares)[:threshold]
    values = {point: int.from_bytes(shares[point], "little") for point in points}
    if max(values.values()) >= PRIME:
        raise MaskingError("a share is no number of the field; the site that revealed it is wrong")
    total = 0
    for i in points:
        upper, lower = 1, 1
        for j in points:
            if j != i:
                upper, lower = upper * j % PRIME, lower * (j - i) % PRIME
        total += values[i] * upper * pow(lower, -1, PRIME)
    secret = total % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise MaskingError("the shares do not join to a secret: one of them, or the site that dealt them, is wrong")
    return secret.to_bytes(SECRET_BYTES, "little")
