"""How good a classifier is, as counts that sites add up. Pure.

All that a site tells follows from its counts, and of fewer than LEAST images it tells nothing. Which image is which
nobody learns, but few images hide little: a class with a single one shows what it was taken for and the bin of each of
its probabilities, and so do the counts of two rounds between which one image came or went.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cairn.errors import Diverged
from cairn.figures import VALIDATION

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

BINS = 50  # of a class's probability
CALIBRATION = 20  # bins of the confidence
LEAST = 10  # examples, below which a site tells nothing
MOST = 2**40  # examples that a site may say it has; sums of more would lose some
SENT = 900  # numbers of a site's figures; a message may hold 1000
MOST_CLASSES = 25  # of which the confusion matrix, and two bins of each class's probability, are no more than SENT
LONGEST_NAME = 60  # characters of a class; a figure's name, which has it behind a prefix, may have 100

# Probabilities between the bins: finest about 1/2, and fine enough at the ends that those of a network that is sure
# of itself do not all lie in the first and the last. In logits x = 12 · sinh(3.5 t) / sinh(3.5), t even in (-1, 1).
_LOGITS = 12 * np.sinh(3.5 * np.linspace(-1, 1, BINS + 1)[1:-1]) / np.sinh(3.5)
EDGES: Floats = 1 / (1 + np.exp(-_LOGITS))
LOGITS: Floats = 12 * np.sinh(3.5 * (2 * np.arange(BINS) + 1 - BINS) / BINS) / np.sinh(3.5)  # of the bins' middles
MIDDLES: Floats = (np.arange(CALIBRATION) + 0.5) / CALIBRATION  # of the bins of the confidence


@dataclass(frozen=True, eq=False)
class Counts:
    """What one site, or all together, have seen.

    confusion    int64[K, K]: true × predicted
    scores       int64[K, 2, BINS]: of the probability of class k, for examples of other classes (0) and of it (1)
    calibration  int64[CALIBRATION, 2]: examples by their confidence, and how many of them were right
    """

    confusion: Ints
    scores: Ints
    calibration: Ints


def count(probabilities: npt.NDArray[Any], labels: Ints) -> Counts:
    """Count a classifier's answers. Raises Diverged for probabilities that are no numbers in [0, 1].

    probabilities  float[N, K]
    labels         int64[N], in 0 … K - 1
    """
    found = probabilities.astype(np.float64)
    number, classes = found.shape
    if not ((found >= 0) & (found <= 1 + 1e-6)).all():  # NaN is neither
        raise Diverged("the classifier gave probabilities that are no numbers from 0 to 1; lower the learning rate")
    predicted = found.argmax(axis=1) if number else np.empty(0, np.int64)
    bins = np.searchsorted(EDGES, found, side="right")
    scores = np.zeros((classes, 2, BINS), np.int64)
    every = np.broadcast_to(np.arange(classes), found.shape)
    np.add.at(scores, (every, (labels[:, np.newaxis] == every).astype(np.int64), bins), 1)
    confidence = found.max(axis=1, initial=0)
    calibration = np.zeros((CALIBRATION, 2), np.int64)
    columns = np.stack([np.ones(number, np.int64), predicted == labels], axis=1)
    np.add.at(calibration, (confidence * CALIBRATION).astype(np.int64).clip(0, CALIBRATION - 1), columns)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    return Counts(confusion.astype(np.int64), scores, calibration)


def add(counts: Sequence[Counts]) -> Counts:
    """Add up the counts of parts, at least one, of the same classes: those of the whole."""
    return Counts(
        np.sum([part.confusion for part in counts], axis=0),
        np.sum([part.scores for part in counts], axis=0),
        np.sum([part.calibration for part in counts], axis=0),
    )


def measures(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """Measure: n, accuracy, balanced_accuracy, auc, auc_error, sensitivity/CLASS, specificity/CLASS, ece.

    balanced_accuracy  mean sensitivity of the classes that there are examples of
    auc                one class against the others, mean over classes: the share of pairs in the right order, those
                       in one bin counted half; within ± auc_error of that of the probabilities themselves
    ece                Σ_b (n_b / n) · |right_b / n_b - m_b|, Guo et al. 2017, eq. 3, with the bin's middle m_b for its
                       mean confidence: within ± 1 / (2 · CALIBRATION), half a bin, of that with the mean

    What is not defined is left out: the sensitivity of a class without examples, all of it without any.
    """
    confusion = counts.confusion
    total = int(confusion.sum())
    if total == 0:
        return {}
    right, true = confusion.diagonal(), confusion.sum(axis=1)
    others = total - true
    false = confusion.sum(axis=0) - right
    sensitivity = {name: r / t for name, r, t in zip(classes, right.tolist(), true.tolist(), strict=True) if t}
    specificity = {name: 1 - f / o for name, f, o in zip(classes, false.tolist(), others.tolist(), strict=True) if o}
    found = {
        "n": float(total),
        "accuracy": float(right.sum() / total),
        "balanced_accuracy": sum(sensitivity.values()) / len(sensitivity),
    }
    if areas := [_area(scores) for scores in counts.scores if scores.sum(axis=1).all()]:
        found["auc"], found["auc_error"] = (sum(values) / len(areas) for values in zip(*areas, strict=True))
    found |= {f"sensitivity/{name}": value for name, value in sensitivity.items()}
    found |= {f"specificity/{name}": value for name, value in specificity.items()}
    number, correct = counts.calibration.T
    return found | {"ece": float(np.abs(number * MIDDLES - correct).sum() / total)}


def _area(scores: Ints) -> tuple[float, float]:
    """Return the area under the ROC of scores int64[2, BINS] (others, the class), and by how much it may be wrong.

    area = Σ_b pos_b · (Σ_{a < b} neg_a + ½ neg_b) / (P · N),  error = ½ Σ_b pos_b · neg_b / (P · N)
    """
    negative, positive = scores.astype(np.float64)
    pairs = float(negative.sum() * positive.sum())
    below = np.concatenate([[0.0], negative.cumsum()[:-1]])
    tied = 0.5 * float(positive @ negative)
    return (float(positive @ below) + tied) / pairs, tied / pairs


def figures(counts: Counts, classes: Sequence[str], least: int = LEAST) -> dict[str, float]:
    """Write measures, and the counts so that they can be added to others', under validation/; zeros are left out.

    classes  at most MOST_CLASSES
    least    {} of fewer examples

    counts/class/NAME = place, counts/confusion/TRUE/PREDICTED, counts/scores/CLASS/WHETHER/BIN and
    counts/calibration/BIN/COLUMN. Of many classes several bins of scores are one, at its first, the same at all sites.
    """
    if counts.confusion.sum() < max(1, least):
        return {}
    counts = replace(counts, scores=_coarser(counts.scores))
    found = {f"{VALIDATION}{name}": value for name, value in measures(counts, classes).items()}
    found |= {f"{VALIDATION}counts/class/{name}": float(place) for place, name in enumerate(classes)}
    for name in ("confusion", "scores", "calibration"):
        values: Ints = getattr(counts, name)
        for at in np.argwhere(values).tolist():
            found[f"{VALIDATION}counts/{name}/{'/'.join(map(str, at))}"] = float(values[tuple(at)])
    return found


def bins_together(classes: int) -> int:
    """Return how many bins of scores count as one, at the first, where there are so many classes."""
    others = 6 + 3 * classes + classes * classes + 2 * CALIBRATION
    return next((step for step in (1, 2, 5, 10) if others + 2 * classes * BINS // step <= SENT), 25)


def _coarser(scores: Ints) -> Ints:
    """Make as many bins one, at its first, as it takes for all figures to fit into a message."""
    step = bins_together(len(scores))
    coarse = np.zeros_like(scores)
    coarse[..., ::step] = np.add.reduceat(scores, np.arange(0, BINS, step), axis=2)
    return coarse


def merge_validation(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up the counts of all sites' figures and measure them together; {} when nobody validated.

    The classes are those that most sites have; figures of others, or that are no counts, are passed over.
    """
    found = merge_counts(sites)
    return {f"{VALIDATION}{name}": value for name, value in measures(*found).items()} if found else {}


