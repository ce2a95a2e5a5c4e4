"""Dropout and batch norm's statistics in rounds: what they do, that they are the same again, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_learner import Learner
from tests.agent_trainer.apga_sites import site, tiny

BOTH = [0, 1] * 20


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (6, 1, 16, 16)).astype(np.uint8), np.array([0, 1] * 3)


def test_dropout_learns_by_its_own_seed_and_answers_without_it() -> None:
    made = []
    for seed in (0, 0, 1):
        learner = Learner(tiny(method="none", dropout=0.5), seed=0)
        rng = np.random.default_rng(seed)
        for _ in range(3):
            learner.step(*batch(), rng)
        made.append(learner.weights()["classifier.head.weight"])
        assert np.array_equal(learner.probabilities(batch()[0]), learner.probabilities(batch()[0]))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_a_run_with_dropout_goes_on_bit_for_bit_after_a_restart(tmp_path: Path) -> None:
    config = tiny(method="none", dropout=0.5)
    ends = []
    for name, parts in (("once", (4,)), ("twice", (2, 2))):
        for updates in parts:
            practice = site(tmp_path / name, config, BOTH)
            for _ in practice.train(updates):
                pass
            practice.save()
        ends.append(practice.weights())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_cumulative_statistics_are_the_mean_over_the_rounds_batches_and_nothing_older() -> None:
    learner = Learner(tiny(method="none", norm_momentum="cumulative", learning_rate=1e-9), seed=0)
    name = "classifier.features.1.running_mean"
    alone = []
    for seed in (1, 2):
        learner.load(learner.weights())
        learner.step(*batch(seed), np.random.default_rng(0))
        alone.append(learner.weights()[name])
    learner.load(learner.weights())
    for seed in (1, 2):
        learner.step(*batch(seed), np.random.default_rng(0))
    np.testing.assert_allclose(learner.weights()[name], (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-6)


def test_cumulative_statistics_answer_rightly_after_few_updates_and_lagging_ones_do_not() -> None:
    """After one round of three updates, over five seeds: the running variance against that of the images."""
    lag: dict[object, list[float]] = {0.1: [], "cumulative": []}
    for momentum, values in lag.items():
        for seed in range(5):
            learner = Learner(tiny(method="none", norm_momentum=momentum, learning_rate=1e-9), seed=seed)
            learner.load(learner.weights())
            for step in range(3):
                learner.step(*batch(step), np.random.default_rng(0))
            first = learner.networks["classifier"].features[0](learner.scaled(batch(9)[0]))
            true = first.detach().transpose(0, 1).flatten(1).var(1).numpy()
            values.append(float(np.abs(np.log(learner.weights()["classifier.features.1.running_var"] / true)).mean()))
    assert np.mean(lag["cumulative"]) < 0.1
    assert np.mean(lag[0.1]) > 3 * np.mean(lag["cumulative"])


@pytest.mark.parametrize("momentum", [0, 1.5, -0.1, "sometimes"])
def test_a_momentum_that_is_none_is_refused(momentum: object) -> None:
    with pytest.raises(ValidationError):
        ApgaConfig(classes=("a", "b"), norm_momentum=momentum)
