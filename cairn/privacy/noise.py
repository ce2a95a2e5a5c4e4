"""Whole-number noise: samples of the discrete Gaussian, exact for every σ, in blocks of numpy.

    Pr[X = x] ∝ exp(-x²/2σ²),  x whole

By rejection from the discrete Laplace (Canonne, Kamath & Steinke 2020, Algorithm 3), with the two real-number
decisions (which whole number, accepted or not) made on intervals: 64 random bits and float64 arithmetic with its error
bound decide nearly all; where the interval holds the border, more bits and 80 digits decide. So no sample depends on
how floats round (Mironov 2012), and no table as long as σ is needed.

Not Skellam, whose sums are Skellam exactly: its bound has a term in the L1 norm, its tails are heavier, and exact
Poisson numbers of a large mean cost more. Sums of discrete Gaussians of σ ≥ 4 differ from one by under 1e-60 (Kairouz,
Liu & Steinke 2021, Theorem 1), which is nothing.
"""

import math
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError

Integers = npt.NDArray[np.int64]
RandomBytes = Callable[[int], bytes]  # cryptographically secure: os.urandom, or a keystream

BLOCK: Final = 1 << 16
MORE_BITS: Final = 192
LARGEST: Final = 2.0**46  # σ: forty of it keep to float64's whole numbers
_EXACT: Final = Context(prec=80)
_WORD: Final = 2.0**-64


def discrete_gaussian(size: int, sigma: float, random: RandomBytes) -> Integers:
    """Draw independent samples.

    sigma    over 0
    random   gives so many random bytes
    returns  int64[size]
    Raises PlanError for a σ that cannot be sampled.
    """
    if not 0 < sigma <= LARGEST:
        raise PlanError(f"noise of σ {sigma:.3g} was asked for; over 0 and up to {LARGEST:.3g} can be drawn")
    found = np.empty(size, np.int64)
    done = 0
    while done < size:
        made = _block(min(BLOCK, (size - done) * 3 // 2 + 64), sigma, random)[: size - done]
        found[done : done + len(made)] = made
        done += len(made)
    return found


def add_noise(table: Integers, sigma: float, random: RandomBytes) -> None:
    """Add a sample to every cell, in place, mod 2^64."""
    cells = table.reshape(-1)
    assert np.shares_memory(cells, table)
    for first in range(0, len(cells), BLOCK):
        part = cells[first : first + BLOCK]
        part += discrete_gaussian(len(part), sigma, random)


def _block(proposals: int, sigma: float, random: RandomBytes) -> Integers:
    """Propose from the discrete Laplace of scale t = ⌊σ⌋ + 1 and return what is accepted; about three quarters."""
    scale = math.floor(sigma) + 1
    drawn = np.frombuffer(random(16 * proposals), "<u8").reshape(2, proposals)
    sign = np.unpackbits(np.frombuffer(random((proposals + 7) // 8), np.uint8))[:proposals].astype(bool)
    size = _geometric(drawn[0], scale, random)
    kept = _accepted(size, drawn[1], sigma, scale, random) & ~(sign & (size == 0))
    found: Integers = np.where(sign, -size, size)[kept]
    return found


def _geometric(drawn: npt.NDArray[np.uint64], scale: int, random: RandomBytes) -> Integers:
    """Return ⌊-t·ln u⌋ of u uniform in (0, 1): Pr[k] = (1 - e^(-1/t))·e^(-k/t).

    drawn  the first 64 bits of each u
    """
    u = drawn.astype(np.float64) + 0.5
    log = -np.log(u * _WORD)
    at = scale * log
    # Rounding of u, of the logarithm and of the product: 2^-50 of each; the bits of u not drawn yet: half in u.
    error = scale * (2.0**-50 * (1 + log) + 0.5 / np.maximum(u - 0.5, 0.5)) + 2.0**-50 * at
    found = np.floor(at)
    unsure = np.flatnonzero((np.floor(at - error) != found) | (np.floor(at + error) != found))
    size: Integers = found.astype(np.int64)
    for i in unsure.tolist():
        exact = _uniform(int(drawn[i]), random)
        size[i] = int(_EXACT.multiply(-_EXACT.ln(exact), Decimal(scale)).to_integral_value("ROUND_FLOOR"))
    return size


def _accepted(
    size: Integers, drawn: npt.NDArray[np.uint64], sigma: float, scale: int, random: RandomBytes
) -> npt.NDArray[np.bool_]:
    """Decide v < exp(-γ) with γ = (|x| - σ²/t)²/2σ² for v uniform in (0, 1).

    drawn  the first 64 bits of each v
    """
    away = (size - sigma * (sigma / scale)) / sigma
    log = -0.5 * away * away
    chance = np.exp(log)
    v = (drawn.astype(np.float64) + 0.5) * _WORD
    # γ errs by some 2^-50 of |x|/σ + 1 and of itself, which are under 2^10 wherever the chance is over 2^-64.
    error = chance * (2.0**-38) + 2.0**-62
    found = v < chance
    for i in np.flatnonzero(np.abs(v - chance) <= error).tolist():
        variance = _EXACT.multiply(Decimal(sigma), Decimal(sigma))
        beside = _EXACT.subtract(Decimal(int(size[i])), _EXACT.divide(variance, Decimal(scale)))
        gamma = _EXACT.divide(_EXACT.multiply(beside, beside), _EXACT.multiply(Decimal(2), variance))
        found[i] = _uniform(int(drawn[i]), random) < _EXACT.exp(-gamma)
    return found


def _uniform(first: int, random: RandomBytes) -> Decimal:
    """Draw more bits of a number in (0, 1) of which the first 64 are drawn."""
    rest = int.from_bytes(random(MORE_BITS // 8), "little")
    return _EXACT.divide(Decimal(2 * ((first << MORE_BITS) | rest) + 1), Decimal(1 << (64 + MORE_BITS + 1)))
