"""Probabilities that can be believed: one temperature, fitted from counts that sites add up. Pure."""

import numpy as np
import numpy.typing as npt

from agent_trainer.classification import CALIBRATION, LOGITS, Counts

Floats = npt.NDArray[np.float64]
COLDEST, HOTTEST = 0.05, 20.0  # temperatures; a classifier without an error would like 0


def fit_temperature(counts: Counts) -> float | None:
    """Return the temperature T that makes the answers most likely; None where no class has examples and others.

        T = argmin Σ_k Σ_b pos_kb · log(1 + e^(-z_b / T)) + neg_kb · log(1 + e^(z_b / T))     Guo et al. 2017, §4.2

    z_b is the middle of bin b in logits. With two classes this is the paper's temperature but for the bins, and one
    class stands for both. With more, each class against the others stands in for the softmax, of which single bins
    cannot tell: the joint probabilities never leave a site.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to import, and no site needs it

    scores = counts.scores[1:] if len(counts.scores) == 2 else counts.scores
    negative, positive = scores.sum(axis=0).astype(np.float64)
    if not (negative.sum() and positive.sum()):
        return None

    def likelihood(log_t: float) -> float:
        z = LOGITS / np.exp(log_t)
        return float(positive @ np.logaddexp(0, -z) + negative @ np.logaddexp(0, z))

    found = minimize_scalar(likelihood, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def scaled(probabilities: npt.NDArray[np.floating], temperature: float) -> Floats:
    """Return p_k^(1/T) / Σ_j p_j^(1/T), which is softmax(logits / T): float64[n, K] of float[n, K]. The order stays."""
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities.astype(np.float64)) / temperature
    powers: Floats = np.exp(logs - logs.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def scaled_error(counts: Counts, temperature: float) -> float | None:
    """Return the calibration error of Guo et al. 2017, eq. 3, behind a temperature; None with more than two classes.

    The answers of a bin have the confidence of its middle, so that it is about that of the answers themselves.
    """
    if len(counts.scores) != 2 or not counts.confusion.sum():
        return None
    negative, positive = counts.scores[1].astype(np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(LOGITS) / temperature))
    right = np.where(LOGITS > 0, positive, negative)
    bins = (confidence * CALIBRATION).astype(np.int64).clip(0, CALIBRATION - 1)
    apart = np.bincount(bins, confidence * (negative + positive) - right, CALIBRATION)
    return float(np.abs(apart).sum() / counts.confusion.sum())
