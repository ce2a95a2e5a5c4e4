"""What a plan promises to every unit: one pixel, one image or one patient."""

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cairn.errors import PlanError
from cairn.privacy import gaussian

Unit = Literal["pixel", "image", "patient"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)  # each protects what the one before it does, and more
LARGEST_CLIP: Final = 1000
ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Privacy:
    """A plan's promise: with or without any one unit at any one site, what is published is nearly as likely.

        Pr[M(D) in S] ≤ e^ε Pr[M(D′) in S] + δ     D, D′ differing in one unit     Dwork & Roth 2014, Definition 2.4

    unit      what is added or removed
    epsilon   of this plan alone, at delta
    delta     the same
    noise     standard deviation for a sensitivity of 1 (z); the promise follows from it
    clip      a unit adds at most clip² pixels, and to a row of a table at most clip in L2 norm; 1 for pixels
    brightest L2 norm of a pixel's levels; brighter pixels are dimmed to it where levels are summed
    sites     least number in a sum; with fewer the noise would not do. 1: the site's own noise is all of it
    sharers   of those, sites whose noise is counted on: the others may tell theirs to the aggregator
    Raises PlanError.
    """

    unit: Unit
    epsilon: float
    delta: float
    noise: float
    clip: int
    brightest: int
    sites: int
    sharers: int

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise PlanError(f"privacy for each {self.unit!r} was asked for; it can be pixel, image or patient")
        numbers = (self.epsilon, self.delta, self.noise)
        if not all(math.isfinite(number) and number > 0 for number in numbers) or self.delta >= 1:
            raise PlanError("ε, δ and the noise of a private plan must be over 0, and δ under 1")
        if not (1 <= self.clip <= LARGEST_CLIP and (self.clip == 1 or self.unit != "pixel")):
            raise PlanError(f"a clip of {self.clip} was asked for; 1 to {LARGEST_CLIP} can be, and for pixels 1 alone")
        if self.brightest < 1 or not 1 <= self.sharers <= self.sites:
            raise PlanError("a private plan needs a brightest norm of 1 or more, and as many sites as share its noise")
        kept = gaussian.epsilon(gaussian.concentration(self.noise), self.delta)
        if kept > self.epsilon * (1 + ROUNDING):
            raise PlanError(
                f"the plan promises ε {self.epsilon:.4g} at δ {self.delta:.3g} and its noise keeps only ε {kept:.4g}"
            )

    @property
    def most_pixels(self) -> int:
        """Pixels that a unit adds, at most."""
        return self.clip**2

    def __str__(self) -> str:
        return f"ε {self.epsilon:.4g} and δ {self.delta:.3g} for each {self.unit}"


def honest(sites: int, may_collude: int) -> int:
    """Say on how many sites' noise to count: not on the accomplices', and at least one may look at its own.

    may_collude  thousandths of the sites
    """
    return max(1, sites - max(1, math.ceil(sites * may_collude / 1000)))
