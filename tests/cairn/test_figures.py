"""What people are shown of a run's figures, and under which names."""

import numpy as np

from agent_trainer.classification import count, figures
from cairn.figures import OF_CLASSES, algorithm_of, by_class, goal_by_task, goal_of, in_words, told
from cairn.run import GOALS

ERROR, ACCURACY = GOALS["dqn"], GOALS["apga"]
ILL = {"validation/n": 4.0, "validation/accuracy": 0.75, "validation/balanced_accuracy": 0.7, "loss": 1.0}
ILL |= {"validation/sensitivity/well": 0.8, "validation/sensitivity/ill": 0.6, "accuracy": 0.9}


def test_errors_over_tasks_are_weighted_by_images() -> None:
    assert goal_of({"validation/a/mean_mm": 1.0, "validation/a/n": 3.0, "validation/b/mean_mm": 5.0}, ERROR) == 1.0
    assert goal_of({"loss": 1.0}, ERROR) is None
    direct = {"validation/mean_mm": 2.0, "validation/a/mean_mm": 9.0, "validation/a/n": 1.0}
    assert goal_of(direct, ERROR) == 2.0
    assert goal_by_task(direct, ERROR) == {"a": 9.0}


def test_a_classifier_is_judged_by_its_balanced_accuracy_whatever_its_classes_are_called() -> None:
    named_n = {**ILL, "validation/sensitivity/n": 0.1}
    assert goal_of(named_n, ACCURACY) == 0.7
    assert goal_by_task(named_n, ACCURACY) == {}
    assert list(by_class(named_n, OF_CLASSES[0])) == ["ill", "n", "well"]


def test_what_is_told_of_a_validation_has_its_measures_and_none_of_its_counts() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    known = figures(count(probabilities, np.array([0, 1, 1])), ["ill", "well"], least=1)
    shown = told(known)
    assert {"validation/balanced_accuracy", "validation/sensitivity/ill"} <= shown.keys()
    assert known.keys() - shown.keys()
    assert not [name for name in shown if name.startswith("validation/counts/")]


def test_a_task_that_is_called_counts_is_no_count() -> None:
    assert told({"validation/counts/mean_mm": 2.0}) == {"validation/counts/mean_mm": 2.0}


def test_a_validation_is_said_in_words_of_its_algorithm() -> None:
    assert in_words({"validation/sella/mean_mm": 2.04, "steps": 9.0}) == ["sella 2.04 mm"]
    assert in_words(ILL) == [
        "balanced accuracy 0.7",
        "accuracy 0.75",
        "sensitivity of ill 0.6",
        "sensitivity of well 0.8",
    ]
    assert in_words({"loss": 1.0}) == []
    assert [algorithm_of(names) for names in ({"loss"}, {"accuracy"}, {"accuracy", "entropy"})] == [
        "dqn",
        "apga",
        "attention",
    ]
