"""From which probability on a class is taken for present: chosen by counts that sites add up. Pure.

A classifier answers with its likeliest class. A clinic may want another operating point: to miss few of the ill, or to
call few of the well. Each class against the others has its own, at an edge between the bins in which sites count its
probabilities (`classification.EDGES`), so that what is said of it holds exactly for the images that were counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.classification import BINS, EDGES, Counts, bins_together
from cairn.errors import ConfigError

Ints: TypeAlias = npt.NDArray[np.int64]
Kind: TypeAlias = Literal["youden", "sensitivity", "specificity", "cost"]


@dataclass(frozen=True)
class Rule:
    """What an operating point is chosen by.

    youden       the most of sensitivity + specificity - 1 (Youden 1950)
    sensitivity  at least `value` of it, and the most specificity
    specificity  at least `value` of it, and the most sensitivity
    cost         the least value · misses + false alarms: a miss is as dear as `value` false alarms
    """

    kind: Kind = "youden"
    value: float = 0.0

    def __str__(self) -> str:
        """Write it as `read_rule` reads it."""
        return self.kind if self.kind == "youden" else f"{self.kind}:{self.value:g}"


@dataclass(frozen=True)
class OperatingPoint:
    """The class is called when its probability is at least `threshold`; by the images counted, so well."""

    threshold: float
    sensitivity: float
    specificity: float


def read_rule(text: str) -> Rule:
    """Read "youden", "sensitivity:0.95", "specificity:0.9" or "cost:10". Raises ConfigError."""
    kind, colon, number = text.partition(":")
    try:
        value = float(number) if colon else 0.0
    except ValueError:
        value = float("nan")
    match kind:
        case "youden" if not colon:
            return Rule()
        case "sensitivity" | "specificity" if 0 < value <= 1:
            return Rule(kind, value)
        case "cost" if 0 < value < float("inf"):
            return Rule(kind, value)
    raise ConfigError(
        f"no operating point is called {text!r}; give youden, sensitivity:SHARE, specificity:SHARE with a share over 0 "
        "and at most 1, or cost:TIMES, how many false alarms a miss is worth"
    )


def operating_point(scores: Ints, rule: Rule, classes: int = 2) -> OperatingPoint | None:
    """Choose the threshold of one class; None without examples of it or of others.

    scores   int64[2, BINS], of the class's probability: for others, and for it
    classes  of the run: with many, several bins were counted as one

    Sensitivity and specificity at the edge before bin b are Σ_{b' ≥ b} pos / P and Σ_{b' < b} neg / N. Of edges between
    which no image lies the middle one is taken; of points that the rule likes equally the one of more sensitivity.
    """
    negative, positive = scores.astype(np.float64)
    if not (negative.sum() and positive.sum()):
        return None
    step = bins_together(classes)
    edges = np.arange(step, BINS, step)  # the class is called in bins from here on
    below = np.cumsum(scores, axis=1)[:, edges - 1]
    specificity, sensitivity = below[0] / negative.sum(), 1 - below[1] / positive.sum()
    match rule.kind:
        case "youden":
            worth = sensitivity + specificity
        case "sensitivity":
            worth = np.where(sensitivity >= rule.value - 1e-12, 1 + specificity, sensitivity)
        case "specificity":
            worth = np.where(specificity >= rule.value - 1e-12, 1 + sensitivity, specificity)
        case "cost":
            worth = -(rule.value * (1 - sensitivity) * positive.sum() + (1 - specificity) * negative.sum())
    best = np.flatnonzero(np.isclose(worth, worth.max(), rtol=0, atol=1e-9))
    alike = best[(below[:, best] == below[:, best[:1]]).all(axis=0)]  # the lowest point, of most sensitivity
    chosen = int(alike[len(alike) // 2])
    return OperatingPoint(float(EDGES[edges[chosen] - 1]), float(sensitivity[chosen]), float(specificity[chosen]))


def operating_points(counts: Counts, classes: Sequence[str], rule: Rule) -> dict[str, OperatingPoint]:
    """Choose one for each class that there are examples of, and of others."""
    found = {
        name: operating_point(scores, rule, len(classes)) for name, scores in zip(classes, counts.scores, strict=True)
    }
    return {name: point for name, point in found.items() if point is not None}
