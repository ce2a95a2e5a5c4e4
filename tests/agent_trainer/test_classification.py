"""Counts of classifications: those of parts add up, and their measures are those of the examples themselves."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.classification import (
    CALIBRATION,
    LONGEST_NAME,
    MOST_CLASSES,
    Counts,
    add,
    count,
    figures,
    measures,
    merge_validation,
)
from cairn.errors import Diverged

Answers = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


@st.composite
def answers(draw: st.DrawFn, least: int = 0) -> Answers:
    """Draw probabilities, sharp or flat, right or wrong, and labels of which some classes may lack."""
    classes = draw(st.integers(2, 5))
    number = draw(st.integers(least, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(1, classes)), number)
    logits = rng.normal(size=(number, classes)) * draw(st.sampled_from([0.1, 1, 5, 40]))
    logits[np.arange(number), labels] += draw(st.sampled_from([0, 2]))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return odds / odds.sum(axis=1, keepdims=True), labels


def names(probabilities: npt.NDArray[np.float64]) -> list[str]:
    return [f"class {k}" for k in range(probabilities.shape[1])]


def equal(one: Counts, other: Counts) -> bool:
    return (
        bool((one.confusion == other.confusion).all())
        and bool((one.scores == other.scores).all())
        and bool((one.calibration == other.calibration).all())
    )


@given(answers(), st.integers(0, 60), st.integers(0, 60))
def test_the_counts_of_parts_add_up_to_those_of_the_whole(given_: Answers, first: int, second: int) -> None:
    probabilities, labels = given_
    cuts = sorted((first, second))
    parts = zip(np.split(probabilities, cuts), np.split(labels, cuts), strict=True)
    assert equal(add([count(p, y) for p, y in parts]), count(probabilities, labels))


@given(answers(least=1))
def test_figures_of_sites_merge_into_the_measures_of_all_their_examples(given_: Answers) -> None:
    probabilities, labels = given_
    sites = [figures(count(probabilities[i::3], labels[i::3]), names(probabilities), least=1) for i in range(3)]
    pooled = measures(count(probabilities, labels), names(probabilities))
    merged = merge_validation(sites)
    assert set(merged) == {f"validation/{name}" for name in pooled}
    for name, value in pooled.items():
        assert merged[f"validation/{name}"] == pytest.approx(value, abs=1e-12), name


@settings(deadline=None, max_examples=50)
@given(answers(least=1))
def test_the_measures_are_those_of_scikit_learn(given_: Answers) -> None:
    probabilities, labels = given_
    predicted = probabilities.argmax(axis=1)
    classes = range(probabilities.shape[1])
    found = measures(count(probabilities, labels), names(probabilities))
    recalls = [(predicted[labels == k] == k).mean() for k in classes if (labels == k).any()]
    assert found["n"] == len(labels)
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    if set(predicted.tolist()) <= set(labels.tolist()) and len(set(labels.tolist())) > 1:  # else scikit-learn warns
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for k in classes:
        of_class = labels == k
        if of_class.any():
            assert found[f"sensitivity/class {k}"] == pytest.approx((predicted[of_class] == k).mean())
        else:
            assert f"sensitivity/class {k}" not in found
        if (~of_class).any():
            assert found[f"specificity/class {k}"] == pytest.approx((predicted[~of_class] != k).mean())
        else:
            assert f"specificity/class {k}" not in found
    both = [k for k in classes if 0 < (labels == k).sum() < len(labels)]
    if both:
        exact = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in both])
        assert abs(found["auc"] - exact) <= found["auc_error"] + 1e-12
    else:
        assert "auc" not in found


def test_the_binning_error_of_the_auc_is_small_for_sure_and_for_unsure_networks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    for sharpness in (0.3, 1, 4):
        logit = sharpness * (rng.normal(size=4000) + labels)
        probability = 1 / (1 + np.exp(-logit))
        found = measures(count(np.stack([1 - probability, probability], axis=1), labels), ["no", "yes"])
        assert found["auc"] == pytest.approx(roc_auc_score(labels, probability), abs=0.005)
        assert found["auc_error"] < 0.06


def test_sensitivity_specificity_and_calibration_are_as_by_hand() -> None:
    probabilities = np.array([[0.91, 0.09], [0.81, 0.19], [0.29, 0.71], [0.44, 0.56], [0.34, 0.66]])
    labels = np.array([0, 0, 0, 1, 1])
    counts = count(probabilities, labels)
    assert counts.confusion.tolist() == [[2, 1], [0, 2]]
    assert counts.confusion.tolist() == confusion_matrix(labels, probabilities.argmax(axis=1)).tolist()
    found = measures(counts, ["healthy", "ill"])
    assert found["sensitivity/healthy"] == pytest.approx(2 / 3)
    assert found["specificity/ill"] == pytest.approx(2 / 3)
    assert found["sensitivity/ill"] == found["specificity/healthy"] == 1
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    # Bins of 0.05: 0.91 right; 0.81 right; 0.71 wrong; 0.56 right; 0.66 right. One a bin, whose middles count.
    assert found["ece"] == pytest.approx((0.075 + 0.175 + 0.725 + 0.425 + 0.325) / 5)
    # Of six pairs (ill, healthy) those of 0.71 with 0.56 and 0.66 are the wrong way round.
    assert found["auc"] == pytest.approx(4 / 6)


@given(answers(least=1))
def test_the_calibration_error_is_within_half_a_bin_of_that_of_the_confidences_themselves(given_: Answers) -> None:
    probabilities, labels = given_
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION).astype(int), CALIBRATION - 1)
    exact = sum(abs((confidence - right)[bins == one].sum()) for one in range(CALIBRATION)) / len(labels)
    found = measures(count(probabilities, labels), names(probabilities))["ece"]
    assert abs(found - exact) <= 0.5 / CALIBRATION + 1e-12


@given(answers(least=10))
def test_all_that_a_site_tells_follows_from_whole_numbers_of_images_in_bins(given_: Answers) -> None:
    probabilities, labels = given_
    told = figures(count(probabilities, labels), names(probabilities))
    counts = {name: value for name, value in told.items() if name.startswith("validation/counts/")}
    assert all(value == round(value) for value in counts.values())
    measured = {name: value for name, value in told.items() if name not in counts}
    assert merge_validation([counts]) == pytest.approx(measured, abs=1e-12)


@given(answers())
def test_a_site_tells_nothing_of_fewer_than_ten_images(given_: Answers) -> None:
    probabilities, labels = given_
    assert bool(figures(count(probabilities, labels), names(probabilities))) == (len(labels) >= 10)


def test_nobody_who_validated_gives_no_figures() -> None:
    nothing = count(np.empty((0, 3)), np.empty(0, np.int64))
    assert measures(nothing, ["a", "b", "c"]) == {}
    assert figures(nothing, ["a", "b", "c"]) == {}
    assert merge_validation([{}, {"validation/mean_mm": 3.0}]) == {}


def test_the_figures_of_as_many_classes_as_a_run_may_have_fit_into_a_message_whatever_was_counted() -> None:
    for classes in range(2, MOST_CLASSES + 1):
        full = np.ones((classes, 2, 50), np.int64)
        counts = Counts(np.ones((classes, classes), np.int64), full, np.ones((CALIBRATION, 2), np.int64))
        named = [str(k).zfill(LONGEST_NAME) for k in range(classes)]
        told = figures(counts, named, least=1)
        assert len(told) <= 900
        assert max(map(len, told)) <= 100
        assert sum("/scores/" in name for name in told) >= 4 * classes, "one bin would tell nothing of the order"


@pytest.mark.parametrize("config", [ApgaConfig, AttentionConfig])
def test_more_classes_or_longer_names_than_a_message_has_room_for_are_refused(config: type[Any]) -> None:
    most = tuple(str(k).zfill(LONGEST_NAME) for k in range(MOST_CLASSES))
    assert config(classes=most).classes == most
    with pytest.raises(ValidationError, match="at most 25 items"):
        config(classes=(*most, "one more"))
    with pytest.raises(ValidationError, match="at most 60 characters"):
        config(classes=("a", "b" * 61))


@pytest.mark.parametrize("classes", [2, 8, 14, 25])
def test_the_figures_of_many_classes_fit_into_a_message_and_still_merge(classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(classes, 0.3), 10_000)
    labels = rng.integers(0, classes, 10_000)
    labels[:7_000] = probabilities[:7_000].argmax(axis=1)
    sent = [figures(count(p, y), [f"c{k}" for k in range(classes)]) for p, y in ((probabilities, labels),) * 2]
    assert all(len(site) <= 900 for site in sent)
    merged = merge_validation(sent)
    assert merged["validation/n"] == 20_000
    exact = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)])
    assert abs(merged["validation/auc"] - exact) <= merged["validation/auc_error"]
    assert merged["validation/balanced_accuracy"] == pytest.approx(sent[0]["validation/balanced_accuracy"])


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5, float("inf")])
def test_probabilities_that_are_none_are_told(value: float) -> None:
    with pytest.raises(Diverged, match="no numbers from 0 to 1"):
        count(np.array([[value, 0.5]]), np.array([0]))


GOOD = figures(count(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])), ["a", "b"], least=1)
SCORE = next(name for name in GOOD if "scores" in name)


@pytest.mark.parametrize(
    "changed",
    [
        {"validation/counts/confusion/0/0": -1.0},
        {"validation/counts/confusion/0/0": 0.5},
        {"validation/counts/confusion/0/0": 1e300},
        {"validation/counts/confusion/0/0": float("nan")},
        {"validation/counts/confusion/99999999/0": 1.0},
        {"validation/counts/confusion/0": 1.0},
        {"validation/counts/confusion/-1/0": 1.0},
        {"validation/counts/other/0": 1.0},
        {SCORE: 7.0},
        {"validation/counts/calibration/18/1": 3.0},
        {"validation/counts/calibration/18/2": 1.0},
        {"validation/counts/class/c": 2.5},
        {"validation/counts/class/c": 2.0},
        {"validation/counts/class/a": 1.0, "validation/counts/class/b": 0.0, "validation/counts/confusion/1/7": 1.0},
    ],
)
def test_a_site_whose_counts_do_not_agree_or_of_other_classes_is_passed_over(changed: dict[str, float]) -> None:
    assert merge_validation([GOOD | changed, GOOD, GOOD])["validation/n"] == 4
