"""How good a classifier is, as counts that sites add up: nobody's probabilities or labels leave a site. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.algorithms import Goal

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

BINS = 50  # of a class's probability
CALIBRATION = 10  # bins of the confidence
GOAL = Goal("validation/balanced_accuracy", larger=True, unit="")


@dataclass(frozen=True, eq=False)
class Counts:
    """What one site, or all together, have seen.

    confusion    int64[K, K]: true × predicted
    scores       int64[K, 2, BINS]: of the probability of class k, for examples of other classes (0) and of it (1)
    calibration  float64[CALIBRATION, 3]: examples, sum of their confidence, how many were right
    """

    confusion: Ints
    scores: Ints
    calibration: Floats


def count(probabilities: npt.NDArray[Any], labels: Ints) -> Counts:
    """Count a classifier's answers. Raises Diverged for probabilities that are no numbers in [0, 1].

    probabilities  float[N, K]
    labels         int64[N], in 0 … K - 1
    """
    raise NotImplementedError


def add(counts: Sequence[Counts]) -> Counts:
    """Add up the counts of parts, at least one, of the same classes: those of the whole."""
    raise NotImplementedError


def measures(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """Measure: n, accuracy, balanced_accuracy, auc, auc_error, sensitivity/CLASS, specificity/CLASS, ece.

    What is not defined is left out: the sensitivity of a class without examples, all of it without any.
    """
    raise NotImplementedError


def figures(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """Write measures, and the counts so that they can be added to others', under validation/; zeros are left out."""
    raise NotImplementedError


def merge_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up the counts of all sites' figures and measure them together; {} when nobody validated."""
    raise NotImplementedError
