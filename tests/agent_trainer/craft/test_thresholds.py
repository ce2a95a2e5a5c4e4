"""Operating points from counts that add up: by hand, against scikit-learn, and what they are chosen for."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from agent_trainer.classification import BINS, EDGES, add, count
from agent_trainer.craft.thresholds import Rule, operating_point, operating_points, read_rule
from cairn.errors import ConfigError


def scores(others: dict[int, int], its_own: dict[int, int]) -> np.ndarray:
    table = np.zeros((2, BINS), np.int64)
    for row, found in enumerate((others, its_own)):
        for place, number in found.items():
            table[row, place] = number
    return table


# Eight others in bins 0, 20 and 40, four of the class in bins 10, 30 and 45.
HAND = scores({0: 4, 20: 3, 40: 1}, {10: 1, 30: 1, 45: 2})


@pytest.mark.parametrize(
    ("rule", "edge", "sensitivity", "specificity"),
    [
        # from bin 21 … 30 on: 3 of 4 found, 7 of 8 others below; 26 is the middle of these
        (Rule(), 26, 0.75, 0.875),
        # all found only from bin 1 … 10 on, where 4 of 8 lie below
        (Rule("sensitivity", 0.9), 6, 1.0, 0.5),
        (Rule("sensitivity", 0.75), 26, 0.75, 0.875),
        # none called wrongly from bin 41 … 45 on
        (Rule("specificity", 1.0), 43, 0.5, 1.0),
        # a miss as dear as 4 false alarms: 4·1 + 1 = 5 at bin 26, 4·0 + 4 = 4 at bin 6
        (Rule("cost", 4), 6, 1.0, 0.5),
        # as dear as one: 1 + 1 = 2 at bin 26, 2 + 0 = 2 at bin 43: the one of more sensitivity
        (Rule("cost", 1), 26, 0.75, 0.875),
    ],
)
def test_points_by_hand(rule: Rule, edge: int, sensitivity: float, specificity: float) -> None:
    found = operating_point(HAND, rule)
    assert found is not None
    assert found.threshold == EDGES[edge - 1]
    assert (found.sensitivity, found.specificity) == (sensitivity, specificity)


def drawn(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.15).astype(np.int64)
    p = 1 / (1 + np.exp(-(rng.normal(0, 1.2, n) + 2 * labels - 3)))
    return np.stack([1 - p, p], 1), labels


@pytest.mark.parametrize("seed", range(5))
def test_the_point_of_youden_is_that_of_the_roc_curve_but_for_the_bins(seed: int) -> None:
    probabilities, labels = drawn(seed)
    point = operating_points(count(probabilities, labels), ("well", "ill"), Rule())["ill"]
    false, true, _ = roc_curve(labels, probabilities[:, 1])
    assert point.sensitivity + point.specificity - 1 == pytest.approx(float((true - false).max()), abs=0.08)
    called = probabilities[:, 1] >= point.threshold  # what is said of the point holds for the images themselves
    assert called[labels == 1].mean() == pytest.approx(point.sensitivity, abs=1e-12)
    assert (~called)[labels == 0].mean() == pytest.approx(point.specificity, abs=1e-12)


def test_sites_together_choose_what_all_images_choose() -> None:
    (first, one), (second, other) = drawn(1), drawn(2)
    together = count(np.concatenate([first, second]), np.concatenate([one, other]))
    rule = Rule("sensitivity", 0.9)
    added = add([count(first, one), count(second, other)])
    assert operating_points(added, ("well", "ill"), rule) == operating_points(together, ("well", "ill"), rule)


def test_a_threshold_finds_the_rare_that_the_likeliest_class_misses() -> None:
    """Chosen on one half of the images, over five seeds it raises balanced accuracy on the other."""
    gains = []
    for seed in range(5):
        probabilities, labels = drawn(seed, 1000)
        half = len(labels) // 2
        point = operating_points(count(probabilities[:half], labels[:half]), ("well", "ill"), Rule())["ill"]
        rest, truth = probabilities[half:, 1], labels[half:]
        balanced = [
            ((rest >= threshold)[truth == 1].mean() + (rest < threshold)[truth == 0].mean()) / 2
            for threshold in (0.5, point.threshold)
        ]
        gains.append(balanced[1] - balanced[0])
    assert min(gains) > 0.1


def test_a_class_without_examples_has_no_point() -> None:
    assert operating_points(count(np.array([[0.9, 0.1]]), np.array([0])), ("a", "b"), Rule()) == {}


def test_many_classes_whose_bins_are_counted_together_have_true_points() -> None:
    table = np.zeros((2, BINS), np.int64)
    table[0, 0], table[1, 25] = 5, 5  # as a site with 25 classes sends them
    found = operating_point(table, Rule(), 25)
    assert found is not None
    assert (found.threshold, found.sensitivity, found.specificity) == (EDGES[24], 1.0, 1.0)


@pytest.mark.parametrize("text", ["youden", "sensitivity:0.95", "specificity:1", "cost:10"])
def test_rules_are_read_as_they_are_written(text: str) -> None:
    assert str(read_rule(text)) == text


@pytest.mark.parametrize(
    "text", ["", "best", "youden:1", "sensitivity", "sensitivity:0", "specificity:95", "cost:-1", "cost:x", "cost:inf"]
)
def test_a_rule_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^no operating point is called .*give youden, sensitivity:SHARE"):
        read_rule(text)
