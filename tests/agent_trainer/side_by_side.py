"""The same training by one process of a site and by several."""

from typing import Any

import pytest

from agent_trainer.algorithms import Practice, Weights


def learn(practice: Practice, updates: int) -> dict[str, float]:
    """Make so many updates; returns what they told."""
    *_, done = practice.train(updates)
    return done.numbers()


def both_learn(alone: Practice, together: Practice, updates: int, **near: Any) -> tuple[Weights, dict[str, float]]:
    """Hold both to the same weights, let them learn and tell the same; returns what they began with, and told.

    near  of `pytest.approx`
    """
    start = together.weights()
    for practice in (alone, together):
        practice.load(start, proximal_mu=0.1)
    expected, told = learn(alone, updates), learn(together, updates)
    assert {name: pytest.approx(value, **near) for name, value in expected.items()} == told
    return start, told
