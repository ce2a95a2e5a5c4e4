"""Batches that are made ahead are those that would have been made when they were needed."""

import threading
from pathlib import Path

import numpy as np
import pytest

from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.dqn_practice import DqnPractice
from agent_trainer.labelled.sources import Labelled
from agent_trainer.loading import one_ahead
from tests.agent_trainer.apga_sites import draw, tiny
from tests.agent_trainer.test_dqn_practice import CONFIG, SCENES

CHANGED = {"contrast": 0.5, "noise": 0.5}


def test_things_come_in_their_order_each_made_while_the_one_before_is_worked_with() -> None:
    made: list[int] = []
    second = threading.Event()

    def make() -> int:
        made.append(len(made))
        if len(made) == 2:
            second.set()
        return made[-1]

    with one_ahead(make, 4) as things:
        assert next(things) == 0
        assert second.wait(10), "the second is made before it is asked for"
        assert list(things) == [1, 2, 3]
    assert made == [0, 1, 2, 3], "and none behind the last"
    with one_ahead(make, 0) as things:
        assert list(things) == []
    assert len(made) == 4


def test_an_error_comes_where_the_thing_would_have_come_and_nothing_is_made_behind_the_block() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        if len(made) == 2:
            raise ValueError("the second")
        return made[-1]

    with one_ahead(make, 4) as things:
        assert next(things) == 0
        with pytest.raises(ValueError, match="the second"):
            next(things)
    assert made == [0, 1]


def site(name: str, folder: Path) -> ApgaPractice | DqnPractice:
    if name == "dqn":
        config = CONFIG.model_copy(update={"steps_per_update": 1, "augmentation": augmentation(CONFIG)})
        return DqnPractice(SCENES, config, 0, "cpu", folder)
    config = tiny(augmentation=CHANGED | {"flip": 0.5}, balance="sampler")
    return ApgaPractice(Labelled(draw(folder / "images", [0, 1, 1] * 5), (), ()), config, 0, "cpu", folder)


def augmentation(config):
    return type(config.augmentation)(**CHANGED)


@pytest.mark.parametrize("name", ["dqn", "apga"])
def test_a_site_learns_to_the_bit_what_it_would_learn_from_batches_made_when_needed(tmp_path: Path, name: str) -> None:
    weights = []
    for ahead in (False, True):
        practice = site(name, tmp_path / str(ahead))
        assert not practice._ahead, "on a CPU, whose cores are taken"
        practice._ahead = ahead
        for updates in (5, 4):
            for _ in practice.train(updates):
                pass
        weights.append(practice.weights())
    assert all(np.array_equal(array, weights[1][key]) for key, array in weights[0].items())