def merge_counts(sites: Sequence[Mapping[str, float]]) -> tuple[Counts, tuple[str, ...]] | None:
    """Add up the counts of all sites' figures; returns the sum and the classes, None when nobody validated."""
    of_site = [(_classes(site), site) for site in sites]
    often = Counter(classes for classes, _ in of_site if classes)
    if not often:
        return None
    classes = often.most_common(1)[0][0]
    counts = [_counts(site, len(classes)) for found, site in of_site if found == classes]
    known = [one for one in counts if one is not None]
    return (add(known), classes) if known else None


def _classes(site: Mapping[str, float]) -> tuple[str, ...]:
    """Return the names of a site's classes in their order; () when its figures do not tell."""
    start = f"{VALIDATION}counts/class/"
    places = {name.removeprefix(start): place for name, place in site.items() if name.startswith(start)}
    names = sorted(places, key=lambda name: places[name])
    return tuple(names) if sorted(places.values()) == list(range(len(names))) else ()


def _counts(site: Mapping[str, float], classes: int) -> Counts | None:
    """Read a site's counts; None when they are none or do not agree with one another."""
    confusion, scores = np.zeros((classes, classes)), np.zeros((classes, 2, BINS))
    calibration = np.zeros((CALIBRATION, 2))
    arrays = {"confusion": confusion, "scores": scores, "calibration": calibration}
    for name, value in site.items():
        kind, _, place = name.removeprefix(f"{VALIDATION}counts/").partition("/")
        if not name.startswith(f"{VALIDATION}counts/") or kind == "class":
            continue
        array = arrays.get(kind)
        at = tuple(int(part) for part in place.split("/") if part.isdecimal())
        if array is None or len(at) != array.ndim or any(i >= n for i, n in zip(at, array.shape, strict=True)):
            return None
        array[at] = value
    whole = np.concatenate([confusion.ravel(), scores.ravel(), calibration.ravel()])
    if not ((whole >= 0) & (whole <= MOST) & (whole == np.rint(whole))).all():  # NaN is neither
        return None
    agree = (scores.sum(axis=(1, 2)) == confusion.sum()).all() and calibration[:, 0].sum() == confusion.sum()
    if not agree or (calibration[:, 1] > calibration[:, 0]).any():
        return None
    return Counts(confusion.astype(np.int64), scores.astype(np.int64), calibration.astype(np.int64))
