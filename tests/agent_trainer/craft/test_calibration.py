"""Temperatures from counts that add up: against the answers themselves, and what they do to the calibration error."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from agent_trainer.classification import Counts, add, count, measures
from agent_trainer.craft.calibration import fit_temperature, scaled, scaled_error

Answers = tuple[np.ndarray, np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
    return found


def too_sure(seed: int, times: float, n: int = 2000, classes: int = 2) -> Answers:
    """Draw labels from true probabilities, and give answers whose logits are so many times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    true = softmax(logits)
    labels = (true.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, classes - 1)
    return softmax(times * logits), labels.astype(np.int64)


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    classes = [str(k) for k in range(probabilities.shape[1])]
    return measures(count(probabilities, labels), classes)["ece"]


def test_scaled_probabilities_by_hand() -> None:
    # T = 2: √0.64 and √0.36 are 0.8 and 0.6, of their sum 4/7 and 3/7; T = 1 changes nothing; 0 and 1 stay.
    np.testing.assert_allclose(scaled(np.array([[0.64, 0.36]]), 2), [[4 / 7, 3 / 7]])
    np.testing.assert_allclose(scaled(np.array([[0.64, 0.36]]), 1), [[0.64, 0.36]])
    np.testing.assert_allclose(scaled(np.array([[1.0, 0.0]]), 3), [[1, 0]])


@pytest.mark.parametrize("times", [0.5, 1.0, 3.0])
def test_the_temperature_of_two_classes_is_that_of_the_answers_themselves(times: float) -> None:
    probabilities, labels = too_sure(0, times)

    def likelihood(log_t: float) -> float:
        return -float(np.log(scaled(probabilities, np.exp(log_t))[np.arange(len(labels)), labels]).sum())

    exact = float(np.exp(minimize_scalar(likelihood, bounds=(-3, 3), method="bounded").x))
    found = fit_temperature(count(probabilities, labels))
    assert found == pytest.approx(exact, rel=0.03)
    assert found == pytest.approx(times, rel=0.15)


def test_with_four_classes_the_temperature_is_near_that_of_the_softmax() -> None:
    found = fit_temperature(count(*too_sure(0, 3.0, classes=4)))
    assert found == pytest.approx(3.0, rel=0.15)


def test_sites_together_fit_what_all_answers_fit() -> None:
    (first, one), (second, other) = too_sure(1, 3.0), too_sure(2, 2.0)
    together = count(np.concatenate([first, second]), np.concatenate([one, other]))
    assert fit_temperature(add([count(first, one), count(second, other)])) == fit_temperature(together)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_temperature_lowers_the_calibration_error_on_other_images(classes: int) -> None:
    """Fitted on some, measured on others, over five seeds; right answers stay as many."""
    for seed in range(5):
        fitted = fit_temperature(count(*too_sure(seed, 3.0, 500, classes)))
        assert fitted is not None
        probabilities, labels = too_sure(100 + seed, 3.0, 2000, classes)
        after = scaled(probabilities, fitted)
        assert ece(after, labels) < 0.5 * ece(probabilities, labels)
        assert (after.argmax(1) == probabilities.argmax(1)).all()


def test_the_error_behind_a_temperature_is_told_from_counts_alone() -> None:
    probabilities, labels = too_sure(0, 3.0)
    counts = count(probabilities, labels)
    for temperature in (1.0, 2.0, 3.0):
        told = scaled_error(counts, temperature)
        assert told == pytest.approx(ece(scaled(probabilities, temperature), labels), abs=0.02)
    assert scaled_error(count(*too_sure(0, 3.0, classes=4)), 2.0) is None


def test_without_two_classes_there_is_no_temperature() -> None:
    one_class = count(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]))
    assert fit_temperature(one_class) is None
    nothing = Counts(np.zeros((2, 2), np.int64), np.zeros((2, 2, 50), np.int64), np.zeros((20, 2), np.int64))
    assert fit_temperature(nothing) is None
    assert scaled_error(nothing, 1.0) is None
