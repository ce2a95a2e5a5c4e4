"""What many private releases cost together: Rényi accounting by Google's dp-accounting.

The only file that imports dp_accounting, and only when something is to be counted: it takes a second or more to load.
"""

from collections.abc import Sequence
from typing import Final

from cairn.privacy import gaussian

# More orders than the library's own: for small budgets the best are large, and a coarse grid costs some percent of ε.
ORDERS: Final = (
    *(1 + 0.001 * 1.07**x for x in range(136)),
    *(11 * 1.03**x for x in range(320)),
)


def composed(multipliers: Sequence[float], delta: float) -> float:
    """Return the ε, at δ, of releases with Gaussian noise, each chosen with the ones before it in sight.

    multipliers  noise multiplier z of each
    """
    from dp_accounting import GaussianDpEvent  # noqa: PLC0415 - seconds to import
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    if not multipliers:
        return 0.0
    accountant = RdpAccountant(ORDERS)
    for one in multipliers:
        accountant.compose(GaussianDpEvent(one))
    return max(0.0, float(accountant.get_epsilon(delta)))


def shared(epsilon: float, delta: float, shares: Sequence[float]) -> list[float]:
    """Choose the noise multipliers of releases that cost ε at δ together.

        ρ_i = share_i·ρ  with the largest ρ for which  ε(Σ ρ_i, δ) ≤ ε

    shares   of ρ, together 1 or less
    """
    rho, less = gaussian.rho(epsilon, delta), 1e-6
    while composed([gaussian.multiplier(rho)], delta) > epsilon:
        rho, less = rho * (1 - less), 2 * less
    return [gaussian.multiplier(share * rho) for share in shares]
