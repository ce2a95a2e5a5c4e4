"""The Gaussian mechanism in concentrated terms: noise of σ = z·Δ₂ is ρ-zCDP with ρ = 1/(2z²).

Holds for the discrete Gaussian as for the continuous one (Canonne, Kamath & Steinke 2020, Theorem 14), and ρ adds up
over releases, whatever each was chosen by.
"""

import math

_STEPS = 200


def concentration(noise: float) -> float:
    """Return ρ of a noise multiplier z."""
    return 1 / (2 * noise**2)


def multiplier(rho: float) -> float:
    """Return the noise multiplier z of a ρ."""
    return 1 / math.sqrt(2 * rho)


def epsilon(rho: float, delta: float) -> float:
    """Return the ε that ρ-zCDP keeps at δ.

        ε = inf over α > 1 of  αρ + ln(1 - 1/α) + (ln(1/δ) - ln α)/(α - 1)       ibid., Proposition 12

    rho    over 0
    delta  over 0 and under 1
    """
    low, high = -30.0, 30.0  # of ln(α - 1), in which the bound falls and then rises
    for _ in range(_STEPS):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if _at(a, rho, delta) < _at(b, rho, delta) else (a, high)
    return max(0.0, _at((low + high) / 2, rho, delta))


def rho(epsilon_: float, delta: float) -> float:
    """Return the largest ρ that keeps ε at δ, to within 1e-12 of it."""
    low, high = 0.0, 1.0
    while epsilon(high, delta) < epsilon_:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle, delta) <= epsilon_ else (low, middle)
    return low


def _at(log_more: float, rho: float, delta: float) -> float:
    more = math.exp(log_more)  # α - 1
    return (1 + more) * rho + log_more - math.log1p(more) + (-math.log(delta) - math.log1p(more)) / more
