"""One config holds every number: the paper's by default, and nothing that cannot be."""

import json

import pytest
from pydantic import ValidationError

from agent_trainer.config import DqnConfig, read_config
from cairn.errors import ConfigError


def test_the_defaults_are_the_numbers_of_the_paper():
    config = DqnConfig()
    assert (config.box, config.history, config.actions, config.state_shape) == (45, 4, 4, (4, 45, 45))
    assert (config.gamma, config.learning_rate, config.batch) == (0.9, 1e-4, 48)
    assert (config.target_every, config.capacity) == (2500, 1_000_000)
    assert (len(config.channels), len(config.hidden) + 1) == (4, 4)
    assert config.scales == (1,)
    assert (config.double, config.duelling) == (False, False)
    assert config.replay == "uniform"


def test_three_axes_have_six_actions_and_a_cube_for_a_box():
    config = DqnConfig(axes=3, pool=(2, 2, 2))
    assert config.actions == 6
    assert config.state_shape == (4, 45, 45, 45)


@pytest.mark.parametrize(("steps", "epsilon"), [(0, 1.0), (50_000, 0.55), (100_000, 0.1), (10**9, 0.1)])
def test_epsilon_falls_linearly_and_then_stays(steps, epsilon):
    assert DqnConfig().epsilon(steps) == pytest.approx(epsilon)


@pytest.mark.parametrize(("updates", "rate"), [(0, 1e-3), (9, 1e-3), (10, 1e-4), (29, 1e-5)])
def test_the_learning_rate_falls_by_its_factor_at_every_step_of_the_schedule(updates, rate):
    assert DqnConfig(learning_rate=1e-3, lr_step=10, lr_factor=0.1).rate(updates) == pytest.approx(rate)


def test_a_box_shrinks_by_every_kernel_and_pool():
    assert DqnConfig().feature_side() == 2  # 45 → 43/2 = 21 → 19/2 = 9 → 9/2 = 4 → 4/2 = 2
    assert DqnConfig(box=25).feature_side() == 1  # 25 → 23/2 = 11 → 9/2 = 4 → 4/2 = 2 → 2/2 = 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"box": 12}, "a box of 12 pixels is used up before the last convolution"),
        ({"kernels": (3, 3)}, "4 channels and 2 kernels"),
        ({"scales": (1, 2)}, "must fall, coarse to fine"),
        ({"reward_edges": (1.0, 0.0)}, "they must rise"),
        ({"tasks": ("a", "a")}, "each may be named once"),
        ({"axes": 3}, "it needs 3 numbers"),
        ({"pool": (3, 46)}, "none over the box of 45"),
        ({"channels": (8, 0, 8, 8)}, "must all be at least 1"),
        ({"gamma": 1.0}, "gamma: Input should be less than 1"),
        ({"boxx": 3}, "boxx: Extra inputs are not permitted; known are alpha"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match="the run's DQN settings: ") as refused:
        read_config(json.dumps(settings))
    assert sentence in str(refused.value)


def test_settings_travel_as_json_and_come_back_the_same():
    config = DqnConfig(tasks=("sella", "nasion"), scales=(4, 2, 1), double=True)
    assert read_config(config.model_dump_json()) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        DqnConfig().box = 3
