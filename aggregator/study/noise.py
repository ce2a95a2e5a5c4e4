"""What is known of the noise in a merged private tally, and what people are told of the promise behind it."""

import math
from collections.abc import Mapping
from typing import Any

from cairn.plan import Plan
from cairn.privacy.accountant import composed
from cairn.privacy.sensitivity import merged_scale, scales
from cairn.ranges import STANDS_OUT


def table_noise(plan: Plan, tallies: int) -> dict[str, float]:
    """Return the standard deviation of the noise in each table's cells; 0 for all of an exact plan.

    tallies  sites in the sum, or of several windows' sums together
    """
    terms, shapes = plan.privacy, plan.stage.shapes()
    if terms is None:
        return dict.fromkeys(shapes, 0.0)
    return {name: merged_scale(scale, terms, tallies) for name, scale in scales(shapes, terms).items()}


def threshold(min_count: int, noise: float) -> int:
    """Return the smallest count that is shown: what the researcher asked for, and nothing that noise alone makes."""
    return max(1, min_count, math.ceil(STANDS_OUT * noise))


def promised(plan: Plan, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's promise so far, with one more merged plan; nothing for exact plans.

    known  the study's results
    """
    terms = plan.privacy
    if terms is None:
        return {}
    before = known.get("privacy", {"noise": []})
    noise = [*before["noise"], terms.noise]
    epsilon = composed(noise, terms.delta)
    said = (
        f"so far, each {terms.unit} has ε {epsilon:.3g} at δ {terms.delta:.2g}: the counts carry noise, and of one "
        f"{terms.unit} at most {terms.most_pixels:,} pixels are in them"
    )
    return {
        "privacy": {
            "unit": terms.unit,
            "epsilon": epsilon,
            "delta": terms.delta,
            "clip": terms.clip,
            "noise": noise,
            "said": said,
        }
    }
